import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fl.errors import ModelError
from fl.model.nnx import flatten


class Streams(nnx.Module):
    """A parameter, batch statistics, a plain array, and two random streams, one of them split."""

    def __init__(self, rngs):
        self.weight = nnx.Param(jnp.ones(4))
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.noise = rngs.split({"noise": 3})
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        """(batch, 4) → (batch, 4)."""
        return self.dropout(self.norm(x * self.weight.get_value()))


def test_every_variable_has_its_role():
    """By Variable type, then dtype: parameters, statistics, and no key or count of a random stream."""
    flat = flatten(Streams(nnx.Rngs(0, noise=1)))
    assert flat.trained == {"['weight']", "['norm']['bias']", "['norm']['scale']"}
    assert flat.statistics == {"['norm']['mean']", "['norm']['var']"}
    assert set(flat.leaves) == flat.trained | flat.statistics


def test_a_pass_moves_statistics_and_nothing_of_the_caller():
    """Training gives new statistics and leaves the given ones alone; the same key gives the same outputs."""
    flat = flatten(Streams(nnx.Rngs(0, noise=1)))
    x = jax.random.normal(jax.random.key(1), (8, 4))
    before = {name: np.asarray(value) for name, value in flat.leaves.items()}
    one, after = flat.apply(flat.leaves, x, jax.random.key(2), train=True)
    two, _ = flat.apply(flat.leaves, x, jax.random.key(2), train=True)
    assert np.array_equal(one, two)
    assert not np.array_equal(after["['norm']['mean']"], before["['norm']['mean']"])
    assert all(np.array_equal(before[name], value) for name, value in flat.leaves.items())


def test_a_variable_without_an_array_is_named():
    """A parameter that holds text cannot be summed."""

    class Odd(nnx.Module):
        def __init__(self):
            self.weight = nnx.Param("text")

    with pytest.raises(ModelError, match=r"leaf \['weight'\] holds a str"):
        flatten(Odd())
