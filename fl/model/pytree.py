"""Plain pytrees: a model that is a callable pytree (Equinox), or parameters with a pure function (Haiku, plain JAX)."""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fl.errors import ModelError
from fl.model.schema import Flattened, Leaves, fresh_key, is_floating, is_key, is_wide, refuse_complex


@dataclass(frozen=True)
class Functional:
    """A model as a tree of parameters and a pure function.

    Attributes:
        params: Any pytree; its floating leaves are trained, all others never leave the site.
        apply: (params, state, x (batch, ...), *, key, train) → (outputs, state after the pass).
        state: Any pytree: what a training pass moves, batch statistics for one; None: nothing.
    """

    params: Any
    apply: Callable[..., tuple[jax.Array, Any]]
    state: Any = None


def flatten(model: Any) -> Flattened:  # noqa: ANN401 - any pytree
    """Take a `Functional`, or a callable pytree, apart.

    A callable pytree maps one record to its outputs; it is mapped over the batch, with a key of its own for each record
    where its call takes `key`. Leaves that are not arrays are part of the structure.

    Raises:
        ModelError: it is neither, or a parameter is complex; the message names the leaf.
    """
    if isinstance(model, Functional):
        return _functional(model)
    if not callable(model) or not any(map(_is_array, jax.tree.leaves(model))):
        raise ModelError(
            f"a {type(model).__name__} is not a model: it is no Flax module and no callable pytree of arrays"
        )
    takes_key = "key" in inspect.signature(model).parameters

    def call(tree: Any, x: jax.Array, key: jax.Array, *, train: bool) -> Any:  # noqa: ANN401 - as above
        if not train:
            tree = _inference(tree)
            return jax.vmap(lambda one: tree(one, key=None) if takes_key else tree(one))(x)
        if not takes_key:
            return jax.vmap(tree)(x)
        return jax.vmap(lambda one, own: tree(one, key=own))(x, jax.random.split(key, len(x)))

    named, rebuild = _named(model, "")

    def apply(values: Leaves, x: jax.Array, key: jax.Array, *, train: bool) -> tuple[jax.Array, Leaves]:
        return call(rebuild(values, key), x, key, train=train), values

    return Flattened(
        named, _floating(named), frozenset(), apply, lambda values: _inference(rebuild(values, jax.random.key(0)))
    )


def _functional(model: Functional) -> Flattened:
    params, rebuild_params = _named(model.params, "")
    state, rebuild_state = _named(model.state, "state")
    trained = _floating(params)

    def apply(values: Leaves, x: jax.Array, key: jax.Array, *, train: bool) -> tuple[jax.Array, Leaves]:
        outputs, after = model.apply(rebuild_params(values, key), rebuild_state(values, key), x, key=key, train=train)
        moved, _ = _named(after, "state")
        return outputs, {name: moved.get(name, value) for name, value in values.items()}

    def merge(values: Leaves) -> Functional:
        key = jax.random.key(0)
        return Functional(rebuild_params(values, key), model.apply, rebuild_state(values, key))

    return Flattened(params | state, trained, _floating(state), apply, merge)


def _named(tree: Any, prefix: str) -> tuple[Leaves, Callable[[Leaves, jax.Array], Any]]:  # noqa: ANN401 - any pytree
    """Arrays by name, and a function that puts arrays of these names back, with fresh keys in place of keys."""
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    names = [prefix + jax.tree_util.keystr(path) or "value" for path, _ in paths]
    values = [value for _, value in paths]
    keys = [index for index, value in enumerate(values) if is_key(value)]
    named = {
        name: jnp.asarray(value)
        for index, (name, value) in enumerate(zip(names, values, strict=True))
        if _is_array(value) and index not in keys and not is_wide(value)
    }

    def rebuild(found: Leaves, key: jax.Array) -> Any:  # noqa: ANN401 - as above
        fresh = [
            fresh_key(key, index, value) if index in keys else found.get(name, value)
            for index, (name, value) in enumerate(zip(names, values, strict=True))
        ]
        return jax.tree.unflatten(structure, fresh)

    return named, rebuild


def _floating(named: Leaves) -> frozenset[str]:
    for name, value in named.items():
        refuse_complex(name, value)
    return frozenset(name for name, value in named.items() if is_floating(value))


def _is_array(value: Any) -> bool:  # noqa: ANN401 - a leaf of any kind
    return isinstance(value, jax.Array | np.ndarray)


def _inference(tree: Any) -> Any:  # noqa: ANN401 - any pytree
    """The model without dropout, where Equinox, which nobody needs to have, knows how."""
    equinox = sys.modules.get("equinox")
    if equinox is not None and isinstance(tree, equinox.Module):
        return equinox.nn.inference_mode(tree)
    return tree
