import numpy as np
import optax
import pytest
from flax import nnx

from fl.algorithms import Mean, Records, Server, optimizer
from fl.errors import ConfigError, ModelError
from fl.model import Adapter, logistic


@pytest.fixture(scope="module")
def adapter():
    """Logistic regression on three features: a vector of four."""
    return Adapter.of(logistic(3, nnx.Rngs(0)))


def test_rows_have_fixed_slots():
    """Row i is in slot i, absent slots are zero and said to be absent."""
    placed = Records.place(np.ones((2, 3), np.float32), np.array([1, 1], np.int32), 4)
    assert placed.x.shape == (4, 3)
    assert placed.present.tolist() == [True, True, False, False]
    assert not placed.x[2:].any()
    assert placed.y.tolist() == [1, 1, 0, 0]


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
