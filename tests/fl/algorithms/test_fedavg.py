import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fl.algorithms import LocalTraining, Mean, Server
from fl.algorithms.fedavg import buckets
from fl.algorithms.training import _order
from fl.model import MLP, Adapter, loss_function

ALIVE = [(0, 1, 2), (0, 2), (1,)]


def pool(sites, members):
    """All present rows of some sites."""
    chosen = [data for index, data in enumerate(sites.values()) if index in members]
    return (np.concatenate([getattr(data, part)[data.present] for data in chosen]) for part in ("x", "y"))


def reference(kit, adapter, sites, alive, local, *, server=lambda vector, change: vector + change):
    """Federated averaging in float64: `local` of (start, records, key) is a site's training."""
    vector = adapter.ravel(adapter.params)
    for number, members in enumerate(alive):
        rows, changes = [], []
        for index, data in enumerate(sites.values()):
            if index in members:
                rows.append(data.present.sum())
                changes.append(local(vector, data, kit.key(index, number)) - vector)
        vector = server(vector, np.average(changes, axis=0, weights=rows))
    return vector


def descent(kit, size, steps, mu=0.0):
    """Local mini-batch descent in NumPy; `steps` maps a number of rows to a number of steps."""

    def local(start, data, key):
        vector = start
        for x, y in kit.batches(data, key, size, steps(int(data.present.sum()))):
            vector = vector - kit.RATE * (kit.gradient(vector, x, y) + mu * (vector - start))
        return vector

    return local


@pytest.mark.parametrize("exact", [False, True], ids=["floats", "integers"])
def test_fedsgd_is_centralised_gradient_descent(adapter, sites, kit, exact):
    """One gradient over all rows of each site a round: the model is that of descent over everybody's rows."""
    algorithm = kit.fedavg(adapter, kit.once, upload="gradient", server=optax.sgd(kit.RATE))
    states, _ = kit.run(algorithm, sites, ALIVE, exact=exact)
    vector = adapter.ravel(adapter.params)
    for members, state in zip(ALIVE, states[1:], strict=True):
        vector = vector - kit.RATE * kit.gradient(vector, *pool(sites, members))
        np.testing.assert_allclose(adapter.ravel(state.params), vector, atol=1e-6)


@pytest.mark.parametrize("mu", [0.0, 2.0], ids=["FedAvg", "FedProx"])
@pytest.mark.parametrize(
    ("training", "steps"),
    [({"epochs": 2}, lambda rows: 2 * -(-rows // 4)), ({"epochs": None, "steps": 5}, lambda _rows: 5)],
    ids=["epochs", "steps"],
)
def test_averaging_is_that_of_the_papers(adapter, sites, kit, *, training, steps, mu):
    """Three rounds, sites missing, against Algorithm 1 of FedAvg and FedProx's objective in float64 NumPy."""
    algorithm = kit.fedavg(adapter, LocalTraining(optax.sgd(kit.RATE), 4, proximal=mu, **training))
    states, _ = kit.run(algorithm, sites, ALIVE)
    expected = reference(kit, adapter, sites, ALIVE, descent(kit, 4, steps, mu))
    np.testing.assert_allclose(adapter.ravel(states[-1].params), expected, atol=2e-6)
    other = reference(kit, adapter, sites, ALIVE, descent(kit, 4, steps, mu + 0.1))
    assert np.abs(other - expected).max() > 1e-4


def test_integers_and_floats_train_the_same_model(adapter, sites, kit):
    """S21: three rounds through integers end within the fixed point's step of three rounds in floats."""
    algorithm = kit.fedavg(adapter, LocalTraining(optax.sgd(kit.RATE), 4))
    (exact, _), (floats, _) = (kit.run(algorithm, sites, ALIVE, exact=exact) for exact in (True, False))
    np.testing.assert_allclose(adapter.ravel(exact[-1].params), adapter.ravel(floats[-1].params), atol=1e-7)
    assert exact[-1].round == 3


def test_uploads_train_the_same_model(adapter, sites, kit):
    """Changes and parameters give one model; so does one step's gradient, when the server steps at the local rate."""
    models = {}
    for upload, rate in (("delta", 1.0), ("parameters", 1.0), ("gradient", kit.RATE)):
        algorithm = kit.fedavg(adapter, kit.once, upload=upload, server=optax.sgd(rate))
        states, _ = kit.run(algorithm, sites, ALIVE, exact=True)
        models[upload] = adapter.ravel(states[-1].params)
    np.testing.assert_allclose(models["parameters"], models["delta"], atol=1e-6)
    np.testing.assert_allclose(models["gradient"], models["delta"], atol=1e-6)


def adam(state, g, step):
    """Adam as Optax has it: bias-corrected moments."""
    m, v = 0.9 * state[0] + 0.1 * g, 0.999 * state[1] + 0.001 * g**2
    return (m, v), (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)


def yogi(state, g, step):
    """Yogi: the second moment moves by the sign of its distance, from 1e-6 on."""
    m, v = 0.9 * state[0] + 0.1 * g, state[1] - 0.001 * np.sign(state[1] - g**2) * g**2
    return (m, v), (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-3)


def adagrad(state, g, _step):
    """Adagrad: the sum of squares, from 0.1 on."""
    v = state[1] + g**2
    return (state[0], v), g / np.sqrt(v + 1e-7)


@pytest.mark.parametrize(
    ("name", "rule", "first"), [("adam", adam, (0, 0)), ("yogi", yogi, (1e-6, 1e-6)), ("adagrad", adagrad, (0, 0.1))]
)
def test_adaptive_servers_follow_their_rule(adapter, sites, kit, once_by_server, *, name, rule, first):
    """FedAdam, FedYogi and FedAdagrad: the averaged change is the gradient of the server's optimiser."""
    algorithm = once_by_server(getattr(optax, name)(0.05))
    states, _ = kit.run(algorithm, sites, [(0, 1, 2)] * 4)
    memory, step = tuple(np.full(4, value, float) for value in first), 0

    def server(vector, change):
        nonlocal memory, step
        step += 1
        memory, direction = rule(memory, -change, step)
        return vector - 0.05 * direction

    expected = reference(kit, adapter, sites, [(0, 1, 2)] * 4, descent(kit, 16, lambda _rows: 1), server=server)
    np.testing.assert_allclose(adapter.ravel(states[-1].params), expected, rtol=1e-4, atol=2e-5)
    assert np.abs(expected - adapter.ravel(adapter.params)).min() > 0.01


@pytest.fixture(scope="module")
def once_by_server(adapter, kit):
    """A function of a server's optimiser; the sites' training is compiled once."""
    made = kit.fedavg(adapter, kit.once)

    def make(optimizer):
        server = Server(adapter, optimizer, "last", 4)
        return dataclasses.replace(made, init=server.init, server_update=server.update, final=server.final)

    return make


def test_class_weights_weigh_the_loss(adapter, sites, kit):
    """A record's gradient is multiplied by its class's weight; the mean is still over records."""
    algorithm = kit.fedavg(adapter, kit.once, loss=loss_function("logistic", (0.5, 3.0)), upload="gradient")
    vector, data = adapter.ravel(adapter.params), sites["south"]
    x, y = data.x[data.present], data.y[data.present]
    update, _ = algorithm.client_update(adapter.params, adapter.local, data, key=jax.random.key(0))
    each = [kit.gradient(vector, x[i : i + 1], y[i : i + 1]) * (0.5, 3.0)[y[i]] for i in range(len(y))]
    np.testing.assert_allclose(update.delta, np.mean(each, axis=0), atol=1e-6)
    assert np.abs(np.mean(each, axis=0) - kit.gradient(vector, x, y)).max() > 0.1


@pytest.mark.parametrize("personal", ["norm.*", "linear.*"], ids=["FedBN", "personal head"])
def test_personal_leaves_stay_and_are_trained(normed, kit, personal):
    """FedBN and personal heads: what is personal leaves no site, and moves as if the whole model were trained there."""
    whole, split = normed(), normed(personal=[personal])
    training, data = LocalTraining(optax.sgd(kit.RATE), 4, epochs=2), kit.records(7)
    joint = kit.fedavg(whole, training).client_update(whole.params, whole.local, data, key=jax.random.key(0))
    update, after = kit.fedavg(split, training).client_update(split.params, split.local, data, key=jax.random.key(0))
    moved = whole.unravel(joint[0].delta.astype(float))
    assert {leaf.name for leaf in split.schema.leaves} == set(whole.params) - split.personal
    assert len(split.personal) == 2
    for name, change in split.unravel(update.delta.astype(float)).items():
        np.testing.assert_allclose(change, moved[name], atol=1e-6)
    for name in split.personal:
        np.testing.assert_allclose(after[name] - split.local[name], moved[name], atol=1e-6)
    assert max(np.abs(after[name] - split.local[name]).max() for name in split.personal) > 1e-3


def test_sites_keep_personal_leaves_of_their_own(normed, sites, kit):
    """After two rounds every site has another personal head and other statistics; the shared leaves are one."""
    adapter = normed(personal=["linear.*"])
    algorithm = kit.fedavg(adapter, LocalTraining(optax.sgd(kit.RATE), 4))
    states, local = kit.run(algorithm, sites, [(0, 1, 2), (0, 1)], exact=True)
    heads = {name: own["['linear']['kernel']"].tobytes() for name, own in local.items()}
    assert len(set(heads.values())) == 3
    assert len({own["['norm']['mean']"].tobytes() for own in local.values()}) == 3
    assert set(states[-1].params) == {"['norm']['bias']", "['norm']['scale']"}


def test_a_frozen_trunk_does_not_move(sites, kit):
    """Frozen leaves are bitwise as built after two rounds, and are in the published model; the head is trained."""
    model = MLP(kit.FEATURES, (4,), nnx.Rngs(1))
    adapter = Adapter.of(model, frozen=["layers.0.*"])
    algorithm = kit.fedavg(adapter, LocalTraining(optax.adamw(kit.RATE), 4), server=optax.adamw(0.1))
    states, local = kit.run(algorithm, sites, [(0, 1, 2)] * 2)
    published = adapter.merge(states[-1].params, local["east"])
    for part in ("kernel", "bias"):
        built, now = (getattr(m.layers[0], part).get_value() for m in (model, published))
        assert np.array_equal(built, now)
        assert not np.array_equal(*(getattr(m.layers[1], part).get_value() for m in (model, published)))


@pytest.mark.parametrize("upload", ["delta", "gradient", "parameters"])
def test_shared_statistics_are_the_mean_of_the_sites(normed, sites, kit, upload):
    """With shared batch statistics the server has the weighted mean of the sites', whatever its optimiser and the upload."""
    adapter = normed("shared")
    algorithm = kit.fedavg(adapter, kit.once, upload=upload, server=optax.sgd(0.5, momentum=0.9))
    state = algorithm.init(algorithm.params)
    for number in range(2):
        updates, found = {}, []
        for index, (name, data) in enumerate(sites.items()):
            key = kit.key(index, number)
            updates[name], _ = algorithm.client_update(state.params, algorithm.local, data, key=key)
            _, after, _ = adapter.forward(state.params, {}, batch_of(data), key=key, train=True)
            found.append((int(data.present.sum()), after))
        state = algorithm.server_update(state, algorithm.plain(updates)[0])
        for name in adapter.averaged:
            expected = sum(rows * np.asarray(after[name]) for rows, after in found) / sum(rows for rows, _ in found)
            np.testing.assert_allclose(state.params[name], expected, atol=1e-5)


def batch_of(data):
    """The one padded batch that `once` sees."""
    order = _order(None, jnp.asarray(data.present))
    return jnp.asarray(data.x)[order[jnp.arange(len(data.x)) % int(data.present.sum())]]


@pytest.mark.parametrize("strategy", ["median", "trimmed_mean"])
def test_robust_strategies_step_along_their_value(adapter, sites, kit, strategy):
    """In plain mode the server steps along the median of the sites' changes, which for three is their trimmed mean."""
    algorithm = kit.fedavg(adapter, kit.once, strategy=strategy)
    states, _ = kit.run(algorithm, sites, [(0, 1, 2)])
    vector = adapter.ravel(adapter.params)
    rows = ((data.x[data.present], data.y[data.present]) for data in sites.values())
    expected = vector + np.median([-kit.RATE * kit.gradient(vector, x, y) for x, y in rows], axis=0)
    np.testing.assert_allclose(adapter.ravel(states[-1].params), expected, atol=1e-6)


def test_no_data_is_said_so_and_the_model_stays(adapter, kit):
    """S7: when all counts are zero the mean has no gradient, and the server keeps the model and counts the round."""
    algorithm = kit.fedavg(adapter, kit.once)
    states, _ = kit.run(algorithm, {"a": kit.records(0), "b": kit.records(0)}, [(0, 1)], exact=True)
    assert states[-1].round == 1
    assert adapter.hash(states[-1].params) == adapter.hash(adapter.params)


def test_a_zero_update_is_zero(adapter, once_by_server):
    """F19: a mean of zero leaves the model bitwise the same, also under an adaptive server."""
    for optimizer in (optax.sgd(1.0, momentum=0.9), optax.adam(0.1), optax.adagrad(0.1)):
        algorithm = once_by_server(optimizer)
        state = algorithm.server_update(algorithm.init(adapter.params), Mean(np.zeros(4), weight=3))
        assert adapter.hash(state.params) == adapter.hash(adapter.params)


def test_one_trace_serves_sites_and_simulations(adapter, sites, kit):
    """`client_update` is `local_update`, compiled: the same numbers from either."""
    algorithm, data, key = kit.fedavg(adapter, LocalTraining(optax.sgd(kit.RATE), 4)), sites["south"], kit.key(2, 0)
    update, _ = algorithm.client_update(adapter.params, adapter.local, data, key=key)
    result, _ = jax.jit(lambda arrays: algorithm.local_update(adapter.params, {}, arrays, key=key, broadcast={}))(
        data.arrays
    )
    np.testing.assert_allclose(result.delta, update.delta, atol=1e-7)
    assert (int(result.weight), result.weight.dtype, result.loss.dtype) == (12, jnp.int32, jnp.float32)


def test_slots_are_powers_of_two():
    """Sites share few shapes: the next power of two, and one slot for a site without rows."""
    assert [buckets(rows) for rows in (0, 1, 2, 3, 4, 5, 1000)] == [1, 1, 2, 4, 4, 8, 1024]
