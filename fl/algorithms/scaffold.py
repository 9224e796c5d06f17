"""SCAFFOLD: control variates correct each site's drift, and travel through the same sum [KKM+20].

Algorithm 1 with option II. Site i holds c_i and is told c; every local step adds c - c_i to the gradient, and afterwards
c_i becomes c_i - c + (x - y_i) / (K · rate). Sites that have records count alike, as in the paper; the sum carries
the change of the parameters and of c_i, of no single site.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from fl.algorithms.base import Algorithm, LocalResult, Mean, ServerState
from fl.algorithms.encoding import WeightedEncoding
from fl.algorithms.fedavg import buckets, on_site
from fl.algorithms.plain import plain_mean
from fl.algorithms.server import Server
from fl.algorithms.training import LocalTraining, change, named
from fl.data import Arrays
from fl.model import Local, Loss, Params

CONTROL = "control"
OWN = "scaffold.control"  # the name of c_i among a site's local leaves; no leaf of a model is called so


def scaffold(
    server: Server,
    loss: Loss,
    training: LocalTraining,
    encoding: WeightedEncoding,
    *,
    sites: int,
    learning_rate: float,
    everybody: int | None = None,
) -> Algorithm:
    """SCAFFOLD over `sites`.

    Args:
        server: The server's half.
        loss: Per record.
        training: With plain gradient descent as optimiser.
        encoding: With `extra=("control",)` and `uniform=True`.
        sites: Those that are asked in a round.
        learning_rate: That of the local optimiser.
        everybody: All of them, also those that miss a round; None: as many as are asked.
    """
    adapter = server.adapter
    leaves, dtype = adapter.schema.leaves, adapter.flat(adapter.params).dtype
    controlled = np.concatenate([np.full(leaf.size, leaf.name not in adapter.averaged) for leaf in leaves])

    def local_update(
        params: Params, local: Local, records: Arrays, *, key: jax.Array, broadcast: Mapping[str, jax.Array]
    ) -> tuple[LocalResult, Local]:
        told, own = broadcast[CONTROL].astype(dtype), local[OWN]
        correction = named(adapter, told - own)
        trained = training.run(adapter, loss, params, local, records=records, key=key, correction=correction)
        moved_by = change(adapter, params, trained.params)
        weight = jnp.sum(records.present, dtype=jnp.int32)
        moved = jnp.where(weight > 0, -told - moved_by / (jnp.maximum(trained.steps, 1) * learning_rate), 0.0)
        moved = jnp.where(controlled, moved, 0.0)
        result = LocalResult(moved_by, weight, trained.loss, {CONTROL: moved})
        return result, trained.local | {OWN: own + moved}

    def server_update(state: ServerState, mean: Mean) -> ServerState:
        after = server.update(state, mean)
        if CONTROL not in mean.extra:
            return after
        control = state.broadcast[CONTROL] + mean.extra[CONTROL] * (mean.weight or 0) / (everybody or sites)
        return replace(after, broadcast={CONTROL: control})

    zero = np.zeros(adapter.schema.dimension)
    return Algorithm(
        blocks=encoding.blocks(sites),
        max_rows=encoding.max_weight,
        slots=buckets,
        init=lambda params: server.init(params, {CONTROL: zero}),
        client_update=on_site(local_update),
        encode=encoding.encode,
        decode=encoding.decode,
        server_update=server_update,
        final=server.final,
        params=adapter.params,
        local=adapter.local | {OWN: jnp.zeros(adapter.schema.dimension, dtype)},
        plain=partial(plain_mean, uniform=True),
        local_update=local_update,
        encoding=encoding,
        broadcast=(CONTROL,),
    )
