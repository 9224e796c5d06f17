from dataclasses import dataclass

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fl.errors import ModelError
from fl.model import Adapter, Functional


@jax.tree_util.register_dataclass
@dataclass
class Module:
    """A callable pytree in the manner of Equinox: one record at a time, a function and an integer among its fields."""

    weight: jax.Array
    bias: jax.Array
    steps: jax.Array
    stream: jax.Array

    def __call__(self, x, *, key=None):
        """(3,) → (1,); a key drops half of the inputs."""
        if key is not None:
            x = jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x, 0)
        return self.weight @ x.astype(self.weight.dtype) + self.bias


@pytest.fixture
def module():
    """With bfloat16 parameters."""
    return Module(jnp.ones((1, 3), jnp.bfloat16), jnp.zeros(1, jnp.bfloat16), jnp.int32(7), jax.random.key(5))


def test_floats_are_shared_and_integers_stay(module):
    """Floating leaves leave the site, integers are local, keys are neither."""
    adapter = Adapter.of(module)
    assert {leaf.name: leaf.dtype for leaf in adapter.schema.leaves} == {".bias": "bfloat16", ".weight": "bfloat16"}
    assert list(adapter.local) == [".steps"]


def test_each_record_has_a_key_of_its_own(module):
    """Equal records in one batch are dropped differently in training, and not at all in evaluation."""
    adapter = Adapter.of(module)
    x = jnp.ones((32, 3))
    train, _, _ = adapter.forward(adapter.params, adapter.local, x, key=jax.random.key(0), train=True)
    still, _, _ = adapter.forward(adapter.params, adapter.local, x, key=jax.random.key(0), train=False)
    assert len(np.unique(np.asarray(train, np.float32))) > 1
    assert np.unique(np.asarray(still, np.float32)).tolist() == [3.0]
    assert jnp.array_equal(adapter.merge(adapter.params, adapter.local)(x[0]), still[0])


def running_mean(params, state, x, *, key, train):  # noqa: ARG001 - it draws nothing
    """A linear model that keeps a running mean of its inputs, in the manner of Haiku."""
    after = {"mean": 0.9 * state["mean"] + 0.1 * x.mean(axis=0), "seen": state["seen"] + 1} if train else state
    return (x - after["mean"]) @ params["linear"]["w"] + params["linear"]["b"], after


def test_functional_state_is_statistics_and_counters():
    """Parameters are shared; floating state is a statistic, and a counter stays whatever the policy says."""
    model = Functional(
        {"linear": {"w": jnp.ones((3, 1)), "b": jnp.zeros(1)}},
        running_mean,
        {"mean": jnp.zeros(3), "seen": jnp.int32(0)},
    )
    for policy, averaged in (("local", set()), ("shared", {"state['mean']"})):
        adapter = Adapter.of(model, batch_stats=policy)
        assert set(adapter.params) == {"['linear']['b']", "['linear']['w']"} | averaged
        assert set(adapter.local) == {"state['mean']", "state['seen']"} - averaged
        x = jnp.ones((4, 3))
        _, params, local = adapter.forward(adapter.params, adapter.local, x, key=jax.random.key(0), train=True)
        moved = (params | local)["state['mean']"]
        np.testing.assert_allclose(moved, 0.1)
        assert int(local["state['seen']"]) == 1
    merged = adapter.merge(params, local)
    assert merged.state["seen"] == 1


def test_what_is_no_model_is_refused():
    """A dict of arrays without a function, a function without arrays, a complex leaf: each named."""
    for thing in ({"w": jnp.ones(2)}, len, 3):
        with pytest.raises(ModelError, match="is not a model"):
            Adapter.of(thing)
    with pytest.raises(ModelError, match=r"leaf \['w'\] is complex"):
        Adapter.of(Functional({"w": jnp.ones(2, jnp.complex64)}, running_mean))


class Equinox(eqx.Module):
    """Two layers with dropout between them, of the library itself."""

    first: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    last: eqx.nn.Linear

    def __init__(self, key):
        one, two = jax.random.split(key)
        self.first, self.dropout = eqx.nn.Linear(3, 8, key=one), eqx.nn.Dropout(0.5)
        self.last = eqx.nn.Linear(8, 1, key=two)

    def __call__(self, x, *, key=None):
        """(3,) → (1,)."""
        return self.last(self.dropout(jax.nn.relu(self.first(x)), key=key))


def test_an_equinox_module_is_a_model():
    """Equinox's own layers: names, dropout by record in training, none in evaluation, and its own model back."""
    adapter = Adapter.of(Equinox(jax.random.key(0)))
    assert list(adapter.params) == [".first.bias", ".first.weight", ".last.bias", ".last.weight"]
    x = jnp.ones((16, 3))
    train, _, _ = adapter.forward(adapter.params, {}, x, key=jax.random.key(1), train=True)
    still, _, _ = adapter.forward(adapter.params, {}, x, key=jax.random.key(1), train=False)
    assert np.ptp(np.asarray(train)) > 0.01
    np.testing.assert_allclose(still, np.broadcast_to(adapter.merge(adapter.params, {})(x[0]), still.shape), rtol=1e-5)


def test_a_haiku_network_is_a_model():
    """Haiku's own transform as a `Functional`: parameters are shared, moving averages are statistics, counters stay."""
    net = hk.transform_with_state(lambda x, train: hk.Linear(1)(hk.BatchNorm(True, True, 0.9)(x, train)))
    x = jax.random.normal(jax.random.key(0), (8, 3))
    params, state = net.init(jax.random.key(1), x, True)
    model = Functional(params, lambda p, s, x, *, key, train: net.apply(p, s, key, x, train), state)
    adapter = Adapter.of(model, batch_stats="shared")
    assert set(adapter.params) - adapter.averaged == {
        "['batch_norm']['offset']",
        "['batch_norm']['scale']",
        "['linear']['b']",
        "['linear']['w']",
    }
    assert all(name.endswith("['counter']") for name in adapter.local)
    _, moved, _ = adapter.forward(adapter.params, adapter.local, x, key=jax.random.key(2), train=True)
    assert any(not np.array_equal(moved[name], adapter.params[name]) for name in adapter.averaged)
