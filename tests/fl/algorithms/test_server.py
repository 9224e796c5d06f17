import numpy as np
import optax
import pytest

from fl.algorithms import Mean, Server, optimizer
from fl.errors import ConfigError, ModelError


@pytest.mark.parametrize("name", ["yogi", "adam", "adagrad", "sgd", "lamb"])
def test_any_optax_server_optimiser_stays_finite(adapter, name):
    """F8: adaptive server optimisers start from Optax's own state and are finite after several rounds."""
    server = Server(adapter, optimizer("server", name, 0.1, {}), "last", 3)
    state = server.init(adapter.params)
    for _ in range(3):
        state = server.update(state, Mean(np.array([0.5, -1.0, 0.0, 1e-9])))
    assert np.isfinite(adapter.ravel(state.params)).all()
    assert adapter.hash(state.params) != adapter.hash(adapter.params)


def test_unit_rate_adds_the_mean_change(adapter):
    """FedAvg proper: plain SGD at rate 1 moves the model by the mean change."""
    server = Server(adapter, optax.sgd(1.0), "last", 1)
    delta = np.array([0.25, -0.5, 1.0, 2.0])
    state = server.update(server.init(adapter.params), Mean(-delta))
    np.testing.assert_allclose(adapter.ravel(state.params), adapter.ravel(adapter.params) + delta, rtol=1e-6)


@pytest.mark.parametrize(
    ("tx", "size", "message"),
    [(optax.sgd(1e38), 1e10, r"leaf \['kernel'\] is not finite"), (optax.adam(0.1), 1e30, "optimiser state .*nu.*")],
    ids=["parameters", "optimiser state"],
)
def test_a_step_that_is_not_finite_is_refused(adapter, tx, size, message):
    """F8: an infinite parameter or optimiser entry is named, and the state before it is untouched."""
    server = Server(adapter, tx, "last", 1)
    state = server.init(adapter.params)
    with pytest.raises(ModelError, match=message):
        server.update(state, Mean(np.array([0, 0, size, 0])))
    assert state.round == 0
    assert adapter.hash(state.params) == adapter.hash(adapter.params)


@pytest.mark.parametrize("rounds", [4, 5])
def test_last_half_averages_the_last_half(adapter, rounds):
    """The published model is the mean of the iterates of the last half of the planned rounds."""
    server = Server(adapter, optax.sgd(1.0), "last_half", rounds)
    state, iterates = server.init(adapter.params), []
    assert adapter.hash(server.final(state)) == adapter.hash(adapter.params)
    for step in range(rounds):
        state = server.update(state, Mean(np.full(4, float(step))))
        iterates.append(adapter.ravel(state.params))
    expected = adapter.unravel(np.mean(iterates[rounds // 2 :], axis=0))
    np.testing.assert_allclose(adapter.ravel(server.final(state)), adapter.ravel(expected), rtol=1e-6)
    assert adapter.hash(Server(adapter, optax.sgd(1.0), "last", rounds).final(state)) == adapter.hash(state.params)


def test_optimisers_are_looked_up_by_name():
    """A misspelt optimiser or option is refused by its key, with the nearest name."""
    with pytest.raises(ConfigError, match=r'server\.optimizer: Optax has no "adamm"; did you mean "adam'):
        optimizer("server", "adamm", 0.1, {})
    with pytest.raises(ConfigError, match=r"algorithm\.options"):
        optimizer("algorithm", "sgd", 0.1, {"momentumm": 0.9})
    for not_an_optimiser in ("global_norm", "_src", "squared_error"):
        with pytest.raises(ConfigError, match=r"server\.op"):
            optimizer("server", not_an_optimiser, 0.1, {})


def test_statistics_are_averaged_without_an_optimiser(normed):
    """Shared batch statistics move by their mean change, whatever the optimiser, its momentum and its rate."""
    adapter = normed("shared")
    server = Server(adapter, optax.adam(0.01), "last", 2)
    state, before = server.init(adapter.params), adapter.ravel(adapter.params)
    direction = np.linspace(-1, 1, adapter.schema.dimension)
    statistics = np.concatenate([np.full(leaf.size, leaf.name in adapter.averaged) for leaf in adapter.schema.leaves])
    assert statistics.sum() == 6
    for _ in range(2):
        state = server.update(state, Mean(direction))
    moved = adapter.ravel(state.params) - before
    np.testing.assert_allclose(moved[statistics], -2 * direction[statistics], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.abs(moved[~statistics]), 0.02, rtol=1e-3)


def test_averaged_parameters_are_stepped_to(adapter):
    """Where sites send parameters, plain SGD at rate 1 makes the model their mean, and at a half goes half the way."""
    target = np.array([0.5, -1.0, 2.0, 0.0])
    for rate in (1.0, 0.5):
        server = Server(adapter, optax.sgd(rate), "last", 1)
        after = adapter.ravel(server.update(server.init(adapter.params), Mean(None, parameters=target)).params)
        start = adapter.ravel(adapter.params)
        np.testing.assert_allclose(after, start + rate * (target - start), atol=1e-6)
