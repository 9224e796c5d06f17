"""What a run folder holds besides results, so that another process can take the run up: how it began, its keys, its lock.

`run.json` is written last: a folder that has it has everything that a run begins with.
"""

import fcntl
import json
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec

from fl.config import dump_config, load_config
from fl.errors import ConfigError, DataError, RunError
from fl.experiment import Experiment, Silences
from fl.files import write_file
from fl.sections import Config
from secagg.identity import SigningKey
from secagg.keyfile import create_client, load_signer

_SERVER = "server"


class Beginning(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`run.json`: how a run began, which it may not change on the way.

    Attributes:
        format: "fl-run/1".
        run: The run's name in every ledger.
        test_seed: Fixes noise and protocol secrets; None outside of bitwise tests.
        experiment: Hex SHA-256 of model, algorithm, server step, seed and the table's schema.
        model: Hex SHA-256 of the model's leaves.
        plan: The plan's hash, or None.
        schema: Hex SHA-256 of the tables' schema; None where records are no tables.
        data: Site → fingerprint of its table, in the order of client ids.
        silences: Round → site → the phase from which it is silent.
        config: The configuration, key by key.
    """

    format: Literal["fl-run/1"] = "fl-run/1"
    run: str
    test_seed: int | None
    experiment: str
    model: str
    plan: str | None
    schema: str | None
    data: dict[str, str]
    silences: dict[str, dict[str, str]]
    config: dict[str, Any]

    @classmethod
    def of(cls, experiment: Experiment) -> "Beginning":
        """How this experiment begins."""
        agreement = experiment.agreement
        return cls(
            run=agreement.run,
            test_seed=agreement.test_seed,
            experiment=agreement.experiment,
            model=agreement.schema,
            plan=agreement.plan.hash if agreement.plan is not None else None,
            schema=experiment.schema.hash if experiment.schema is not None else None,
            data={name: site.fingerprint for name, site in experiment.train.items()},
            silences={str(number): dict(silent) for number, silent in experiment.silences.items()},
            config=msgspec.to_builtins(experiment.config),
        )

    def planned(self) -> Silences:
        """The planned silences, by round.

        Raises:
            ValueError: a key is no number of a round.
        """
        return {int(number): silent for number, silent in self.silences.items()}

    def require(self, experiment: Experiment) -> None:
        """Check that an experiment is the one that began here.

        Raises:
            DataError: a site's table is another, or there are other sites; the message names the site.
            ConfigError: the tables' schema is another.
            RunError: model, algorithm or plan come out differently, as from another version of this program.
        """
        now = Beginning.of(experiment)
        if now.schema != self.schema:
            raise ConfigError(f"the tables' schema {now.schema} is not {self.schema}, with which the run began")
        for name in self.data.keys() | now.data.keys():
            if name not in now.data or name not in self.data:
                raise DataError(
                    f"site {name}: {'is gone' if name in self.data else 'was not there'} since the run began"
                )
            if now.data[name] != self.data[name]:
                raise DataError(f"site {name}: its table is not the one with which the run began")
        for part in ("model", "experiment", "plan"):
            if getattr(now, part) != getattr(self, part):
                raise RunError(
                    f"the run began with {part} {getattr(self, part)}, and this program makes {getattr(now, part)} of it"
                )


def begin(folder: Path, experiment: Experiment) -> None:
    """Write everything that a run begins with.

    Raises:
        RunError: a file cannot be written.
    """
    plan, config = experiment.agreement.plan, experiment.config
    if config.data.path is not None:  # a relative one would mean another place when it is read from this folder
        data = msgspec.structs.replace(config.data, path=str(Path(config.data.path).resolve()))
        config = msgspec.structs.replace(config, data=data)
    write_file(folder / "config.toml", dump_config(config))
    if experiment.schema is not None:
        write_file(folder / "schema.toml", msgspec.toml.encode(_without_none(experiment.schema)).decode())
    if plan is not None:
        write_file(folder / "plan.json", plan.to_json())
        if experiment.agreement.test_seed is None:
            _create_keys(folder / "keys", experiment.parties)
    beginning = msgspec.structs.replace(Beginning.of(experiment), config=msgspec.to_builtins(config))
    text = json.dumps(msgspec.to_builtins(beginning), indent=2, allow_nan=False)
    write_file(folder / "run.json", text + "\n")


def read_beginning(folder: Path) -> tuple[Beginning, Config]:
    """How the run of a folder began, and its configuration.

    Raises:
        RunError: it is no run folder, or the run did not get as far as its first round.
        ConfigError: config.toml is not the one with which the run began; the message names the key.
    """
    path = folder / "run.json"
    try:
        beginning = msgspec.json.decode(path.read_bytes(), type=Beginning)
        beginning.planned()
    except FileNotFoundError:
        raise RunError(f"{path}: is not there: {_unbegun(folder)}") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # not JSON in UTF-8, not of these fields, or a round that is no number
        raise RunError(f"{path}: {error}") from error
    config = load_config(folder / "config.toml")
    now, then = _flat(msgspec.to_builtins(config)), _flat(beginning.config)
    for key in [*then, *now]:
        if now.get(key) != then.get(key):
            raise ConfigError(
                f"{folder / 'config.toml'}: {key} is {now.get(key)!r}, and the run began with {then.get(key)!r}"
            )
    return beginning, config


def require_free(folder: Path) -> None:
    """Check that a new run may begin in a folder: it is not there, or is empty.

    Raises:
        RunError: it is in use or cannot be read; the message says what may be done with it.
    """
    try:
        free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    except OSError as error:
        raise RunError(f"{folder}: cannot be read: {error.strerror}") from error
    if free:
        return
    why = "a run needs a folder of its own"
    if (folder / "run.json").exists():
        why += f"; it holds a run, which goes on with: fl resume {shlex.quote(str(folder))}"
    elif (folder / "config.toml").exists():
        why += f"; {_unbegun(folder)}"
    raise RunError(f"{folder}: exists and is not an empty folder; {why}")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep a run folder to this process.

    Raises:
        RunError: another process has it, or there is no such folder.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise RunError(f"{folder}: cannot be opened: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(f"{folder}: in use: another process runs in this folder") from error
        yield
    finally:
        os.close(descriptor)


def signing_keys(folder: Path, experiment: Experiment) -> tuple[SigningKey, dict[int, SigningKey]] | None:
    """The keys that sign the run's ledger, the server's and each site's.

    None where nothing is to be signed, for want of a plan, or where they follow from the test seed.

    Raises:
        KeyFileError: one is missing or is not to be trusted; the file is named.
    """
    if experiment.agreement.plan is None or experiment.agreement.test_seed is not None:
        return None
    keys = folder / "keys"
    sites = {client: load_signer(keys / f"site-{client}.pem") for client in experiment.parties}
    return load_signer(keys / f"{_SERVER}.pem"), sites


def discard_keys(folder: Path) -> None:
    """Remove the keys of a finished run: its ledger is signed, and nothing is left to sign."""
    shutil.rmtree(folder / "keys", ignore_errors=True)


def _unbegun(folder: Path) -> str:
    """What to do with a folder without `run.json`."""
    if (folder / "config.toml").exists():
        return "a run was stopped here before anything was sent or booked: remove the folder, and start it again"
    return "no run began in this folder, so start one"


def _create_keys(folder: Path, sites: Mapping[int, str]) -> None:
    folder.mkdir(mode=0o700)
    create_client(folder / f"{_SERVER}.pem", 0, _SERVER)
    for client in sites:
        create_client(folder / f"site-{client}.pem", client, f"site {client}")


def _without_none(value: Any) -> Any:  # noqa: ANN401 - whatever TOML has
    builtins = msgspec.to_builtins(value)
    return {key: each for key, each in builtins.items() if each is not None}


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
