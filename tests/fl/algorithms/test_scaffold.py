import jax
import numpy as np
import optax
import pytest
from flax import nnx

from fl.algorithms import LocalTraining, Server, scaffold
from fl.algorithms.scaffold import CONTROL, OWN
from fl.data import Records
from fl.model import LOSSES, Adapter, Functional, logistic

RATE = 0.2


def build(kit, adapter, *, loss="logistic", sites=3, rate=RATE, server=1.0, **training):
    """SCAFFOLD with plain descent on both sides."""
    options = {"batch_size": 4, "epochs": 1} | training
    local = LocalTraining(optax.sgd(rate), **options)
    encoding = kit.encoding(adapter, extra=(CONTROL,), uniform=True)
    half = Server(adapter, optax.sgd(server), "last", 4)
    return scaffold(half, LOSSES[loss], local, encoding, sites=sites, learning_rate=rate)


def by_hand(kit, start, sites, alive, *, server, size, epochs):
    """Algorithm 1 of the paper with option II, line by line in float64."""
    x, c = start, np.zeros(len(start))
    own = {index: np.zeros(len(start)) for index in range(len(sites))}
    for number, members in enumerate(alive):
        changes, moves = [], []
        for index in members:
            data = list(sites.values())[index]
            steps = epochs * -(-int(data.present.sum()) // size)
            y = x
            for rows, labels in kit.batches(data, kit.key(index, number), size, steps):
                y = y - RATE * (kit.gradient(y, rows, labels) - own[index] + c)
            after = own[index] - c + (x - y) / (steps * RATE)
            changes.append(y - x)
            moves.append(after - own[index])
            own[index] = after
        x = x + server * np.mean(changes, axis=0)
        c = c + len(members) / len(sites) * np.mean(moves, axis=0)
    return x, c, own


@pytest.mark.parametrize("exact", [False, True], ids=["floats", "integers"])
def test_scaffold_is_that_of_the_paper(adapter, sites, kit, scaffolded, exact):
    """Four rounds with sites missing: model, server's and sites' control variates are those of Algorithm 1, option II."""
    alive = [(0, 1, 2), (0, 2), (1, 2), (0,)]
    states, local = kit.run(scaffolded, sites, alive, exact=exact)
    x, c, own = by_hand(kit, adapter.ravel(adapter.params), sites, alive, server=0.7, size=4, epochs=2)
    np.testing.assert_allclose(adapter.ravel(states[-1].params), x, atol=5e-6)
    np.testing.assert_allclose(states[-1].broadcast[CONTROL], c, atol=2e-5)
    for index, name in enumerate(sites):
        np.testing.assert_allclose(local[name][OWN], own[index], atol=2e-5)
    assert min(np.abs(c).max(), *(np.abs(vector).max() for vector in own.values())) > 0.05


@pytest.fixture(scope="module")
def scaffolded(adapter, kit):
    """Two epochs of batches of four, the server at rate 0.7."""
    return build(kit, adapter, server=0.7, epochs=2)


def test_the_servers_variate_is_the_mean_of_the_sites(sites, kit, scaffolded):
    """Whoever takes part, c stays the mean of all c_i, whatever the sites' sizes."""
    for alive in ([(0, 1, 2)] * 2, [(0, 1, 2), (1,), (0, 2)]):
        states, local = kit.run(scaffolded, sites, alive, exact=True)
        mean = np.mean([np.asarray(own[OWN], float) for own in local.values()], axis=0)
        np.testing.assert_allclose(states[-1].broadcast[CONTROL], mean, atol=1e-6)


def test_the_first_round_is_federated_averaging(adapter, sites, kit, scaffolded):
    """All control variates start at zero, so nothing is corrected yet and the sites count alike."""
    states, _ = kit.run(scaffolded, sites, [(0, 1, 2)])
    plain = kit.fedavg(adapter, LocalTraining(optax.sgd(RATE), 4, epochs=2))
    changes = [
        plain.client_update(adapter.params, {}, data, key=kit.key(index, 0))[0].delta
        for index, data in enumerate(sites.values())
    ]
    expected = adapter.ravel(adapter.params) + 0.7 * np.mean(changes, axis=0)
    np.testing.assert_allclose(adapter.ravel(states[-1].params), expected, atol=1e-6)


def test_a_site_without_rows_has_no_say(adapter, sites, kit, scaffolded):
    """F17: its change, its variate and its weight are zero, and the mean is over those that have records."""
    told = {CONTROL: np.ones(4)}
    update, after = scaffolded.client_update(
        adapter.params, scaffolded.local, kit.records(0), key=jax.random.key(0), broadcast=told
    )
    assert not any(value.any() for value in scaffolded.encode(update).values())
    assert not after[OWN].any()
    with_it = {**sites, "empty": kit.records(0)}
    ours, theirs = (kit.run(scaffolded, group, [(0, 1, 2, 3)])[0][-1] for group in (with_it, sites))
    assert np.array_equal(adapter.ravel(ours.params), adapter.ravel(theirs.params))


def test_a_round_without_data_moves_nothing(adapter, kit, scaffolded):
    """S7: when no site has a record the model and the variate stay."""
    states, _ = kit.run(scaffolded, {"a": kit.records(0)}, [(0,)], exact=True)
    assert adapter.hash(states[-1].params) == adapter.hash(adapter.params)
    assert not states[-1].broadcast[CONTROL].any()


def test_drift_is_corrected(kit):
    """Two sites with different optima and many local steps: SCAFFOLD ends in the global optimum, FedAvg beside it."""
    adapter, rng = Adapter.of(logistic(1, nnx.Rngs(0))), np.random.default_rng(0)
    x = rng.normal(size=(2, 8, 1)).astype(np.float32) * np.float32([[[2.0]], [[0.5]]])
    y = (x[..., 0] * [[3.0], [-1.0]] + [[1.0], [-2.0]]).astype(np.float32)
    sites = {name: Records.place(x[i], y[i], 8) for i, name in enumerate("ab")}
    design = np.stack([np.ones(16), x.reshape(-1).astype(float)], axis=1)
    optimum = np.linalg.lstsq(design, y.reshape(-1).astype(float), rcond=None)[0]
    many = {"batch_size": None, "epochs": None, "steps": 20}
    ours = build(kit, adapter, loss="squared", sites=2, rate=0.1, **many)
    theirs = kit.fedavg(adapter, LocalTraining(optax.sgd(0.1), **many), loss="squared")
    (corrected, _), (drifted, _) = (kit.run(algorithm, sites, [(0, 1)] * 60) for algorithm in (ours, theirs))
    assert np.abs(adapter.ravel(corrected[-1].params) - optimum).max() < 1e-3
    assert np.abs(adapter.ravel(drifted[-1].params) - optimum).max() > 0.3


def test_statistics_and_personal_leaves_have_no_variate(normed, sites, kit):
    """Shared statistics are averaged and never corrected; personal leaves are trained without a variate."""
    adapter = normed("shared", personal=["linear.*"])
    algorithm = build(kit, adapter)
    states, local = kit.run(algorithm, sites, [(0, 1, 2)] * 2, exact=True)
    names = np.concatenate([np.full(leaf.size, leaf.name in adapter.averaged) for leaf in adapter.schema.leaves])
    assert (names.sum(), len(names)) == (6, 12)
    assert not states[-1].broadcast[CONTROL][names].any()
    assert states[-1].broadcast[CONTROL][~names].any()
    assert len({own["['linear']['kernel']"].tobytes() for own in local.values()}) == 3
    assert set(local["east"]) == {"['linear']['bias']", "['linear']['kernel']", OWN}


def test_double_precision_keeps_its_types(kit):
    """With a float64 leaf the variate is float64 too, so a site's local leaves keep their type from round to round."""
    with jax.enable_x64(True):
        adapter = Adapter.of(Functional({"w": np.zeros(3)}, lambda params, state, x, **_: (x @ params["w"], state)))
        algorithm = build(kit, adapter, sites=2, batch_size=None)
        sites = {"a": kit.records(4), "b": kit.records(4, seed=1)}
        states, local = kit.run(algorithm, sites, [(0, 1)] * 2)
        assert local["a"][OWN].dtype == algorithm.local[OWN].dtype == np.float64
        mean = np.mean([np.asarray(own[OWN]) for own in local.values()], axis=0)
        np.testing.assert_allclose(states[-1].broadcast[CONTROL], mean, rtol=1e-12)
