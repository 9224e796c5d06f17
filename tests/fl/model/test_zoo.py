import jax.numpy as jnp
import pytest
from flax import nnx

from fl.errors import ConfigError
from fl.model import MLP, Adapter, factory


def test_factories():
    """Bundled models and any importable function build; anything else is refused by its key."""
    assert factory("logistic")(5, nnx.Rngs(0)).kernel.shape == (5, 1)
    sizes = dict(Adapter.of(factory("mlp", (4, 2))(3, nnx.Rngs(0))).schema.layout)
    assert sizes["['layers'][1]['kernel']"] == 8
    assert MLP(3, (4,), nnx.Rngs(0))(jnp.ones((2, 3))).shape == (2, 1)
    assert factory("fl.model:logistic")(5, nnx.Rngs(0)).kernel.shape == (5, 1)
    for bad in ("cnn", "no.such.module:f", "fl.model:nothing", "fl.model:LOSSES"):
        with pytest.raises(ConfigError, match=r"model\.kind"):
            factory(bad)


def test_an_mlp_takes_records_of_any_shape_and_gives_the_outputs_asked_for():
    """Images are flattened, and each class has a score."""
    assert factory("mlp", (8,), 10)(784, nnx.Rngs(0))(jnp.ones((2, 28, 28, 1))).shape == (2, 10)
    assert factory("logistic", (), 3)(5, nnx.Rngs(0))(jnp.ones((2, 5))).shape == (2, 3)


def failing(features, rngs):
    """A factory with a mistake of its own."""
    return {}[features, rngs]


def test_a_mistake_in_a_factory_is_the_keys():
    """Whatever a function of one's own raises is a refusal with the key and its name, and the error stays its cause."""
    with pytest.raises(
        ConfigError, match=r'^model\.kind: ".*:failing" cannot be built for 5 features: KeyError'
    ) as refused:
        factory(f"{__name__}:failing")(5, nnx.Rngs(0))
    assert isinstance(refused.value.__cause__, KeyError)
