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
from fl.files import write_file
from fl.model import Adapter, Local, Params
from fl.published import ARRAYS, DESCRIPTION, read_description, read_leaves, read_params
from fl.sections import Config


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
        site: Whose own leaves are used, where the model has some that each site keeps.

    Raises:
        RunError: the run has no model, or its files do not fit each other.
        ConfigError: the records of the run are no tables, or a site is needed and not given, or not known.
        DataError: the table does not fit; the message names file, data row and column.
    """
    description = read_description(run)
    if description.table is None:
        raise ConfigError(
            f"{run}: its records come from data.source and are no tables, so no schema says how to read one"
        )
    records = load_records(table, description.table)
    config = build_config(description.config)
    adapter = build_adapter(config, jnp.zeros((1, records.shape[1]), jnp.float32))
    params = read_params(run, description, adapter)
    local = _local(run, adapter, site)
    return Predictions(tuple(range(1, len(records) + 1)), _scores(config, adapter, params, local, records))


def export(run: Path, out: Path, *, orbax: bool = False) -> Path:
    """Write a run's published model to a folder of its own.

    `model.npz` has every leaf by name, without pickle; `model.json` says what they are, with the schema of the tables, the
    configuration, the model's hash, and how to load them.

    Args:
        run: The run folder.
        out: A folder that does not exist or is empty.
        orbax: Also write `orbax/`, an Orbax checkpoint of the leaves by name.

    Returns:
        The folder.

    Raises:
        RunError: the run has no model, or the folder is in use or cannot be written.
    """
    description = read_description(run)
    leaves = read_leaves(run, description)
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise RunError(f"{out}: exists and is not an empty folder; an export needs a folder of its own")
        out.mkdir(parents=True, exist_ok=True)
        arrays = (run / ARRAYS).read_bytes()
    except OSError as error:
        raise RunError(f"{out}: cannot be written: {error.strerror}") from error
    write_file(out / ARRAYS, arrays)
    write_file(out / DESCRIPTION, (run / DESCRIPTION).read_bytes())
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


def _local(run: Path, adapter: Adapter, site: str | None) -> Local:
    """The leaves that a site keeps, as its last checkpoint has them."""
    if site is None:
        if adapter.local:
            raise ConfigError(
                f"the model has leaves that each site keeps ({min(adapter.local)}): say whose are used, by site"
            )
        return adapter.local
    names = list(_sites(run))
    if site not in names:
        raise ConfigError(f"site: {run} has no site {site!r}; sites: {', '.join(names)}")
    checkpoints = Checkpoints(run / "checkpoint")
    try:
        own = checkpoints.local(names.index(site))
    finally:
        checkpoints.close()
    return adapter.checked_local({name: own[name] for name in adapter.local if name in own}, adapter.local)


def _sites(run: Path) -> dict[str, Any]:
    path = run / "run.json"
    try:
        found: dict[str, Any] = msgspec.json.decode(path.read_bytes())["data"]
    except (OSError, msgspec.DecodeError, KeyError, TypeError) as error:
        raise RunError(f"{path}: cannot be read, and only a run folder has the sites' own leaves: {error}") from error
    return found


def _scores(
    config: Config, adapter: Adapter, params: Params, local: Local, records: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    if not len(records):
        return np.zeros(0, np.float32)
    outputs = adapter.forward(params, local, jnp.asarray(records), key=jax.random.key(0), train=False)[0]
    outputs = outputs.reshape(len(records), -1).astype(jnp.float32)
    if config.model.loss == "logistic":
        outputs = jax.nn.sigmoid(outputs)
    elif config.model.loss == "squared":
        outputs = jnp.clip(outputs, 0, 1)
    elif config.model.loss == "softmax":
        outputs = jax.nn.softmax(outputs)
    scores = np.asarray(outputs)
    return scores[:, 0] if scores.shape[1] == 1 else scores
