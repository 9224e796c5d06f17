"""Federated averaging: each site trains for a while, the server applies an Optax step to the averaged change.

[MMR+17] Algorithm 1, with the server step of [RCZ+21] Algorithm 1. Weights are inside the sum: a site sends its change
times its number of records and that number, so the server divides one sum by another and sees no site's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]  # it ships no types

from fl.algorithms.base import Algorithm, Contribution, Int64, Mean, Records, Server, clipped_mean
from fl.errors import ConfigError
from fl.model import Adapter, Local, Loss, Params, Vector, rekey
from privacy.codec import FixedPoint
from privacy.errors import InputError
from privacy.plan import Plan
from secagg.params import Block

# The largest mean loss that a site can report, and its fraction bits: 2^40 steps, beside weights up to 2^22.
_MAX_ROWS = 2**31 - 1  # with weight 1 there is no cap but that of the index type
_LOSS = FixedPoint(limit=2.0**20, fraction_bits=20, dimension=1)


@dataclass(frozen=True)
class LocalTraining:
    """How a site trains in a round.

    Attributes:
        optimizer: Any Optax transformation, started afresh in every round.
        batch_size: Rows per step; the last batch of an epoch is padded and masked.
        epochs: Passes over the rows, or None when `steps` is given.
        steps: Number of mini-batches, or None; passes over the rows follow each other, each in a new order.
    """

    optimizer: optax.GradientTransformation
    batch_size: int
    epochs: int | None = 1
    steps: int | None = None

    def run(
        self, adapter: Adapter, loss: Loss, params: Params, local: Local, *, records: Records, key: jax.Array
    ) -> tuple[Params, Local, jax.Array]:
        """Train on x (slots, features); returns the parameters, the local state and the mean training loss ()."""
        x, y, present = jnp.asarray(records.x), jnp.asarray(records.y), jnp.asarray(records.present)
        slots, rows = x.shape[0], jnp.sum(present)
        per_epoch = -(-rows // self.batch_size)
        most = -(-slots // self.batch_size)
        epochs = self.epochs if self.epochs is not None else self.steps or 0
        planned = most * epochs if self.steps is None else self.steps
        steps = jnp.where(rows == 0, 0, per_epoch * epochs if self.steps is None else self.steps)
        order = _orders(key, present, epochs)

        def step(carry: Any, index: jax.Array) -> tuple[Any, jax.Array]:  # noqa: ANN401 - a scan's carry is a pytree
            old_params, old_local, old_opt, total, count = carry
            epoch, batch = index // jnp.maximum(per_epoch, 1), index % jnp.maximum(per_epoch, 1)
            position = batch * self.batch_size + jnp.arange(self.batch_size)
            live = (position < rows) & (index < steps)
            # Padding repeats real rows (their loss is masked), so that batch statistics see no made-up row.
            chosen = order[epoch, position % jnp.maximum(rows, 1)]

            def objective(p: Params) -> tuple[jax.Array, tuple[Local, jax.Array]]:
                outputs, after = adapter.forward(p, old_local, x[chosen], train=True)
                each = jnp.where(live, loss(outputs, y[chosen]), 0.0)
                return jnp.sum(each) / jnp.maximum(jnp.sum(live), 1), (after, jnp.sum(each))

            gradient, (new_local, batch_loss) = jax.grad(objective, has_aux=True)(old_params)
            updates, new_opt = self.optimizer.update(gradient, old_opt, old_params)
            new = (optax.apply_updates(old_params, updates), new_local, new_opt)
            kept = jax.tree.map(lambda a, b: jnp.where(index < steps, a, b), new, (old_params, old_local, old_opt))
            return (*kept, total + batch_loss, count + jnp.sum(live)), index

        start = (params, local, self.optimizer.init(params), jnp.float32(0), jnp.int32(0))
        (params, local, _, total, count), _ = jax.lax.scan(step, start, jnp.arange(planned))
        return params, local, total / jnp.maximum(count, 1)


@dataclass(frozen=True)
class SiteUpdate:
    """What a site's training gave: its change of the parameters (d,), its number of records, its mean loss."""

    delta: Vector
    weight: int
    loss: float


@dataclass(frozen=True)
class WeightedEncoding:
    """Exact integers without privacy: blocks update (d,), weight (1,) and loss (1,), all times the number of records.

    Attributes:
        layout: (leaf name, entries) in vector order, for error messages.
        values: Fixed point of the change.
        max_weight: The public cap on a site's number of records.
    """

    layout: tuple[tuple[str, int], ...]
    values: FixedPoint
    max_weight: int

    def blocks(self, sites: int) -> tuple[Block, ...]:
        """The blocks of a round of `sites`; the update takes the fewest bits that cannot wrap."""
        update = self.values.bound * self.max_weight
        loss = _LOSS.bound * self.max_weight
        bits = (sites * update).bit_length() + 1
        if bits > 64 or (sites * loss).bit_length() > 63:
            raise ConfigError(
                f"algorithm.limit {self.values.limit} x 2^{self.values.fraction_bits} x max_weight {self.max_weight} "
                f"x {sites} sites takes {bits} bits, and a block has at most 64: lower algorithm.limit, fraction_bits or max_weight"
            )
        return (
            Block("update", length=self.values.dimension, bits=bits, bound=update),
            Block("weight", length=1, bits=64, bound=self.max_weight),
            Block("loss", length=1, bits=64, bound=loss),
        )

    def encode(self, update: SiteUpdate, clip: float | None = None) -> Contribution:  # noqa: ARG002 - nothing is clipped
        """Raises privacy's InputError for a value that is not finite or beyond the limit, naming its leaf."""
        weight = np.int64(update.weight)
        return {
            "update": self.values.encode(update.delta, self.layout) * weight,
            "weight": np.array([weight]),
            "loss": _LOSS.encode(np.array([update.loss]), (("training loss", 1),)) * weight,
        }

    def decode(self, sums: Mapping[str, Int64], clip: float | None = None) -> Mean:  # noqa: ARG002 - as above
        """Decode the sum, then divide: the exact weighted mean of the fixed-point changes."""
        weight = int(sums["weight"][0])
        if weight == 0:
            return Mean(None, weight=0)
        loss = float(_LOSS.decode(sums["loss"])[0]) / weight
        return Mean(-self.values.decode(sums["update"]) / weight, weight=weight, loss=loss)


@dataclass(frozen=True)
class ClippedEncoding:
    """Client-level privacy: the clipped change alone, at weight 1; the loss and the count stay on the site."""

    layout: tuple[tuple[str, int], ...]
    plan: Plan

    def encode(self, update: SiteUpdate, clip: float | None = None) -> Contribution:
        """Raises privacy's InputError for a value that is not finite, naming its leaf."""
        return {"update": self.plan.codec(clip).encode_update(update.delta, self.layout)}

    def decode(self, sums: Mapping[str, Int64], clip: float | None = None) -> Mean:
        """Decode, then divide by the plan's public constant; a change is the gradient's opposite."""
        mean = clipped_mean(self.plan, sums["update"], clip)
        return Mean(None if mean.gradient is None else -mean.gradient, bits=mean.bits)


def fedavg(
    server: Server, loss: Loss, training: LocalTraining, encoding: WeightedEncoding | ClippedEncoding, sites: int
) -> Algorithm:
    """Federated averaging of `sites`, without privacy or at the client level, as the encoding says."""
    adapter = server.adapter
    if isinstance(encoding, ClippedEncoding):
        plan = encoding.plan
        blocks: tuple[Block, ...] = (Block("update", length=plan.length, bits=plan.bits, bound=plan.bound),)
    else:
        blocks = encoding.blocks(sites)

    @jax.jit
    def train(
        params: Params, local: Local, records: tuple[jax.Array, ...], key: jax.Array
    ) -> tuple[Params, Local, jax.Array]:
        shuffle, streams = jax.random.split(key)
        return training.run(adapter, loss, params, rekey(local, streams), records=Records(*records), key=shuffle)  # type: ignore[arg-type]

    def client_update(params: Params, local: Local, records: Records, *, key: jax.Array) -> tuple[SiteUpdate, Local]:
        trained, after, mean_loss = train(params, local, (records.x, records.y, records.present, records.tags), key)
        delta = adapter.ravel(trained) - adapter.ravel(params)
        return SiteUpdate(delta, int(records.present.sum()), float(mean_loss)), after

    return Algorithm(
        blocks=blocks,
        max_rows=_MAX_ROWS if isinstance(encoding, ClippedEncoding) else encoding.max_weight,
        slots=lambda rows: max(1, 1 << max(rows - 1, 0).bit_length()),  # few shapes, so few compilations
        init=server.init,
        client_update=client_update,
        encode=encoding.encode,
        decode=encoding.decode,
        server_update=server.update,
        final=server.final,
    )


def weighted_mean(updates: Mapping[str, SiteUpdate]) -> tuple[Mean, tuple[str, ...]]:
    """The float mean of sites' changes, in the order given, and the sites left out.

    Args:
        updates: By site name.

    Returns:
        The mean over the finite updates, and the names of the sites whose update is not finite.

    Raises:
        InputError: a weight is negative, or a change has another shape than the first one; the message names the site.
    """
    shape = next(iter(updates.values())).delta.shape if updates else ()
    for name, update in updates.items():
        if update.weight < 0:
            raise InputError(f"site {name}: weight {update.weight} is negative")
        if update.delta.shape != shape:  # NumPy would stretch a single value over all of them
            raise InputError(f"site {name}: a change of shape {update.delta.shape} among changes of shape {shape}")
    finite = {k: u for k, u in updates.items() if np.isfinite(u.delta).all() and np.isfinite(u.loss)}
    excluded = tuple(name for name in updates if name not in finite)
    weight = sum(update.weight for update in finite.values())
    if weight == 0:
        return Mean(None, weight=0), excluded
    total = sum((u.delta * u.weight for u in finite.values()), np.zeros_like(next(iter(finite.values())).delta))
    loss = sum(u.loss * u.weight for u in finite.values()) / weight
    return Mean(-total / weight, weight=weight, loss=loss), excluded


def _orders(key: jax.Array, present: jax.Array, epochs: int) -> jax.Array:
    """A fresh order of the slots for each epoch (epochs, slots), the present ones first."""
    draws = jax.vmap(lambda e: jax.random.uniform(jax.random.fold_in(key, e), present.shape))(jnp.arange(epochs))
    return jnp.argsort(jnp.where(present, draws, jnp.inf), axis=1)
