import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fl.errors import ConfigError, ModelError
from fl.model import LOSSES, loss_function


def test_losses_refuse_an_output_of_the_wrong_shape():
    """Two scores a row would broadcast against the labels; the loss refuses them."""
    for name in ("logistic", "squared"):
        loss = LOSSES[name]
        assert loss(jnp.zeros((3, 1)), jnp.array([0, 1, 1])).shape == (3,)
        with pytest.raises(ModelError, match="one score each"):
            loss(jnp.zeros((3, 2)), jnp.array([0, 1, 1]))


def test_softmax_is_the_mean_over_a_records_own_labels():
    """One loss per record: of its class, or the mean over its tokens."""
    outputs = jax.random.normal(jax.random.key(0), (2, 3, 5))
    y = jnp.array([[0, 1, 2], [4, 3, 2]])
    loss = loss_function("softmax")
    tokens = -jnp.take_along_axis(jax.nn.log_softmax(outputs), y[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(loss(outputs, y), tokens.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(loss(outputs[:, 0], y[:, 0]), tokens[:, 0], rtol=1e-6)
    with pytest.raises(ModelError, match="scores by class"):
        loss(outputs[:, 0], y)


def test_class_weights_scale_a_record_by_its_label():
    """A record of class 1 counts five times; a label without a weight makes the loss NaN, which no site sends."""
    outputs, y = jnp.zeros((3, 1)), jnp.array([0, 1, 2])
    plain, weighted = loss_function("logistic"), loss_function("logistic", (1.0, 5.0))
    np.testing.assert_allclose(weighted(outputs[:2], y[:2]), plain(outputs[:2], y[:2]) * jnp.array([1.0, 5.0]))
    assert np.isnan(weighted(outputs, y)[2])


def own_loss(outputs, y):
    """A loss of the tests' own: one per record."""
    return jnp.abs(outputs[:, 0] - y)


def total_loss(outputs, y):
    """Not one per record."""
    return jnp.sum(own_loss(outputs, y))


def test_a_loss_of_ones_own():
    """A function by name is a loss; one that does not give one loss per record is refused by name."""
    loss = loss_function(f"{__name__}:own_loss")
    assert loss(jnp.array([[1.0], [3.0]]), jnp.array([0, 1])).tolist() == [1.0, 2.0]
    with pytest.raises(ModelError, match="total_loss gives shape"):
        loss_function(f"{__name__}:total_loss")(jnp.ones((2, 1)), jnp.ones(2))
    for bad in ("hinge", "no.such.module:f", "fl.model:LOSSES"):
        with pytest.raises(ConfigError, match=r"model\.loss"):
            loss_function(bad)
