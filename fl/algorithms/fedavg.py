"""Federated averaging: each site trains for a while, the server applies an Optax step to the averaged change.

[MMR+17] Algorithm 1, with the server step of [RCZ+21] Algorithm 1. Weights are inside the sum: a site sends its change
times its number of records and that number, so the server divides one sum by another and sees no site's own. One step over
all rows with the gradient as upload is FedSGD; a proximal term makes it FedProx; an adaptive server optimiser FedAdam and its
kin; personal normalisation layers FedBN.
"""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from fl.algorithms.base import Algorithm, LocalResult, LocalUpdate
from fl.algorithms.encoding import ClippedEncoding, SiteUpdate, WeightedEncoding
from fl.algorithms.plain import Strategy, plain_mean
from fl.algorithms.server import Server
from fl.algorithms.training import LocalTraining, uploaded
from fl.data import Arrays, Records
from fl.model import Local, Loss, Params, Vector
from secagg.params import Block

MAX_ROWS = 2**31 - 1  # with weight 1 there is no cap but that of the index type


def fedavg(
    server: Server,
    loss: Loss,
    training: LocalTraining,
    encoding: WeightedEncoding | ClippedEncoding,
    sites: int,
    *,
    strategy: Strategy = "mean",
) -> Algorithm:
    """Federated averaging of `sites`, without privacy or at the client level, as the encoding says.

    Args:
        server: The server's half.
        loss: Per record.
        training: What a site does in a round.
        encoding: How its result becomes integers.
        sites: How many there are.
        strategy: How a plain run takes the mean; a secure sum knows one mean only.
    """
    adapter, upload = server.adapter, encoding.upload
    if isinstance(encoding, ClippedEncoding):
        plan = encoding.plan
        blocks: tuple[Block, ...] = (Block("update", length=plan.length, bits=plan.bits, bound=plan.bound),)
    else:
        blocks = encoding.blocks(sites)

    def local_update(
        params: Params,
        local: Local,
        records: Arrays,
        *,
        key: jax.Array,
        broadcast: Mapping[str, jax.Array],  # noqa: ARG001 - nothing beside the model is told
    ) -> tuple[LocalResult, Local]:
        trained = training.run(adapter, loss, params, local, records=records, key=key, accumulate=upload == "gradient")
        weight = jnp.sum(records.present, dtype=jnp.int32)
        return LocalResult(uploaded(adapter, upload, params, trained), weight, trained.loss, {}), trained.local

    return Algorithm(
        blocks=blocks,
        max_rows=MAX_ROWS if isinstance(encoding, ClippedEncoding) else encoding.max_weight,
        slots=buckets,
        init=server.init,
        client_update=on_site(local_update),
        encode=encoding.encode,
        decode=encoding.decode,
        server_update=server.update,
        final=server.final,
        params=adapter.params,
        local=adapter.local,
        plain=partial(plain_mean, upload=upload, strategy=strategy),
        local_update=local_update,
        encoding=encoding,
    )


def buckets(rows: int) -> int:
    """Slots for a number of rows: powers of two, so that sites share few shapes, and those few compilations."""
    return max(1, 1 << max(rows - 1, 0).bit_length())


def on_site(local_update: LocalUpdate) -> Callable[..., tuple[SiteUpdate, Local]]:
    """A traceable local update as a site runs it: compiled, its result in NumPy."""

    @jax.jit
    def run(
        params: Params, local: Local, records: Arrays, key: jax.Array, broadcast: Mapping[str, jax.Array]
    ) -> tuple[LocalResult, Local]:
        return local_update(params, local, records, key=key, broadcast=broadcast)

    def client_update(
        params: Params,
        local: Local,
        records: Records,
        *,
        key: jax.Array,
        broadcast: Mapping[str, Vector] | None = None,
    ) -> tuple[SiteUpdate, Local]:
        told = {name: jnp.asarray(vector) for name, vector in (broadcast or {}).items()}
        result, after = run(params, local, records.arrays, key, told)
        extra = {name: np.asarray(vector) for name, vector in result.extra.items()}
        update = SiteUpdate(np.asarray(result.delta), int(result.weight), float(result.loss), extra)
        return update, after

    return client_update
