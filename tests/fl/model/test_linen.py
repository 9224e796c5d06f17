import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fl.errors import ModelError
from fl.model import Adapter


class Net(nn.Module):
    """Batch normalisation and dropout, told whether this is training."""

    @nn.compact
    def __call__(self, x, train):
        """(batch, 3) → (batch, 1)."""
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x)))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        self.sow("intermediates", "hidden", x)
        return nn.Dense(1)(x)


class Plain(nn.Module):
    """Told the opposite: whether it is deterministic."""

    @nn.compact
    def __call__(self, x, deterministic):
        """(batch, 3) → (batch, 1)."""
        return nn.Dense(1)(nn.Dropout(0.5, deterministic=deterministic)(x))


@pytest.fixture(scope="module")
def adapter():
    """The net, initialised on one made-up record."""
    return Adapter.of(Net(), example=jnp.zeros((1, 3)), key=jax.random.key(0))


def test_collections_have_their_roles(adapter):
    """`params` are shared, `batch_stats` stay, and what was sown is no state."""
    assert list(adapter.params) == [
        "['params']['BatchNorm_0']['bias']",
        "['params']['BatchNorm_0']['scale']",
        "['params']['Dense_0']['bias']",
        "['params']['Dense_0']['kernel']",
        "['params']['Dense_1']['bias']",
        "['params']['Dense_1']['kernel']",
    ]
    assert list(adapter.local) == ["['batch_stats']['BatchNorm_0']['mean']", "['batch_stats']['BatchNorm_0']['var']"]
    assert adapter.coupled_leaves(jnp.ones((1, 3))) == tuple(adapter.local)


def test_training_and_evaluation_differ(adapter):
    """The mode reaches the module: dropout and moving statistics in training, neither in evaluation."""
    x = jax.random.normal(jax.random.key(1), (16, 3))
    one, _, after = adapter.forward(adapter.params, adapter.local, x, key=jax.random.key(2), train=True)
    two, _, _ = adapter.forward(adapter.params, adapter.local, x, key=jax.random.key(3), train=True)
    assert not np.array_equal(one, two)
    assert all(not np.array_equal(after[name], value) for name, value in adapter.local.items())
    three, _, still = adapter.forward(adapter.params, adapter.local, x, key=jax.random.key(2), train=False)
    assert all(np.array_equal(still[name], value) for name, value in adapter.local.items())
    assert np.array_equal(three, adapter.merge(adapter.params, adapter.local)(x, train=False))


def test_a_deterministic_flag_is_the_opposite():
    """A module with `deterministic` drops nothing in evaluation and something in training."""
    adapter = Adapter.of(Plain(), example=jnp.zeros((1, 3)), key=jax.random.key(0))
    x = jnp.ones((64, 3))
    outputs = [adapter.forward(adapter.params, {}, x, key=jax.random.key(1), train=train)[0] for train in (True, False)]
    assert len(np.unique(outputs[0])) > 1
    assert len(np.unique(outputs[1])) == 1


def test_an_example_is_needed():
    """A Linen module has no shapes of its own."""
    with pytest.raises(ModelError, match="example record"):
        Adapter.of(Net())
