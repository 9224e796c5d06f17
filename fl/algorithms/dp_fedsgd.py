"""Full-batch federated gradient descent with record-level privacy: each patient's gradient is clipped on its own.

[ACG+16] Algorithm 1 at sampling rate 1, with the sum taken over integers and across sites.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from fl.algorithms.base import Algorithm, Contribution, Int64, Mean
from fl.algorithms.encoding import clipped_mean
from fl.algorithms.server import Server
from fl.data import Records
from fl.errors import ConfigError, ModelError
from fl.model import Adapter, Leaves, Local, Loss, Params, Vector
from privacy.plan import Plan
from secagg.params import Block

CHUNK = 64  # slots per call at most; a call costs about as much as 64 small gradients
_CHUNK_ENTRIES = 2**22  # slots · d per call at most

Slots = tuple[Any, Any, Any]  # record, label and tag of a slot, or arrays of them
Rows = tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]


def record_gradients(adapter: Adapter, loss: Loss) -> Callable[[Params, Local, Records, jax.Array], Iterator[Rows]]:
    """A function of (params, local, records, key) that yields every record's gradient, computed alone.

    It yields (rows (chunk, d) float32, present (chunk,) bool), chunk = `chunk_size(d)`, until every slot is covered.

    Guarantees:
        A record's float gradient is a function of that record, the parameters and the record's own key only: slots are
        evaluated one after the other by one compiled body of fixed shape. (A vmap over the batch is not
        enough where it runs over the present records only: its reductions round differently with another number of them.)
    """
    size = chunk_size(adapter.schema.dimension)

    @jax.jit
    def compute(params: Params, local: Local, slots: Slots, key: jax.Array) -> jax.Array:
        def one(slot: Slots) -> jax.Array:
            record, label, tag = slot
            own = jax.random.fold_in(key, tag)

            def objective(trained: Leaves) -> jax.Array:
                outputs, _, _ = adapter.forward(params | trained, local, record[None], key=own, train=True)
                return loss(outputs, label[None])[0]

            gradient = jax.grad(objective)(adapter.trainable(params, {}))
            # Shared statistics that no pass moves are no parameters: they have no gradient, and stay.
            return adapter.flat({name: gradient.get(name, jnp.zeros_like(params[name])) for name in params}).astype(
                jnp.float32
            )

        rows: jax.Array = jax.lax.map(one, slots)
        return rows

    def chunks(params: Params, local: Local, records: Records, key: jax.Array) -> Iterator[Rows]:
        for start in range(0, len(records.x), size):
            part = slice(start, start + size)
            rows = compute(params, local, (records.x[part], records.y[part], records.tags[part]), key)
            yield np.asarray(rows), records.present[part]

    return chunks


def chunk_size(dimension: int) -> int:
    """Slots per call for d parameters: memory stays a few models, however many records there are."""
    return max(1, min(CHUNK, _CHUNK_ENTRIES // dimension))


def dp_fedsgd(server: Server, loss: Loss, plan: Plan, *, example: jax.Array) -> Algorithm:
    """One gradient per record and round, clipped to `plan.clip`, summed over integers, divided by `plan.divisor`.

    Args:
        server: The server's half.
        loss: Per record.
        plan: For the record unit.
        example: (1, ...) a record of the data's shape and dtype.

    Raises:
        ModelError: a training pass of the model changes local state (BatchNorm in training mode), so that one record
            would reach another's gradient; the message names the leaf.
    """
    adapter = server.adapter
    if adapter.personal:
        raise ModelError(
            f"leaf {min(adapter.personal)} is personal, and a gradient per record trains shared leaves only"
        )
    coupled = adapter.coupled_leaves(example)
    if coupled:
        raise ModelError(f"leaf {coupled[0]} changes in training: it carries one record's values to another's gradient")
    gradients, size = record_gradients(adapter, loss), chunk_size(plan.dimension)

    def client_update(
        params: Params,
        local: Local,
        records: Records,
        *,
        key: jax.Array,
        broadcast: Mapping[str, Vector] | None = None,  # noqa: ARG001 - nothing beside the model is told
    ) -> tuple[Iterator[Rows], Local]:
        return gradients(params, local, records, key), local

    def encode(update: Iterator[Rows], clip: float | None = None) -> Contribution:
        codec, total = plan.codec(clip), np.zeros(plan.length, np.int64)
        for rows, present in update:
            total += codec.encode_records(rows, present).sum(axis=0)
        return {"update": total}

    def decode(sums: Mapping[str, Int64], clip: float | None = None) -> Mean:
        mean, bits = clipped_mean(plan, sums["update"], clip)
        return Mean(mean, bits=bits)

    return Algorithm(
        blocks=(Block("update", length=plan.length, bits=plan.bits, bound=plan.bound),),
        max_rows=plan.records_per_site,
        slots=lambda _rows: -(-plan.records_per_site // size) * size,  # the public cap, whatever the site has
        init=server.init,
        client_update=client_update,
        encode=encode,
        decode=decode,
        server_update=server.update,
        final=server.final,
        params=adapter.params,
        local=adapter.local,
        plain=_no_plain,
    )


def _no_plain(_updates: Mapping[str, object]) -> tuple[Mean, tuple[str, ...]]:
    raise ConfigError('secagg.mode: "plain" is a float mean, and privacy is proved for integer sums only')
