"""The state of a run after a round, on disk through Orbax: complete or not there at all.

One checkpoint holds the server's state and what every site of a simulation keeps to itself, so that no crash leaves the one
of a round and the other of the next. Arrays are stored under their leaf names, never under tree positions or integer keys,
which come back as strings.
"""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fl.algorithms.base import ServerState
from fl.errors import RunError
from fl.model import Adapter, Local

_NAME = re.compile(r"round-(\d{8})")


class Checkpoints:
    """The folder of a run's checkpoints; only the newest is kept.

    Guarantees:
        `load` gives back bitwise what `save` was given; a crash in `save` leaves the checkpoint before it.
    """

    def __init__(self, folder: Path) -> None:
        import orbax.checkpoint as ocp  # noqa: PLC0415 - 0.8 s to import

        self._folder = folder.resolve()
        self._orbax = ocp.StandardCheckpointer()

    @property
    def newest(self) -> int | None:
        """How many rounds the newest checkpoint has; None where there is none."""
        return newest_round(self._folder)

    def save(self, state: ServerState, sites: Sequence[Local] = ()) -> None:
        """Write the state (about 20 ms for a small model), then remove older ones and what a crash left.

        Args:
            state: The server's.
            sites: What each site keeps to itself, by ascending client id.

        Raises:
            RunError: the folder cannot be written.
        """
        target = self._folder / f"round-{state.round:08d}"
        try:
            self._orbax.save(target, _tree(state, sites), force=True)
            self._orbax.wait_until_finished()
            for other in self._folder.iterdir():
                if other != target and other.is_dir():
                    shutil.rmtree(other)
        except OSError as error:
            raise RunError(f"{target}: cannot be written: {error}") from error

    def load(
        self, adapter: Adapter, like: ServerState, sites: Sequence[Local] = ()
    ) -> tuple[ServerState, tuple[Local, ...]]:
        """The newest state.

        Args:
            adapter: The model, whose schema the checkpoint must have.
            like: A state of the same algorithm, for its structure.
            sites: The sites' first local states, for theirs.

        Returns:
            The server's state, and every site's.

        Raises:
            RunError: there is no checkpoint, it is of another algorithm or of other sites, or it cannot be read.
            ModelError: it is of another model; the message names the leaf.
        """
        newest, tree = self._restore()
        params = adapter.checked(tree["params"])
        template = _tree(like, ())
        opt_state = _like(newest, "optimiser state", template.get("opt_state", {}), tree.get("opt_state", {}))
        beside = _like(newest, "broadcast", template.get("broadcast", {}), tree.get("broadcast", {}))
        state = ServerState(
            params=params,
            opt_state=jax.tree.unflatten(
                jax.tree.structure(like.opt_state), [jnp.asarray(v) for v in opt_state.values()]
            ),
            iterate_sum=np.asarray(tree["iterate_sum"], np.float64),
            iterates=int(tree["iterates"]),
            round=int(tree["round"]),
            clip=_clip(newest, like.clip, tree.get("clip")),
            broadcast={name: np.asarray(value, np.float64) for name, value in beside.items()},
        )
        return state, _sites(newest, adapter, tree, sites)

    def local(self, index: int) -> dict[str, Any]:
        """What one site keeps to itself, by leaf name, as the newest checkpoint has it.

        Args:
            index: The site's place, by ascending client id.

        Raises:
            RunError: there is no checkpoint or no such site in it, or it cannot be read.
        """
        newest, tree = self._restore()
        if index >= int(tree["sites"]):
            raise RunError(f"{newest}: has the local state of {int(tree['sites'])} sites")
        return {name: value[index] for name, value in tree.get("local", {}).items()}

    def close(self) -> None:
        """Stop Orbax's threads."""
        self._orbax.close()

    def _restore(self) -> tuple[Path, Any]:
        found = _complete(self._folder)
        if not found:
            raise RunError(f"{self._folder}: holds no checkpoint")
        newest = max(found)
        try:
            tree: Any = self._orbax.restore(newest)
        except (OSError, ValueError) as error:
            raise RunError(f"{newest}: cannot be read: {error}") from error
        return newest, tree


def newest_round(folder: Path) -> int | None:
    """How many rounds the newest checkpoint in a folder has; None where there is none."""
    found = _complete(folder)
    return int(max(found).name.removeprefix("round-")) if found else None


def _complete(folder: Path) -> list[Path]:
    return [path for path in folder.glob("round-*") if _NAME.fullmatch(path.name)]


def _tree(state: ServerState, sites: Sequence[Local]) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(state.opt_state)
    tree: dict[str, Any] = {
        "params": {name: np.asarray(value) for name, value in state.params.items()},
        "iterate_sum": np.asarray(state.iterate_sum),
        "iterates": np.asarray(state.iterates),
        "round": np.asarray(state.round),
        "sites": np.asarray(len(sites)),
    }
    if state.clip is not None:
        tree["clip"] = np.asarray(state.clip, np.float64)
    # An empty dict would not come back: plain SGD has no state, and most models have nothing local.
    parts = {
        "opt_state": {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves},
        "broadcast": {name: np.asarray(value) for name, value in state.broadcast.items()},
        # One array a leaf, however many sites there are.
        "local": {name: np.stack([np.asarray(site[name]) for site in sites]) for name in (sites[0] if sites else ())},
    }
    return tree | {name: part for name, part in parts.items() if part}


def _sites(path: Path, adapter: Adapter, tree: Any, like: Sequence[Local]) -> tuple[Local, ...]:  # noqa: ANN401 - whatever Orbax gives
    count, stacked = int(tree["sites"]), tree.get("local", {})
    if count != len(like):
        raise RunError(f"{path}: has the local state of {count} sites, and there are {len(like)}")
    return tuple(
        adapter.checked_local({name: value[index] for name, value in stacked.items()}, first)
        for index, first in enumerate(like)
    )


def _clip(path: Path, like: float | None, found: Any) -> float | None:  # noqa: ANN401 - whatever Orbax gives
    if (like is None) != (found is None):
        raise RunError(f"{path}: {'has no clip norm' if found is None else 'has a clip norm'}, unlike this algorithm")
    return None if found is None else float(found)


def _like(path: Path, what: str, template: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    for name, value in template.items():
        other = found.get(name)
        if other is None or np.shape(other) != value.shape or other.dtype != value.dtype:
            raise RunError(f"{path}: {what} {name} is not that of this algorithm")
    if set(found) - set(template):
        raise RunError(f"{path}: {what} {min(set(found) - set(template))} is not that of this algorithm")
    return {name: found[name] for name in template}
