"""Losses per record, by name or by a function of one's own."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax  # type: ignore[import-untyped]  # it ships no types

from fl.errors import ConfigError, ModelError
from fl.plugins import blame, import_function

Loss: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]


def _logistic_loss(outputs: jax.Array, y: jax.Array) -> jax.Array:
    losses: jax.Array = optax.sigmoid_binary_cross_entropy(_scores(outputs, y), y.astype(outputs.dtype))
    return losses


def _squared_loss(outputs: jax.Array, y: jax.Array) -> jax.Array:
    return 0.5 * jnp.square(_scores(outputs, y) - y)


def _softmax_loss(outputs: jax.Array, y: jax.Array) -> jax.Array:
    if outputs.ndim != y.ndim + 1 or outputs.shape[:-1] != y.shape:
        raise ModelError(
            f"the model's output has shape {list(outputs.shape)} for labels {list(y.shape)}: scores by class"
        )
    each: jax.Array = optax.softmax_cross_entropy_with_integer_labels(outputs, y)
    return jnp.mean(each.reshape(len(y), -1), axis=1)


def _scores(outputs: jax.Array, y: jax.Array) -> jax.Array:
    if outputs.shape not in {y.shape, (*y.shape, 1)}:
        raise ModelError(f"the model's output has shape {list(outputs.shape)} for {y.shape[0]} rows: one score each")
    return outputs.reshape(y.shape)


# Each takes outputs (batch, ...) and labels (batch, ...) to one loss per record (batch,).
LOSSES: dict[str, Loss] = {"logistic": _logistic_loss, "squared": _squared_loss, "softmax": _softmax_loss}


def loss_function(name: str, class_weights: Sequence[float] = ()) -> Loss:
    """The loss per record of a name, or of "package.module:function" of (outputs, y).

    Args:
        name: A key of `LOSSES`, or a function's name.
        class_weights: Public factors of a record's loss by its label; empty: 1 for all.

    Raises:
        ConfigError: there is no such loss, or, when it is called, one of one's own raises anything; the message names the key.
    """
    if name not in LOSSES and ":" not in name:
        raise ConfigError(f'model.loss: "{name}" is none of {", ".join(LOSSES)}, and no "package.module:function"')
    plain = LOSSES[name] if name in LOSSES else _own(name)
    if not class_weights:
        return plain
    factors = tuple(class_weights)

    def weighted(outputs: jax.Array, y: jax.Array) -> jax.Array:
        # A label beyond the last weight would be clamped to it in silence; as NaN it is refused with the update.
        factor = jnp.asarray(factors, jnp.float32).at[y.astype(jnp.int32)].get(mode="fill", fill_value=jnp.nan)
        return plain(outputs, y) * factor.reshape(len(y), -1).mean(axis=1)

    return weighted


def _own(name: str) -> Loss:
    function = import_function("model.loss", name)

    def loss(outputs: jax.Array, y: jax.Array) -> jax.Array:
        with blame("model.loss", name):
            losses = jnp.asarray(function(outputs, y))
        if losses.shape != y.shape[:1]:
            raise ModelError(f"model.loss: {name} gives shape {list(losses.shape)} for {len(y)} rows: one loss each")
        if not jnp.issubdtype(losses.dtype, jnp.floating):
            raise ModelError(f"model.loss: {name} gives {losses.dtype}, and only floats have a gradient")
        return losses

    return loss
