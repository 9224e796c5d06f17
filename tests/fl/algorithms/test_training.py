import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fl.algorithms import LocalTraining
from fl.algorithms.training import _order, named
from fl.errors import ConfigError
from fl.model import Adapter, Functional


def train(algorithm, adapter, data, key=0):
    """The update of one site."""
    return algorithm.client_update(adapter.params, adapter.local, data, key=jax.random.key(key))[0]


def test_one_full_batch_step_is_a_gradient_step(adapter, kit):
    """With one step over all rows the change is minus learning rate times the gradient of the mean loss."""
    data = kit.records(7)
    update = train(kit.fedavg(adapter, LocalTraining(optax.sgd(kit.RATE), 7)), adapter, data)
    vector = adapter.ravel(adapter.params)
    np.testing.assert_allclose(update.delta, -kit.RATE * kit.gradient(vector, data.x[:7], data.y[:7]), atol=1e-6)
    assert update.weight == 7


@pytest.mark.parametrize(("rows", "batch"), [(5, 2), (5, 8), (4, 2), (1, 4)])
def test_short_batches_are_padded_and_masked(adapter, kit, rows, batch):
    """F20: batches larger than the data and short last ones give the steps of a plain loop over the same order."""
    data, key = kit.records(rows, 8), jax.random.key(0)
    update = train(kit.fedavg(adapter, LocalTraining(optax.sgd(kit.RATE), batch, epochs=2)), adapter, data)
    order = np.asarray(_order(jax.random.fold_in(jax.random.split(key)[0], 1), jnp.asarray(data.present)))
    assert sorted(order[:rows]) == list(range(rows))
    vector, losses = adapter.ravel(adapter.params), []
    for x, y in kit.batches(data, key, batch, 2 * -(-rows // batch)):
        losses += list(np.logaddexp(0, (1 - 2 * y) * (x @ vector[1:] + vector[0])))
        vector = vector - kit.RATE * kit.gradient(vector, x, y)
    np.testing.assert_allclose(update.delta, vector - adapter.ravel(adapter.params), atol=1e-6)
    assert update.loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_epochs_have_orders_of_their_own(kit):
    """Each pass, each round and each site shuffles anew; the present rows come first in every order."""
    present = jnp.asarray(kit.records(12, 16).present)
    orders = [np.asarray(_order(jax.random.key(number), present)) for number in range(3)]
    assert len({tuple(order[:12]) for order in orders}) == 3
    assert all(sorted(order[:12]) == list(range(12)) for order in orders)


def test_padding_changes_nothing(adapter, kit):
    """Spare slots, whatever is in them, and the steps that they would add change no bit of the update."""
    algorithm = kit.fedavg(adapter, LocalTraining(optax.sgd(kit.RATE, momentum=0.9), 2, epochs=2))
    plain = kit.records(5)
    garbage = dataclasses.replace(
        plain,
        x=np.where(plain.present[:, None], plain.x, np.nan).astype(np.float32),
        y=np.where(plain.present, plain.y, 9).astype(np.int32),
    )
    first, second = train(algorithm, adapter, plain), train(algorithm, adapter, garbage)
    assert np.array_equal(first.delta, second.delta)
    assert first.loss == second.loss


def test_steps_and_epochs_agree(adapter, kit):
    """An epoch of three batches is three steps, and a fourth step goes on with a new order."""
    data = kit.records(5)
    epoch = train(kit.fedavg(adapter, LocalTraining(optax.sgd(kit.RATE), 2)), adapter, data)
    steps = train(kit.fedavg(adapter, LocalTraining(optax.sgd(kit.RATE), 2, epochs=None, steps=3)), adapter, data)
    more = train(kit.fedavg(adapter, LocalTraining(optax.sgd(kit.RATE), 2, epochs=None, steps=4)), adapter, data)
    assert np.array_equal(epoch.delta, steps.delta)
    vector = adapter.ravel(adapter.params)
    for x, y in kit.batches(data, jax.random.key(0), 2, 4):
        vector = vector - kit.RATE * kit.gradient(vector, x, y)
    np.testing.assert_allclose(more.delta, vector - adapter.ravel(adapter.params), atol=1e-6)


def test_a_training_of_no_length_is_refused():
    """Neither epochs nor steps would train nothing in silence."""
    with pytest.raises(ConfigError, match=r"algorithm\.local_epochs or algorithm\.local_steps"):
        LocalTraining(optax.sgd(0.1), 2, epochs=None)


@pytest.mark.parametrize("upload", ["delta", "gradient"])
def test_a_site_without_rows_sends_zero(adapter, kit, upload):
    """F17, F19: no rows give a zero upload at weight zero, and no division by zero, with any optimiser."""
    algorithm = kit.fedavg(adapter, LocalTraining(optax.adam(kit.RATE), 2), upload=upload)
    update = train(algorithm, adapter, kit.records(0))
    assert (update.weight, update.loss) == (0, 0.0)
    assert not update.delta.any()
    assert {name: value.tolist() for name, value in algorithm.encode(update).items()} == {
        "update": [0] * adapter.schema.dimension,
        "weight": [0],
        "loss": [0],
    }


def test_a_site_without_rows_keeps_its_local_leaves(normed, kit):
    """F17: with no rows neither batch statistics nor personal parameters move."""
    adapter = normed(personal=["linear.*"])
    algorithm = kit.fedavg(adapter, LocalTraining(optax.sgd(kit.RATE), 2))
    _, after = algorithm.client_update(adapter.params, adapter.local, kit.records(0), key=jax.random.key(0))
    assert all(np.array_equal(after[name], adapter.local[name]) for name in adapter.local)


@pytest.mark.parametrize("rows", [1, 3])
def test_batch_statistics_see_real_rows_only(normed, kit, rows):
    """Batch statistics of a padded batch are those of its real rows repeated, never of made-up zeros."""
    adapter = normed(momentum=0.0)
    algorithm, data = kit.fedavg(adapter, LocalTraining(optax.sgd(kit.RATE), 6)), kit.records(rows, 4)
    _, after = algorithm.client_update(adapter.params, adapter.local, data, key=jax.random.key(0))
    shuffle = jax.random.fold_in(jax.random.split(jax.random.key(0))[0], 0)
    order = np.asarray(_order(shuffle, data.present))[np.arange(4) % rows]
    np.testing.assert_allclose(after["['norm']['mean']"], data.x[order].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(after["['norm']['var']"], data.x[order].var(axis=0), atol=1e-5)


def test_uploads_say_the_same(adapter, kit):
    """Parameters are the start and the change; the gradient is the change over minus the rate, for plain descent."""
    data, training = kit.records(5), LocalTraining(optax.sgd(kit.RATE), 2, epochs=2, proximal=0.5)
    sent = {
        upload: train(kit.fedavg(adapter, training, upload=upload), adapter, data).delta
        for upload in ("delta", "parameters", "gradient")
    }
    assert np.array_equal(sent["parameters"] - adapter.ravel(adapter.params).astype(np.float32), sent["delta"])
    np.testing.assert_allclose(-kit.RATE * sent["gradient"], sent["delta"], rtol=1e-4, atol=1e-6)
    assert np.abs(sent["delta"]).min() > 1e-3


def test_statistics_in_a_gradient_upload_are_their_change(normed, kit):
    """Shared statistics have no gradient: the opposite of their change is sent in its place."""
    adapter = normed("shared")
    data, training = kit.records(8), LocalTraining(optax.sgd(kit.RATE), None)
    sent = {
        upload: named(adapter, jnp.asarray(train(kit.fedavg(adapter, training, upload=upload), adapter, data).delta))
        for upload in ("delta", "gradient")
    }
    for name in adapter.averaged:
        np.testing.assert_allclose(sent["gradient"][name], -sent["delta"][name], atol=1e-7)
        assert np.abs(sent["delta"][name]).max() > 1e-3
    np.testing.assert_allclose(
        -kit.RATE * sent["gradient"]["['linear']['kernel']"],
        sent["delta"]["['linear']['kernel']"],
        rtol=1e-4,
        atol=1e-7,
    )


def scalar_model(dtype, level=()):
    """Logistic regression with a 0-d bias, by hand; an integer, a boolean and a key beside the parameters."""

    def apply(params, state, x, *, key, train):
        del key
        outputs = (x.astype(params["kernel"].dtype) @ params["kernel"]) + params["level"]
        return outputs, {**state, "seen": state["seen"] + 1} if train else state

    params = {"kernel": jnp.zeros(3, dtype), "level": jnp.zeros(level, dtype)}
    state = {"seen": jnp.asarray(np.zeros((), np.int64)), "flag": jnp.array(True), "key": jax.random.key(7)}
    return Adapter.of(Functional(params, apply, state))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 0.02), ("float16", 2e-3)])
def test_leaves_of_any_float_type_are_trained(kit, dtype, tolerance):
    """F4: 16-bit and 0-d leaves train in their own type, and what is sent is float32 and near the float64 steps."""
    adapter, data = scalar_model(dtype), kit.records(6, 8)
    algorithm = kit.fedavg(adapter, LocalTraining(optax.sgd(kit.RATE), 3))
    update = train(algorithm, adapter, data)
    vector = np.zeros(4)
    for x, y in kit.batches(data, jax.random.key(0), 3, 2):
        vector = vector - kit.RATE * kit.gradient(vector, x, y)
    np.testing.assert_allclose(update.delta, [*vector[1:], vector[0]], atol=tolerance)
    assert update.delta.dtype == np.float32
    state = algorithm.server_update(algorithm.init(adapter.params), algorithm.decode(algorithm.encode(update)))
    assert {str(leaf.dtype) for leaf in state.params.values()} == {dtype}
    np.testing.assert_allclose(adapter.ravel(state.params), update.delta, atol=tolerance)


def test_counters_booleans_and_keys_stay(kit):
    """F5: an integer counter counts at its site; neither it nor a boolean nor a key is in the upload."""
    adapter = scalar_model("float32")
    algorithm = kit.fedavg(adapter, LocalTraining(optax.sgd(kit.RATE), 3))
    update, after = algorithm.client_update(adapter.params, adapter.local, kit.records(6, 8), key=jax.random.key(0))
    assert update.delta.shape == (4,)
    assert {name: value.tolist() for name, value in after.items()} == {"state['seen']": 2, "state['flag']": True}
    assert after["state['seen']"].dtype == jnp.int32


def test_double_precision_is_kept(kit):
    """F4, F5: with 64-bit floats on, float64 leaves are sent as float64 and agree with NumPy's to 1e-12; int64 counters stay."""
    with jax.enable_x64(True):
        adapter = scalar_model("float64")
        data = kit.records(6, 8)
        algorithm = kit.fedavg(adapter, LocalTraining(optax.sgd(kit.RATE), 3))
        update = train(algorithm, adapter, data)
        vector = np.zeros(4)
        for x, y in kit.batches(data, jax.random.key(0), 3, 2):
            vector = vector - kit.RATE * kit.gradient(vector, x, y)
        np.testing.assert_allclose(update.delta, [*vector[1:], vector[0]], rtol=1e-12)
        assert update.delta.dtype == np.float64
        _, after = algorithm.client_update(adapter.params, adapter.local, data, key=jax.random.key(0))
        assert (after["state['seen']"].dtype, int(after["state['seen']"])) == (jnp.int64, 2)


def test_the_proximal_term_holds_shared_leaves_only(kit):
    """FedProx pulls what is averaged towards the round's start; a personal leaf moves as if there were no such term."""

    def apply(params, state, x, **_):
        return jnp.stack([x[:, 0] * params["shared"], x[:, 0] * params["own"]], axis=1), state

    adapter = Adapter.of(Functional({"shared": jnp.ones(()), "own": jnp.ones(())}, apply), personal=["own"])
    found = []
    for mu in (0.0, 2.0):
        training = LocalTraining(optax.sgd(kit.RATE), None, epochs=None, steps=3, proximal=mu)
        algorithm = kit.fedavg(adapter, training, loss=lambda outputs, _y: 0.5 * jnp.sum((outputs - 3) ** 2, axis=1))
        update, after = algorithm.client_update(adapter.params, adapter.local, kit.records(6), key=jax.random.key(0))
        found.append((float(update.delta[0]), float(after["['own']"])))
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-6)
    assert abs(found[1][0]) < 0.9 * abs(found[0][0])
