"""An experiment as TOML, strictly typed: every key is known, every value checked, every error names its key."""

import difflib
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fl.errors import ConfigError
from fl.sections import Config, DpFedSgd, FedAvg, Privacy, Scaffold, Section


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read an experiment.

    Args:
        path: A TOML file.
        overrides: "a.b=value" entries that replace what the file says; the value is TOML, or else a plain string.

    Raises:
        ConfigError: the file cannot be read, or a key is unknown, mistyped or contradictory; the message names it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise ConfigError(f"{path}: {error}") from error
    base = Path(path).parent
    try:
        config = build_config(table, overrides)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if config.data.path is None:
        return config
    return msgspec.structs.replace(
        config, data=msgspec.structs.replace(config.data, path=str((base / config.data.path).resolve()))
    )


def build_config(table: Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """An experiment from a nested table.

    Raises:
        ConfigError: a key is unknown, mistyped or contradictory; the message names it by its full path.
    """
    merged = _copy(table)
    for entry in overrides:
        _override(merged, entry)
    _refuse_unknown(merged, Config, "")
    try:
        config = msgspec.convert(merged, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(_with_path(str(error))) from error
    _check(config)
    return config


def dump_config(config: Config) -> str:
    """The experiment as TOML, defaults written out; `build_config` of it gives the same experiment."""
    return msgspec.toml.encode(_without_none(msgspec.to_builtins(config))).decode()


def _check(config: Config) -> None:
    data, privacy, algorithm = config.data, config.privacy, config.algorithm
    places = (data.bundled, data.path, data.source, data.population)
    if sum(place is not None for place in places) != 1:
        raise ConfigError("data: needs exactly one of data.bundled, data.path, data.source and data.population")
    _check_engine(config)
    _check_mode(config)
    if config.model.hidden and config.model.kind != "mlp":
        raise ConfigError(f'model.hidden: only the "mlp" has hidden layers, not "{config.model.kind}"')
    if config.model.outputs != 1 and config.model.kind not in {"logistic", "mlp"}:
        raise ConfigError(f'model.outputs: "{config.model.kind}" has the outputs that its function gives it')
    if isinstance(algorithm, FedAvg | Scaffold) and (algorithm.local_epochs is None) == (algorithm.local_steps is None):
        raise ConfigError("algorithm: needs exactly one of algorithm.local_epochs and algorithm.local_steps")
    if config.server.strategy != "mean" and config.secagg.mode != "plain":
        raise ConfigError(
            f'server.strategy: "{config.server.strategy}" is not linear, and a secure sum shows no site\'s own update; '
            'take "mean", or secagg.mode = "plain"'
        )
    if config.server.strategy != "mean" and isinstance(algorithm, Scaffold):
        raise ConfigError('server.strategy: "scaffold" is defined for the mean')
    if privacy is None:
        if config.simulation.lifetime_epsilon is not None:
            raise ConfigError("simulation.lifetime_epsilon: without a [privacy] section nothing is counted")
        if isinstance(algorithm, DpFedSgd):
            raise ConfigError('algorithm.name: "dp_fedsgd" needs a [privacy] section')
        return
    _check_privacy(config, privacy)


def _check_mode(config: Config) -> None:
    """What is compared with has no protocol, no network and no one's policy."""
    if config.mode == "federated":
        if config.secagg.mode == "plain" and config.secagg.threshold is not None:
            raise ConfigError('secagg.threshold: a float mean ("plain") opens no shares')
        return
    if config.simulation.secure_only:
        raise ConfigError(
            f'simulation.secure_only: mode "{config.mode}" has no secure aggregation, and site {config.simulation.secure_only[0]} asks for it'
        )
    if config.network is not None:
        raise ConfigError(f'network: in mode "{config.mode}" nothing travels')
    if config.mode == "local" and config.checkpoint.every is not None:
        raise ConfigError('checkpoint.every: mode "local" keeps no checkpoints; a run that is stopped starts anew')


def _check_engine(config: Config) -> None:
    simulation = config.simulation
    if simulation.engine == "cohort":
        _check_cohort(config)
        return
    for key in ("cohort", "chunk"):
        if getattr(simulation, key) is not None:
            raise ConfigError(f'simulation.{key}: is for simulation.engine = "cohort"')
    if config.data.population is not None:
        raise ConfigError('data.population: is for simulation.engine = "cohort"')


def _check_cohort(config: Config) -> None:
    simulation = config.simulation
    if isinstance(config.algorithm, DpFedSgd):
        raise ConfigError('simulation.engine: "dp_fedsgd" encodes each record by itself, and needs "parties"')
    if config.mode != "federated":
        raise ConfigError(f'simulation.engine: mode "{config.mode}" has one client at a time; take "parties"')
    if config.server.strategy != "mean":
        raise ConfigError(f'server.strategy: "{config.server.strategy}" looks at every update, and needs "parties"')
    if simulation.drop_site is not None:
        raise ConfigError(
            'simulation.drop_site: a cohort loses a part of its clients, drop_rate; one site needs "parties"'
        )
    if simulation.lifetime_epsilon is not None:
        raise ConfigError("simulation.lifetime_epsilon: clients of a cohort have no ledgers that could count it")
    if config.data.population is not None and simulation.baselines:
        raise ConfigError("simulation.baselines: generated clients cannot be trained one by one; leave baselines out")


def _check_privacy(config: Config, privacy: Privacy) -> None:
    if (config.checkpoint.every or 1) > 1:
        raise ConfigError(
            "checkpoint.every: a round that is done again is released and booked again; under a plan it is 1"
        )
    if config.simulation.drop_rate > 0 and privacy.dropouts == 0:
        raise ConfigError(
            "simulation.drop_rate: sites go silent, and privacy.dropouts = 0 has no noise to spare for it"
        )
    lost = math.floor(config.simulation.drop_rate * (config.simulation.cohort or 0))
    if lost > privacy.dropouts:
        raise ConfigError(
            f"simulation.drop_rate: {lost} clients of a cohort go silent, and privacy.dropouts is {privacy.dropouts}"
        )
    if config.secagg.mode == "plain":
        raise ConfigError('secagg.mode: "plain" is a float mean, and privacy is proved for integer sums only')
    if privacy.clip is not None and privacy.total_clip is not None:
        raise ConfigError(
            "privacy.total_clip: stands in place of privacy.clip, the norm at one site; give one of the two"
        )
    if isinstance(config.algorithm, Scaffold):
        raise ConfigError('algorithm.name: "scaffold" sends two vectors, and a privacy plan covers one; take "fedavg"')
    if isinstance(config.algorithm, FedAvg) and config.algorithm.upload == "parameters":
        raise ConfigError('algorithm.upload: "parameters" do not fit a clip norm; take "delta" or "gradient"')
    unit = "record" if isinstance(config.algorithm, DpFedSgd) else "client"
    if privacy.unit != unit:
        name = config.algorithm.__struct_config__.tag
        raise ConfigError(f'privacy.unit: "{name}" protects a {unit}, not a {privacy.unit}')
    if (privacy.records_per_site is None) == (unit == "record"):
        raise ConfigError(
            "privacy.records_per_site: the public cap on records per site; needed for the record unit, and for that only"
        )


def _override(table: dict[str, Any], entry: str) -> None:
    key, separator, text = entry.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise ConfigError(f'"{entry}": an override is written section.key=value')
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for index, part in enumerate(parts[:-1]):
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{'.'.join(parts[: index + 1])}: is a value, not a section")
    table[parts[-1]] = value


def _refuse_unknown(table: Mapping[str, Any], kind: Any, path: str) -> None:  # noqa: ANN401 - a type of any form
    struct = _struct_for(kind, table, path)
    for key, value in table.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{path}{key}: {value} is not a finite number")
    if struct is None:
        return
    hints = typing.get_type_hints(struct)
    known = [field.name for field in msgspec.structs.fields(struct)]
    tag = struct.__struct_config__.tag_field
    for key, value in table.items():
        if key == tag:
            continue
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            known += [tag] if tag else []
            hint = f"; did you mean {path}{near[0]}?" if near else f"; known keys: {', '.join(sorted(known))}"
            raise ConfigError(f"{path}{key}: no such key{hint}")
        if isinstance(value, Mapping):
            _refuse_unknown(value, hints[key], f"{path}{key}.")


def _struct_for(kind: Any, table: Mapping[str, Any], path: str) -> type[Section] | None:  # noqa: ANN401 - see above
    """The section type that a table is read as: the one in an optional, or the one that the tag names."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    sections = [option for option in options if isinstance(option, type) and issubclass(option, Section)]
    if len(sections) <= 1:
        return sections[0] if sections else None
    config = sections[0].__struct_config__
    tags = {option.__struct_config__.tag: option for option in sections}
    tag = table.get(config.tag_field or "")
    if tag not in tags:
        raise ConfigError(f"{path}{config.tag_field}: must be one of {', '.join(map(str, tags))}, not {tag!r}")
    return tags[tag]


def _with_path(message: str) -> str:
    """Turn "Expected `int` - at `$.a.b`" into "a.b: expected `int`"."""
    text, separator, where = message.rpartition(" - at `$")
    if not separator:
        return message[0].lower() + message[1:]
    path = where.rstrip("`").lstrip(".")
    return f"{path + ': ' if path else ''}{text[0].lower()}{text[1:]}"


def _copy(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in table.items()}


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in table.items()
        if value is not None
    }
