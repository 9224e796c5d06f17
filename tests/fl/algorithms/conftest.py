from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from fl.algorithms import LocalTraining, Server, WeightedEncoding, fedavg
from fl.algorithms.fedavg import buckets
from fl.algorithms.training import _order
from fl.data import Records
from fl.model import LOSSES, Adapter, logistic
from privacy.codec import FixedPoint

FEATURES, RATE, ROWS = 3, 0.2, {"east": 7, "north": 1, "south": 12}


@pytest.fixture(scope="session")
def adapter():
    """Logistic regression on three features: a vector of four, the bias first."""
    return Adapter.of(logistic(FEATURES, nnx.Rngs(0)))


class Normed(nnx.Module):
    """Normalisation with running statistics before a linear unit."""

    def __init__(self, rngs, momentum=0.9):
        self.norm = nnx.BatchNorm(FEATURES, momentum=momentum, rngs=rngs)
        self.linear = nnx.Linear(FEATURES, 1, rngs=rngs)

    def __call__(self, x):
        """(batch, features) → (batch, 1)."""
        return self.linear(self.norm(x))


@pytest.fixture(scope="session")
def normed():
    """A function of (batch_stats, momentum, personal, frozen) that gives the adapter of a model with batch statistics."""

    def make(batch_stats="local", momentum=0.9, **patterns):
        return Adapter.of(Normed(nnx.Rngs(0), momentum), batch_stats=batch_stats, **patterns)

    return make


def make_records(rows, slots=None, seed=0, features=FEATURES):
    """Random rows in `slots` slots."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, features)).astype(np.float32)
    return Records.place(x, rng.integers(0, 2, rows).astype(np.int32), buckets(rows) if slots is None else slots)


@pytest.fixture(scope="session")
def sites():
    """Three sites of 7, 1 and 12 rows, in as many slots; the one with one row has one class."""
    return {name: make_records(rows, 16, seed=index) for index, (name, rows) in enumerate(ROWS.items())}


def make_encoding(adapter, *, upload="delta", max_weight=100, **options):
    """Fixed point without privacy."""
    values = FixedPoint(64.0, 32, adapter.schema.dimension)
    return WeightedEncoding(adapter.schema.layout, values, max_weight, upload, **options)


def make_fedavg(adapter, training, *, loss="logistic", server=None, upload="delta", strategy="mean", average="last"):
    """Federated averaging of three sites."""
    half = Server(adapter, optax.sgd(1.0) if server is None else server, average, 4)
    chosen = LOSSES[loss] if isinstance(loss, str) else loss
    return fedavg(half, chosen, training, make_encoding(adapter, upload=upload), 3, strategy=strategy)


def key_of(index, number):
    """The key of a site in a round."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(0), index), number)


def run_rounds(algorithm, sites, alive, *, exact=False):
    """The server's states (the first one included) and every site's local leaves after it.

    `alive` holds, for each round, the places of the sites in it. `exact` sums integers; otherwise floats are averaged.
    """
    state, local = algorithm.init(algorithm.params), dict.fromkeys(sites, algorithm.local)
    states = [state]
    for number, members in enumerate(alive):
        updates = {}
        for index, (name, data) in enumerate(sites.items()):
            if index in members:
                updates[name], local[name] = algorithm.client_update(
                    state.params, local[name], data, key=key_of(index, number), broadcast=state.broadcast
                )
        if exact:
            encoded = [algorithm.encode(update) for update in updates.values()]
            mean = algorithm.decode({block.name: sum(e[block.name] for e in encoded) for block in algorithm.blocks})
        else:
            mean, _ = algorithm.plain(updates)
        state = algorithm.server_update(state, mean)
        states.append(state)
    return states, local


def gradient(vector, x, y):
    """Of the mean logistic loss in (bias, kernel) order, in float64."""
    error = (1 / (1 + np.exp(-(x.astype(float) @ vector[1:] + vector[0]))) - y) / len(y)
    return np.concatenate([[error.sum()], x.T.astype(float) @ error])


def batches(data, key, size, steps):
    """The rows of each step, in the order that the key sets: epoch after epoch, the last batch of each short."""
    rows, epoch = int(data.present.sum()), 0
    while steps > 0:
        order = np.asarray(_order(jax.random.fold_in(jax.random.split(key)[0], epoch), data.present))[:rows]
        for start in range(0, rows, size):
            if steps > 0:
                yield data.x[order[start : start + size]], data.y[order[start : start + size]]
                steps -= 1
        epoch += 1


@pytest.fixture(scope="session")
def kit():
    """The functions of this file."""
    return SimpleNamespace(
        FEATURES=FEATURES,
        RATE=RATE,
        records=make_records,
        encoding=make_encoding,
        fedavg=make_fedavg,
        key=key_of,
        run=run_rounds,
        gradient=gradient,
        batches=batches,
        once=LocalTraining(optax.sgd(RATE), None, epochs=None, steps=1),
    )
