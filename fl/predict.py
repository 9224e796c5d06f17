"""Scores for new rows, and the model to take elsewhere: what is done with a run once it has a model."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import numpy.typing as npt

from fl.builders import build_adapter
from fl.checkpoint import Checkpoints
from fl.config import build_config
from fl.data.loaders import load_records
from fl.errors import ConfigError, RunError
from fl.model import Adapter, Local, Params
from fl.published import DESCRIPTION, Description, read_description, read_leaves, read_params, write_copy
from fl.scoring import probabilities
from fl.sections import Config

_ANY_DATA = {"data": {"bundled": "heart"}}  # a configuration has some; what a model is made from does not depend on it


@dataclass(frozen=True, eq=False)
class Predictions:
    """A table's scores.

    Attributes:
        rows: Data rows of the table, from 1.
        scores: float32 (rows,): the probability of the positive label; (rows, outputs) where the model has several: the
            probabilities of its classes, or for a loss of one's own the outputs.
    """

    rows: tuple[int, ...]
    scores: npt.NDArray[np.float32]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns of scores."""
        return ("score",) if self.scores.ndim == 1 else tuple(f"score_{i}" for i in range(self.scores.shape[1]))

    def to_csv(self) -> str:
        """As text: a header, and a line for each row; the cell of a score that is no finite number is empty."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("row", *self.names))
        columns = self.scores.reshape(len(self.rows), len(self.names))
        finite = np.isfinite(columns)
        for row, scores, known in zip(self.rows, columns, finite, strict=True):
            writer.writerow((row, *(str(score) if sure else "" for score, sure in zip(scores, known, strict=True))))
        return text.getvalue()

    def to_list(self) -> list[dict[str, Any]]:
        """As objects for JSON; a score that is no finite number is None."""
        columns = self.scores.reshape(len(self.rows), len(self.names))
        return [
            {"row": row} | {n: float(s) if np.isfinite(s) else None for n, s in zip(self.names, scores, strict=True)}
            for row, scores in zip(self.rows, columns, strict=True)
        ]


def predict(run: Path, table: Path, *, site: str | None = None) -> Predictions:
    """Score the rows of a table with a run's published model.

    Args:
        run: A run folder, or a folder that `export` wrote.
        table: A CSV file that fits the run's schema; the label's column may be missing.
        site: Whose own leaves are used, where the model has some that each site keeps and is no export of one site's.

    Raises:
        RunError: the run has no model, or its files were changed or do not fit each other; the message names the file.
        ConfigError: the records of the run are no tables, or a site is needed and not given, or not known.
        DataError: the table does not fit; the message names file, data row and column.
    """
    description = read_description(run)
    if description.table is None:
        raise ConfigError(
            f"{run}: its records come from data.source and are no tables, so no schema says how to read one"
        )
    records = load_records(table, description.table)
    try:
        config = build_config(description.config | _ANY_DATA)
    except ConfigError as error:
        raise RunError(f"{run / DESCRIPTION}: config: {error}") from error
    adapter = build_adapter(config, jnp.zeros((1, records.shape[1]), jnp.float32))
    params, local = read_params(run, description, adapter)
    own = _own(run, description, site)
    local |= adapter.checked_local(own, adapter.local) if own else {}
    return Predictions(tuple(range(1, len(records) + 1)), _scores(config, adapter, params, local, records))


def export(run: Path, out: Path, *, site: str | None = None, orbax: bool = False) -> Path:
    """Write a run's published model to a folder of its own.

    `model.npz` has every leaf by name, without pickle; `model.json` says what they are, with the schema of the tables, the
    configuration but for where the records lie, the model's hash, and how to load them.

    Args:
        run: The run folder.
        out: A folder that does not exist or is empty.
        site: Whose own leaves are exported, where the model has some that each site keeps.
        orbax: Also write `orbax/`, an Orbax checkpoint of the leaves by name.

    Returns:
        The folder.

    Raises:
        RunError: the run has no model, or its files were changed, or the folder is in use or cannot be written.
        ConfigError: a site is needed and not given, or not known.
    """
    description = read_description(run)
    leaves = read_leaves(run, description)
    leaves |= _own(run, description, site)
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise RunError(f"{out}: exists and is not an empty folder; an export needs a folder of its own")
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out}: cannot be written: {error.strerror}") from error
    write_copy(out, description, leaves, (site or description.site) if description.local() else None)
    if orbax:
        _write_orbax(out / "orbax", leaves)
    return out


def _write_orbax(target: Path, leaves: dict[str, npt.NDArray[Any]]) -> None:
    import orbax.checkpoint as ocp  # noqa: PLC0415 - 0.8 s to import

    writer = ocp.StandardCheckpointer()
    try:
        writer.save(target.resolve(), leaves)
        writer.wait_until_finished()
    except OSError as error:
        raise RunError(f"{target}: cannot be written: {error}") from error
    finally:
        writer.close()


def _own(run: Path, description: Description, site: str | None) -> dict[str, npt.NDArray[Any]]:
    """The leaves that a site keeps, as its last checkpoint has them; nothing where those of the .npz are the right ones."""
    if description.site is not None:
        if site in {None, description.site}:
            return {}
        raise ConfigError(f"site: {run} has the leaves of site {description.site!r} and no other")
    kept = {leaf.name: leaf for leaf in description.local()}
    if site is None:
        if kept:
            raise ConfigError(f"the model has leaves that each site keeps ({min(kept)}): say whose are used, by site")
        return {}
    names = _sites(run)
    if site not in names:
        raise ConfigError(f"site: {run} has no site {site!r}; sites: {', '.join(names)}")
    checkpoints = Checkpoints(run / "checkpoint")
    try:
        found = checkpoints.local(names.index(site))
    finally:
        checkpoints.close()
    own = {name: np.asarray(found[name]) for name in kept if name in found}
    for name, leaf in kept.items():
        if name not in own or own[name].shape != leaf.shape or str(own[name].dtype) != leaf.dtype:
            raise RunError(f"{run / 'checkpoint'}: leaf {name} is not what {DESCRIPTION} says")
    return own


class _Sites(msgspec.Struct, frozen=True):
    """What is read of `run.json` here: its sites, in the order of their ids."""

    data: dict[str, str]


def _sites(run: Path) -> list[str]:
    path = run / "run.json"
    try:
        return list(msgspec.json.decode(path.read_bytes(), type=_Sites).data)
    except OSError as error:
        why = f"cannot be read, and only a run folder has the sites' own leaves: {error.strerror}"
        raise RunError(f"{path}: {why}") from error
    except ValueError as error:
        raise RunError(f"{path}: {error}") from error


def _scores(
    config: Config, adapter: Adapter, params: Params, local: Local, records: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    if not len(records):
        return np.zeros(0, np.float32)
    outputs = adapter.forward(params, local, jnp.asarray(records), key=jax.random.key(0), train=False)[0]
    scores = np.asarray(probabilities(config.model.loss, outputs.reshape(len(records), -1).astype(jnp.float32)))
    return scores[:, 0] if scores.shape[1] == 1 else scores
