import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fl.algorithms import (
    ClippedEncoding,
    LocalTraining,
    Mean,
    Records,
    Server,
    SiteUpdate,
    WeightedEncoding,
    fedavg,
    weighted_mean,
)
from fl.algorithms.fedavg import _orders
from fl.errors import ConfigError
from fl.model import LOSSES, Adapter, logistic
from privacy.adaptive import AdaptiveClip
from privacy.codec import FixedPoint
from privacy.errors import InputError
from privacy.plan import Plan

FEATURES, LEARNING_RATE = 3, 0.1


@pytest.fixture(scope="module")
def adapter():
    """Logistic regression, split."""
    return Adapter.of(logistic(FEATURES, nnx.Rngs(0)))


def weighted(adapter, max_weight=100):
    """Fixed point without privacy."""
    return WeightedEncoding(adapter.schema.layout, FixedPoint(64.0, 32, adapter.schema.dimension), max_weight)


def build(adapter, training, encoding=None, *, server_optimizer=None, average="last", rounds=4):
    """Federated averaging of four sites."""
    server = Server(adapter, server_optimizer or optax.sgd(1.0), average, rounds)
    return fedavg(server, LOSSES["logistic"], training, encoding or weighted(adapter), 4)


def records(rows, slots, seed=0):
    """Random rows in `slots` slots."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, FEATURES)).astype(np.float32)
    return Records.place(x, rng.integers(0, 2, rows).astype(np.int32), slots)


def gradient(vector, x, y):
    """Of the mean logistic loss in (bias, kernel) order, in float64."""
    logits = x @ vector[1:] + vector[0]
    error = (1 / (1 + np.exp(-logits)) - y) / len(y)
    return np.concatenate([[error.sum()], x.T @ error])


def train(algorithm, adapter, data, key=0):
    """The update of one site."""
    return algorithm.client_update(adapter.params, adapter.local, data, key=jax.random.key(key))[0]


def test_one_full_batch_step_is_a_gradient_step(adapter):
    """With one step over all rows the change is minus learning rate times the gradient of the mean loss."""
    data = records(7, 8)
    update = train(build(adapter, LocalTraining(optax.sgd(LEARNING_RATE), 7)), adapter, data)
    expected = -LEARNING_RATE * gradient(adapter.ravel(adapter.params), data.x[:7].astype(float), data.y[:7])
    np.testing.assert_allclose(update.delta, expected, atol=1e-6)
    assert update.weight == 7


@pytest.mark.parametrize(("rows", "batch"), [(5, 2), (5, 8), (4, 2), (1, 4)])
def test_short_batches_are_padded_and_masked(adapter, rows, batch):
    """F20: batches larger than the data and short last ones give the steps of a plain loop over the same order."""
    slots, key = 8, jax.random.key(0)
    data = records(rows, slots)
    update = train(build(adapter, LocalTraining(optax.sgd(LEARNING_RATE), batch, epochs=2)), adapter, data)
    vector = adapter.ravel(adapter.params)
    for order in np.asarray(_orders(jax.random.split(key)[0], jnp.asarray(data.present), 2)):
        assert sorted(order[:rows]) == list(range(rows))
        for start in range(0, rows, batch):
            chosen = order[start : min(start + batch, rows)]
            vector = vector - LEARNING_RATE * gradient(vector, data.x[chosen].astype(float), data.y[chosen])
    np.testing.assert_allclose(update.delta, vector - adapter.ravel(adapter.params), atol=1e-6)


def test_padding_changes_nothing(adapter):
    """Spare slots, whatever is in them, and the steps that they would add change no bit of the update."""
    training = LocalTraining(optax.sgd(LEARNING_RATE, momentum=0.9), 2, epochs=2)
    algorithm = build(adapter, training)
    plain = records(5, 8)
    garbage = dataclasses.replace(
        plain,
        x=np.where(plain.present[:, None], plain.x, np.nan).astype(np.float32),
        y=np.where(plain.present, plain.y, 9).astype(np.int32),
    )
    first, second = train(algorithm, adapter, plain), train(algorithm, adapter, garbage)
    assert np.array_equal(first.delta, second.delta)
    assert first.loss == second.loss


def test_steps_and_epochs_agree(adapter):
    """An epoch of three batches is three steps, and a fourth step goes on with a new order."""
    data = records(5, 8)
    epoch = train(build(adapter, LocalTraining(optax.sgd(LEARNING_RATE), 2)), adapter, data)
    steps = train(build(adapter, LocalTraining(optax.sgd(LEARNING_RATE), 2, epochs=None, steps=3)), adapter, data)
    more = train(build(adapter, LocalTraining(optax.sgd(LEARNING_RATE), 2, epochs=None, steps=4)), adapter, data)
    assert np.array_equal(epoch.delta, steps.delta)
    assert not np.array_equal(epoch.delta, more.delta)


def test_a_site_without_rows_sends_zero(adapter):
    """F17: no rows give a zero change at weight zero, and no division by zero."""
    algorithm = build(adapter, LocalTraining(optax.adam(LEARNING_RATE), 2))
    update = train(algorithm, adapter, records(0, 1))
    assert (update.weight, update.loss) == (0, 0.0)
    assert not update.delta.any()
    assert {name: value.tolist() for name, value in algorithm.encode(update).items()} == {
        "update": [0] * adapter.schema.dimension,
        "weight": [0],
        "loss": [0],
    }


def test_batch_statistics_see_real_rows_only():
    """Batch statistics of a padded batch are those of its real rows repeated, never of made-up zeros."""

    class Normed(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(FEATURES, momentum=0.0, rngs=rngs)
            self.linear = nnx.Linear(FEATURES, 1, rngs=rngs)

        def __call__(self, x):
            return self.linear(self.norm(x))

    adapter = Adapter.of(Normed(nnx.Rngs(0)))
    algorithm = build(adapter, LocalTraining(optax.sgd(LEARNING_RATE), 6))
    data = records(3, 4)
    _, after = algorithm.client_update(adapter.params, adapter.local, data, key=jax.random.key(0))
    np.testing.assert_allclose(after["norm"]["mean"].get_value(), data.x[:3].mean(axis=0), atol=1e-6)


def test_weights_inside_the_sum_equal_the_float_mean(adapter):
    """S17, S21: decoding the integer sum and then dividing gives the weighted float mean of sites of any size."""
    rng = np.random.default_rng(0)
    updates = {str(i): SiteUpdate(rng.normal(size=4), w, float(i)) for i, w in enumerate([90, 1, 0, 7])}
    encoding = weighted(adapter)
    encoded = [encoding.encode(update) for update in updates.values()]
    mean = encoding.decode({name: sum(e[name] for e in encoded) for name in encoded[0]})
    expected, excluded = weighted_mean(updates)
    np.testing.assert_allclose(mean.gradient, expected.gradient, atol=2.0**-32)
    assert mean.weight == expected.weight == 98
    assert mean.loss == pytest.approx(expected.loss, abs=2.0**-20)
    assert excluded == ()


def test_no_data_is_said_so_and_the_model_stays(adapter):
    """S7: when all counts are zero the mean has no gradient, and the server keeps the model."""
    encoding = weighted(adapter)
    zero = encoding.encode(SiteUpdate(np.zeros(4), 0, 0.0))
    mean = encoding.decode(zero)
    assert mean == Mean(None, weight=0)
    algorithm = build(adapter, LocalTraining(optax.sgd(LEARNING_RATE), 2))
    state = algorithm.server_update(algorithm.init(adapter.params), mean)
    assert state.round == 1
    assert adapter.hash(state.params) == adapter.hash(adapter.params)
    assert weighted_mean({"a": SiteUpdate(np.zeros(4), 0, 0.0)})[0] == Mean(None, weight=0)


def test_float_mean_names_what_it_leaves_out():
    """F1, F2: a NaN site is excluded by name even at weight 0; a negative weight is refused by the site's name."""
    good, bad = SiteUpdate(np.ones(2), 3, 1.0), SiteUpdate(np.array([1.0, np.nan]), 0, 1.0)
    mean, excluded = weighted_mean({"north": good, "south": bad})
    assert excluded == ("south",)
    assert mean.gradient.tolist() == [-1, -1]
    with pytest.raises(InputError, match="site south: weight -1 is negative"):
        weighted_mean({"north": good, "south": SiteUpdate(np.ones(2), -1, 1.0)})


@pytest.mark.parametrize("shape", [(1,), (), (2, 1), (3,)])
def test_float_mean_stretches_nothing(shape):
    """S8: a change that NumPy could broadcast to the others' is refused by the site's name and both shapes."""
    updates = {"north": SiteUpdate(np.ones(2), 3, 1.0), "south": SiteUpdate(np.ones(shape), 3, 1.0)}
    with pytest.raises(InputError) as caught:
        weighted_mean(updates)
    assert str(caught.value) == f"site south: a change of shape {shape} among changes of shape (2,)"


@pytest.mark.parametrize(
    ("update", "leaf"),
    [
        (SiteUpdate(np.array([0, 0, np.nan, 0]), 1, 0.0), r"\['kernel'\]"),
        (SiteUpdate(np.array([65.0, 0, 0, 0]), 1, 0.0), r"\['bias'\]"),
        (SiteUpdate(np.zeros(4), 1, np.inf), "training loss"),
    ],
    ids=["nan", "beyond the limit", "loss"],
)
def test_what_cannot_be_encoded_is_named(adapter, update, leaf):
    """S6: a NaN, a value beyond the limit and an infinite loss are refused by the leaf's name."""
    with pytest.raises(InputError, match=leaf):
        weighted(adapter).encode(update)


def test_bits_follow_from_the_bound(adapter):
    """S4, S16: the update's ring is the smallest that cannot wrap, and one that would need 65 bits is refused."""
    update = weighted(adapter, max_weight=100).blocks(4)[0]
    assert 4 * update.bound < 2 ** (update.bits - 1)
    assert 4 * update.bound >= 2 ** (update.bits - 2)
    with pytest.raises(ConfigError, match="max_weight 4194304 x 100000 sites"):
        weighted(adapter, max_weight=2**22).blocks(100_000)


def test_client_level_privacy_sends_one_clipped_vector(adapter):
    """At the client level only the clipped update leaves, without loss or count; the mean divides by the constant."""
    plan = Plan.solve(
        epsilon=1.0,
        unit="client",
        relation="zero-out",
        sites=4,
        dropouts=1,
        colluders=0,
        clip=0.5,
        records_per_site=1,
        dimension=4,
        bits=32,
        rounds=4,
        delta=1e-4,
        divisor=4.0,
    )
    encoding = ClippedEncoding(adapter.schema.layout, plan)
    algorithm = build(adapter, LocalTraining(optax.sgd(0.1), 2), encoding)
    values = algorithm.encode(SiteUpdate(np.array([3.0, 4.0, 0.0, 0.0]), 17, 0.1))
    assert set(values) == {"update"}
    assert [(b.name, b.bits, b.bound) for b in algorithm.blocks] == [("update", plan.bits, plan.bound)]
    mean = algorithm.decode(values)
    np.testing.assert_allclose(mean.gradient, [-0.3 / 4, -0.4 / 4, 0, 0], atol=1e-5)
    assert mean.weight is None
    assert mean.loss is None
    with pytest.raises(InputError, match=r"\['kernel'\]"):
        algorithm.encode(SiteUpdate(np.array([0, 0, np.nan, 0]), 1, 0.0))


def test_a_clients_bit_is_one_more_coordinate(adapter):
    """At the client level the bit says whether the change is within this round's C; the mean has the scale of that C."""
    plan = Plan.solve(
        epsilon=20.0,
        unit="client",
        relation="zero-out",
        sites=4,
        dropouts=1,
        colluders=0,
        clip=0.5,
        adaptive=AdaptiveClip(quantile=0.5, learning_rate=0.2, bit_noise=1.0, expected=4, min_clip=0.1, max_clip=9.0),
        records_per_site=1,
        dimension=4,
        rounds=4,
        delta=1e-4,
        divisor=4.0,
    )
    algorithm = build(adapter, LocalTraining(optax.sgd(0.1), 2), ClippedEncoding(adapter.schema.layout, plan))
    assert algorithm.blocks[0].length == 5
    update = SiteUpdate(np.array([3.0, 4.0, 0.0, 0.0]), 17, 0.1)
    for clip, bits, length in ((0.5, -0.5, 0.5), (4.9, -0.5, 4.9), (5.1, 0.5, 5.0)):
        mean = algorithm.decode(algorithm.encode(update, clip), clip)
        assert mean.bits == bits
        np.testing.assert_allclose(mean.gradient, [-0.6 * length / 4, -0.8 * length / 4, 0, 0], atol=1e-4)
