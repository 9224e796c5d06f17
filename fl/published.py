"""The published model on disk: every leaf by its name in a plain .npz, and beside it, in JSON, what they are.

No pickle, and nothing of this package is needed to read them. NumPy has no bfloat16 and its kin: such a leaf is stored as the
unsigned integers of its bits, and says so.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import jax.numpy as jnp
import msgspec
import numpy as np
import numpy.typing as npt

from fl.data import Schema
from fl.errors import RunError
from fl.files import write_file
from fl.model import Adapter, Local, Params
from fl.model import Schema as Layout
from fl.sections import Config

ARRAYS, DESCRIPTION = "model.npz", "model.json"
_LOAD = (
    "numpy.load('model.npz', allow_pickle=False)[leaf['name']]; where leaf['stored'] differs from leaf['dtype'], "
    ".view(leaf['dtype']) with ml_dtypes imported"
)


class LeafEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One array of the model.

    Attributes:
        name: Its path in the model.
        shape: Its shape.
        dtype: Its dtype in the model.
        stored: Its dtype in the .npz.
        kind: "shared": trained together. "local": kept by each site; here as the model was built, or as the named site has
            them. "frozen": never trained.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    stored: str
    kind: Literal["shared", "local", "frozen"]


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """`model.json`.

    Attributes:
        format: "fl-model/1".
        hash: Hex SHA-256 over the shared leaves, as announcements carry it.
        rounds: How many rounds it was trained for.
        private: Whether the run's privacy promise covers it.
        load: How to load a leaf.
        leaves: Every array.
        config: The run's configuration, without where its records lie.
        table: The schema of the tables, or None where records are no tables.
        site: Whose the local leaves are; None: nobody's.
    """

    format: Literal["fl-model/1"] = "fl-model/1"
    hash: str
    rounds: int
    private: bool
    load: str = _LOAD
    leaves: list[LeafEntry]
    config: dict[str, Any]
    table: Schema | None
    site: str | None = None

    def local(self) -> list[LeafEntry]:
        """The leaves that each site keeps."""
        return [leaf for leaf in self.leaves if leaf.kind == "local"]


def write_model(
    folder: Path, adapter: Adapter, params: Params, *, config: Config, table: Schema | None, rounds: int, private: bool
) -> None:
    """Write the model, each file whole or not at all, the description last.

    Args:
        folder: Where.
        adapter: The model.
        params: Its shared leaves.
        config: The run's.
        table: The schema of the tables, or None.
        rounds: How many rounds it was trained for.
        private: Whether the run's privacy promise covers it.

    Raises:
        RunError: a file cannot be written.
    """
    groups = {"shared": params, "local": adapter.local, "frozen": adapter.frozen}
    arrays: dict[str, npt.NDArray[Any]] = {}
    leaves = []
    for kind, group in groups.items():
        for name, value in group.items():
            array = np.asarray(value)
            arrays[name] = stored = _storable(array)
            entry = {"name": name, "shape": array.shape, "dtype": str(array.dtype), "stored": str(stored.dtype)}
            leaves.append(msgspec.convert(entry | {"kind": kind}, LeafEntry))
    # Where the records lie is a place on this computer, and nothing that the model is made from.
    chosen = {key: value for key, value in msgspec.to_builtins(config).items() if key != "data"}
    description = Description(
        hash=adapter.hash(params), rounds=rounds, private=private, leaves=leaves, config=chosen, table=table
    )
    _write(folder, arrays, description)


def write_copy(
    folder: Path, description: Description, leaves: Mapping[str, npt.NDArray[Any]], site: str | None
) -> None:
    """Write a model that was read, as `write_model` does.

    Args:
        folder: Where.
        description: What was read.
        leaves: Every leaf by name, as `read_leaves` gives them, or for the local ones a site's.
        site: Whose the local ones are, or None.

    Raises:
        RunError: a file cannot be written.
    """
    config = {key: value for key, value in description.config.items() if key != "data"}
    arrays = {leaf.name: _storable(leaves[leaf.name]) for leaf in description.leaves}
    _write(folder, arrays, msgspec.structs.replace(description, config=config, site=site))


def _write(folder: Path, arrays: Mapping[str, npt.NDArray[Any]], description: Description) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_file(folder / ARRAYS, buffer.getvalue())
    text = json.dumps(msgspec.to_builtins(description), indent=2, allow_nan=False)
    write_file(folder / DESCRIPTION, text + "\n")


def read_description(folder: Path) -> Description:
    """What the model of a folder is.

    Raises:
        RunError: there is none, or it cannot be read.
    """
    path = folder / DESCRIPTION
    try:
        return msgspec.json.decode(path.read_bytes(), type=Description)
    except FileNotFoundError:
        finished = (folder / "result.json").exists()
        why = (
            'mode "local" publishes none, for each site has a model of its own'
            if finished
            else "this run has published no model yet, and `fl resume` goes on with it"
        )
        raise RunError(f"{path}: is not there: {why}") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: {error}") from error


def read_leaves(folder: Path, description: Description) -> dict[str, npt.NDArray[Any]]:
    """Every leaf by name, in the model's own dtypes.

    Raises:
        RunError: the arrays cannot be read, or are not the described ones, and the message names the leaf; or the shared ones
            are not those of the description's hash.
    """
    path = folder / ARRAYS
    found: Mapping[str, Any]
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise RunError(f"{path}: cannot be read: {error}") from error
    leaves = {}
    for leaf in description.leaves:
        array = found.get(leaf.name)
        if array is None or array.shape != leaf.shape or str(array.dtype) != leaf.stored:
            raise RunError(f"{path}: leaf {leaf.name} is not what {DESCRIPTION} says")
        try:
            leaves[leaf.name] = array.view(jnp.dtype(leaf.dtype))
        except (TypeError, ValueError) as error:
            raise RunError(f"{folder / DESCRIPTION}: leaf {leaf.name}: dtype {leaf.dtype!r}: {error}") from error
    shared = {leaf.name: leaves[leaf.name] for leaf in description.leaves if leaf.kind == "shared"}
    if Layout.of(shared).content_hash(shared) != description.hash:
        raise RunError(f"{path}: the leaves are not those that {DESCRIPTION} has the hash of")
    return leaves


def read_params(folder: Path, description: Description, adapter: Adapter) -> tuple[Params, Local]:
    """The shared leaves, and the local ones as they were written.

    Raises:
        RunError: as for `read_leaves`.
        ModelError: they are another model's; the message names the leaf.
    """
    leaves = read_leaves(folder, description)
    groups = {
        kind: {leaf.name: leaves[leaf.name] for leaf in description.leaves if leaf.kind == kind}
        for kind in ("shared", "local")
    }
    return adapter.checked(groups["shared"]), adapter.checked_local(groups["local"], adapter.local)


def _storable(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array, or its bits where NumPy alone would not know its dtype."""
    known = array.dtype.kind in "biufc"
    return array if known else array.view(f"u{array.dtype.itemsize}")
