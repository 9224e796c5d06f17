"""Local training: a few optimiser steps at a site, and what of it is uploaded."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax  # type: ignore[import-untyped]  # it ships no types

from fl.data import Arrays
from fl.errors import ConfigError
from fl.model import Adapter, Leaves, Local, Loss, Params

Upload: TypeAlias = Literal["delta", "gradient", "parameters"]


class Trained(NamedTuple):
    """What local training gives.

    Attributes:
        params: The shared leaves after it.
        local: The local leaves after it.
        loss: () float32, the mean training loss over all steps.
        gradient: The sum of the directions that all steps took along the trained leaves: gradients, with proximal term and
            correction. Where it was asked for; else empty.
        steps: () int32, how many there were.
    """

    params: Params
    local: Local
    loss: jax.Array
    gradient: Leaves
    steps: jax.Array


@dataclass(frozen=True)
class LocalTraining:
    """How a site trains in a round.

    Attributes:
        optimizer: Any Optax transformation, started afresh in every round.
        batch_size: Rows per step, or None for all of them; the last batch of an epoch is padded and masked.
        epochs: Passes over the rows, or None when `steps` is given.
        steps: Number of mini-batches, or None; passes over the rows follow each other, each in a new order.
        proximal: FedProx's mu: half of it times the squared distance from the round's start is added to the loss [LSZ+20].

    Raises:
        ConfigError: neither `epochs` nor `steps` is given.

    Guarantees:
        What lies in absent slots changes no bit of the result.
    """

    optimizer: optax.GradientTransformation
    batch_size: int | None
    epochs: int | None = 1
    steps: int | None = None
    proximal: float = 0.0

    def __post_init__(self) -> None:
        if self.epochs is None and self.steps is None:
            raise ConfigError("algorithm: needs algorithm.local_epochs or algorithm.local_steps")

    def run(
        self,
        adapter: Adapter,
        loss: Loss,
        params: Params,
        local: Local,
        *,
        records: Arrays,
        key: jax.Array,
        correction: Leaves | None = None,
        accumulate: bool = False,
    ) -> Trained:
        """Train on a site's records; pure and traceable.

        Args:
            adapter: The model.
            loss: Per record.
            params: The shared leaves to start from.
            local: The site's own.
            records: Its rows.
            key: Sets the orders and the dropout of this round.
            correction: Added to the gradient of the leaves that it names, in every step (SCAFFOLD).
            accumulate: Whether to add up the directions of the steps.
        """
        shuffle, streams = jax.random.split(key)
        present = records.present
        slots, rows = present.shape[0], jnp.sum(present, dtype=jnp.int32)
        size = slots if self.batch_size is None else min(self.batch_size, slots)
        per_epoch = -(-rows // size)
        planned = per_epoch * (self.epochs or 0) if self.steps is None else self.steps
        steps = jnp.where(rows == 0, 0, planned).astype(jnp.int32)
        start = adapter.trainable(params, local)

        def step(
            batch: jax.Array,
            carry: Any,  # noqa: ANN401 - a loop's carry is a pytree
            *,
            epoch: jax.Array,
            order: jax.Array,
        ) -> Any:  # noqa: ANN401 - as above
            params, local, opt_state, total, count, gradients = carry
            position = batch * size + jnp.arange(size, dtype=jnp.int32)
            live = position < rows
            # Padding repeats real rows (their loss is masked), so that batch statistics see no made-up row; where the rows do not
            # fill the batch evenly, some are seen once more than others.
            chosen = order[position % jnp.maximum(rows, 1)]
            weights = adapter.trainable(params, local)

            def objective(trained: Leaves) -> tuple[jax.Array, tuple[Params, Local, jax.Array]]:
                outputs, p, s = adapter.forward(
                    *adapter.put(params, local, trained),
                    records.x[chosen],
                    key=jax.random.fold_in(streams, epoch * per_epoch + batch),
                    train=True,
                )
                each = jnp.where(live, loss(outputs, records.y[chosen]), 0)
                each = each.astype(jnp.promote_types(each.dtype, jnp.float32))  # 16 bits are too few for a mean
                return jnp.sum(each) / jnp.maximum(jnp.sum(live), 1), (p, s, jnp.sum(each).astype(jnp.float32))

            gradient, (params, local, batch_loss) = jax.grad(objective, has_aux=True)(weights)
            gradient = self._corrected(adapter, gradient, weights, start, correction or {})
            gradients = {name: value + gradient[name] for name, value in gradients.items()}
            updates, opt_state = self.optimizer.update(gradient, opt_state, weights)
            params, local = adapter.put(params, local, optax.apply_updates(weights, updates))
            return params, local, opt_state, total + batch_loss, count + jnp.sum(live, dtype=jnp.int32), gradients

        def one_epoch(epoch: jax.Array, carry: Any) -> Any:  # noqa: ANN401 - as above
            order = _order(None if self.batch_size is None else jax.random.fold_in(shuffle, epoch), present)
            last = jnp.minimum(per_epoch, steps - epoch * per_epoch)
            return jax.lax.fori_loop(0, last, partial(step, epoch=epoch, order=order), carry)

        zeros = jax.tree.map(jnp.zeros_like, start) if accumulate else {}
        first = (params, local, self.optimizer.init(start), jnp.float32(0), jnp.int32(0), zeros)
        # Loops with dynamic ends: a site with fewer rows takes fewer steps, and no step is computed to be thrown away.
        if self.epochs == 1:  # every loop writes its carry, the model, out once more
            params, local, _, total, count, gradients = one_epoch(jnp.int32(0), first)
        else:
            passes = -(-steps // jnp.maximum(per_epoch, 1))
            params, local, _, total, count, gradients = jax.lax.fori_loop(0, passes, one_epoch, first)
        return Trained(params, local, total / jnp.maximum(count, 1), gradients, steps)

    def _corrected(
        self, adapter: Adapter, gradient: Leaves, weights: Leaves, start: Leaves, correction: Leaves
    ) -> Leaves:
        after = dict(gradient)
        for name in gradient:
            if name in correction:
                after[name] = after[name] + correction[name].astype(after[name].dtype)
            if self.proximal and name not in adapter.personal:
                after[name] = after[name] + self.proximal * (weights[name] - start[name])
        return after


def uploaded(adapter: Adapter, upload: Upload, before: Params, trained: Trained) -> jax.Array:
    """What a site sends of its training, (d,) in schema order.

    Args:
        adapter: The model.
        upload: "delta": the change. "parameters": the leaves after training. "gradient": the sum of the steps' directions;
            statistics, which have none, give the opposite of their change.
        before: The shared leaves that the round started from.
        trained: What training gave.
    """
    if upload == "parameters":
        return adapter.flat(trained.params)
    if upload == "delta":
        return change(adapter, before, trained.params)
    return adapter.flat({name: trained.gradient.get(name, before[name] - trained.params[name]) for name in before})


def change(adapter: Adapter, before: Params, after: Params) -> jax.Array:
    """After minus before, (d,) in schema order.

    Leaf by leaf: the difference of two whole vectors makes XLA write both out anew in every loop that reads it.
    """
    wide = adapter.flat_dtype
    return adapter.flat({name: after[name].astype(wide) - before[name].astype(wide) for name in before})


def named(adapter: Adapter, vector: jax.Array) -> Leaves:
    """The leaves that a vector (d,) in schema order stands for, in the vector's own dtype; traceable."""
    leaves, start = {}, 0
    for leaf in adapter.schema.leaves:
        leaves[leaf.name] = vector[start : start + leaf.size].reshape(leaf.shape)
        start += leaf.size
    return leaves


def _order(key: jax.Array | None, present: jax.Array) -> jax.Array:
    """An order of the slots (slots,), the present ones first; drawn where there is a key."""
    if (
        key is None
    ):  # one batch has all of them: its mean has no order, and drawing one would be most of the compilation
        return jnp.argsort(~present, stable=True)
    draws = jax.random.uniform(key, present.shape, jnp.float32)
    return jnp.argsort(jnp.where(present, draws, jnp.inf))
