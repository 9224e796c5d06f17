"""Flax Linen models: collections of variables, initialised on one made-up record."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

from fl.errors import ModelError
from fl.model.schema import Flattened, Leaves, is_floating, is_wide, refuse_complex

# The names under which Linen modules take "is this training?", and whether the flag says so or the opposite.
_MODES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}


def flatten(module: linen.Module, example: jax.Array, key: jax.Array) -> Flattened:
    """Initialise a module and take its variables apart.

    Floating leaves of the collection `params` are trained, those of `batch_stats` are statistics, all others are plain state.
    A `train`, `training`, `is_training`, `deterministic` or `use_running_average` argument of the module's call is set as
    the pass is. Every random stream comes from the pass's key.

    Args:
        module: With a call of (x) or (x, mode).
        example: (1, ...) a record of the data's shape and dtype.
        key: For the initial values.

    Raises:
        ModelError: a parameter is complex, or a leaf is not an array; the message names it.
    """
    mode = next((name for name in inspect.signature(type(module).__call__).parameters if name in _MODES), None)

    def flags(*, train: bool) -> dict[str, Any]:
        return {} if mode is None else {mode: train == _MODES[mode]}

    variables = linen.unbox(module.init({"params": key}, example, **flags(train=False)))
    paths, structure = jax.tree_util.tree_flatten_with_path(variables)
    names = [jax.tree_util.keystr(path) for path, _ in paths]
    leaves: Leaves = {}
    trained, statistics = set(), set()
    fixed = {name: value for name, (_, value) in zip(names, paths, strict=True) if is_wide(value)}
    for name, (path, value) in zip(names, paths, strict=True):
        if name in fixed:
            continue
        if not hasattr(value, "dtype"):
            raise ModelError(f"leaf {name} holds a {type(value).__name__}, not an array")
        leaves[name] = jnp.asarray(value)
        collection = path[0].key
        if collection == "params":
            refuse_complex(name, value)
            trained |= {name} if is_floating(value) else set()
        elif collection == "batch_stats" and is_floating(value):
            statistics.add(name)
    moving = [name for name in variables if name != "params"]

    def tree(values: Leaves) -> Any:  # noqa: ANN401 - Linen's dict of dicts
        return jax.tree.unflatten(structure, [values.get(name, fixed.get(name)) for name in names])

    def apply(values: Leaves, x: jax.Array, key: jax.Array, *, train: bool) -> tuple[jax.Array, Leaves]:
        if not train:
            outputs: Any = module.apply(tree(values), x, **flags(train=False))
            return outputs, values
        # Streams that are not named fall back to that of `params`.
        outputs, moved = module.apply(tree(values), x, rngs={"params": key}, mutable=moving, **flags(train=True))
        after = {jax.tree_util.keystr(p): v for p, v in jax.tree_util.tree_flatten_with_path(moved)[0]}
        return outputs, {name: after.get(name, value) for name, value in values.items()}

    return Flattened(leaves, frozenset(trained), frozenset(statistics), apply, lambda values: module.bind(tree(values)))
