"""Flax NNX models: what each Variable is, by its type first and its dtype second."""

import jax
import jax.numpy as jnp
from flax import nnx

from fl.errors import ModelError
from fl.model.schema import Flattened, Leaves, fresh_key, is_floating, is_key, is_wide, refuse_complex


def flatten(model: nnx.Module) -> Flattened:
    """Take a model apart.

    `nnx.Param` of a floating dtype is trained, `nnx.BatchStat` of one is a statistic; keys and counts of random streams are
    made anew from the pass's key; everything else is plain state.

    Raises:
        ModelError: a parameter is complex, or a Variable holds something that is not an array; the message names the leaf.
    """
    model.train()  # type: ignore[no-untyped-call]  # Flax's own
    train_graph, state = nnx.split(model)
    model.eval()  # type: ignore[no-untyped-call]  # Flax's own
    eval_graph, _ = nnx.split(model)
    flat = [(path, variable, _name(path)) for path, variable in nnx.to_flat_state(state)]
    kept = {name: variable for _, variable, name in flat if not _is_stream(variable) and not is_wide(_value(variable))}
    leaves = {name: _array(name, variable) for name, variable in kept.items()}
    floating = {name for name, value in leaves.items() if is_floating(value)}
    trained = frozenset(name for name in floating if isinstance(kept[name], nnx.Param))
    statistics = frozenset(name for name in floating if isinstance(kept[name], nnx.BatchStat))

    def build(values: Leaves, key: jax.Array, *, train: bool) -> nnx.Module:
        entries = []
        for index, (path, variable, name) in enumerate(flat):
            if name in values:
                value = values[name]
            elif is_wide(_value(variable)):
                value = _value(variable)
            elif isinstance(variable, nnx.RngCount):
                value = jnp.zeros_like(variable.get_value())
            else:
                value = fresh_key(key, index, _value(variable))
            # A new Variable in every trace: merging the caller's would let the trace update it.
            entries.append((path, variable.replace(value) if isinstance(variable, nnx.Variable) else value))
        module: nnx.Module = nnx.merge(train_graph if train else eval_graph, nnx.from_flat_state(entries))
        return module

    def apply(values: Leaves, x: jax.Array, key: jax.Array, *, train: bool) -> tuple[jax.Array, Leaves]:
        module = build(values, key, train=train)
        outputs = module(x)
        _, after = nnx.split(module)
        return outputs, {_name(p): _value(v) for p, v in nnx.to_flat_state(after) if _name(p) in values}

    return Flattened(
        leaves,
        trained,
        statistics,
        apply,
        lambda values: build(values, jax.random.key(0), train=False),
    )


def _array(name: str, variable: object) -> jax.Array:
    value = _value(variable)
    if not hasattr(value, "dtype"):
        raise ModelError(f"leaf {name} holds a {type(value).__name__}, not an array")
    if isinstance(variable, nnx.Param):
        refuse_complex(name, value)
    return jnp.asarray(value)


def _value(variable: object) -> jax.Array:
    value: jax.Array = variable.get_value() if isinstance(variable, nnx.Variable) else variable  # type: ignore[assignment]
    return value


def _is_stream(variable: object) -> bool:
    return isinstance(variable, nnx.RngState) or is_key(_value(variable))


def _name(path: tuple[object, ...]) -> str:
    return jax.tree_util.keystr(tuple(jax.tree_util.DictKey(key) for key in path))
