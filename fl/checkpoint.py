"""The server's state after a round, on disk through Orbax: complete or not there at all.

Arrays are stored under their leaf names, never under tree positions or integer keys, which come back as strings.
"""

import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fl.algorithms.base import ServerState
from fl.errors import RunError
from fl.model import Adapter

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

    def save(self, adapter: Adapter, state: ServerState) -> None:
        """Write the state (about 20 ms for a small model), then remove older ones.

        Raises:
            RunError: the folder cannot be written.
        """
        target = self._folder / f"round-{state.round:08d}"
        try:
            self._orbax.save(target, _tree(adapter, state), force=True)
            self._orbax.wait_until_finished()
        except OSError as error:
            raise RunError(f"{target}: cannot be written: {error}") from error
        for older in self._complete():
            if older != target:
                shutil.rmtree(older)

    def load(self, adapter: Adapter, like: ServerState) -> ServerState:
        """The newest state.

        Args:
            adapter: The model, whose schema the checkpoint must have.
            like: A state of the same algorithm, for its structure.

        Raises:
            RunError: there is no checkpoint, it is of another algorithm, or it cannot be read.
            ModelError: it is of another model; the message names the leaf.
        """
        found = self._complete()
        if not found:
            raise RunError(f"{self._folder}: holds no checkpoint")
        newest = max(found)
        try:
            tree: Any = self._orbax.restore(newest)
        except (OSError, ValueError) as error:
            raise RunError(f"{newest}: cannot be read: {error}") from error
        template = _tree(adapter, like)
        params = adapter.from_named(tree["params"])
        opt_state = _like(newest, template.get("opt_state", {}), tree.get("opt_state", {}))
        return ServerState(
            params=params,
            opt_state=jax.tree.unflatten(
                jax.tree.structure(like.opt_state), [jnp.asarray(v) for v in opt_state.values()]
            ),
            iterate_sum=np.asarray(tree["iterate_sum"], np.float64),
            iterates=int(tree["iterates"]),
            round=int(tree["round"]),
            clip=_clip(newest, like.clip, tree.get("clip")),
        )

    def close(self) -> None:
        """Stop Orbax's threads."""
        self._orbax.close()

    def _complete(self) -> list[Path]:
        return [path for path in self._folder.glob("round-*") if _NAME.fullmatch(path.name)]


def _tree(adapter: Adapter, state: ServerState) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(state.opt_state)
    tree: dict[str, Any] = {
        "params": {name: np.asarray(value) for name, value in adapter.named(state.params).items()},
        "iterate_sum": np.asarray(state.iterate_sum),
        "iterates": np.asarray(state.iterates),
        "round": np.asarray(state.round),
    }
    if state.clip is not None:
        tree["clip"] = np.asarray(state.clip, np.float64)
    if leaves:  # plain SGD has none, and an empty dict would not come back
        tree["opt_state"] = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    return tree


def _clip(path: Path, like: float | None, found: Any) -> float | None:  # noqa: ANN401 - whatever Orbax gives
    if (like is None) != (found is None):
        raise RunError(f"{path}: {'has no clip norm' if found is None else 'has a clip norm'}, unlike this algorithm")
    return None if found is None else float(found)


def _like(path: Path, template: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    for name, value in template.items():
        other = found.get(name)
        if other is None or np.shape(other) != value.shape or other.dtype != value.dtype:
            raise RunError(f"{path}: optimiser state {name} is not that of this algorithm")
    if set(found) - set(template):
        raise RunError(f"{path}: optimiser state {min(set(found) - set(template))} is not that of this algorithm")
    return {name: found[name] for name in template}
