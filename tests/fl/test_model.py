import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fl.errors import ConfigError, ModelError
from fl.model import LOSSES, MLP, Adapter, Schema, factory, logistic, rekey


class Mixed(nnx.Module):
    """Every kind of leaf that a real model has."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 1, rngs=rngs)])
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.scale = nnx.Param(jnp.float32(0.5))
        self.half = nnx.Param(jnp.array([1.5, -2.25], jnp.bfloat16))
        self.tiny = nnx.Param(jnp.array([0.5, 2.0], jnp.float8_e4m3fn))
        self.steps = nnx.Param(jnp.array([7], jnp.int32))
        self.flags = nnx.Param(jnp.array([True, False]))

    def __call__(self, x):
        """(batch, 3) → (batch, 1)."""
        return self.dropout(self.layers[1](self.norm(self.layers[0](x)))) * self.scale.get_value()


@pytest.fixture(scope="module")
def adapter():
    """The mixed model, split."""
    return Adapter.of(Mixed(nnx.Rngs(0)))


def raveled_names(adapter):
    """The shared leaves' names, in vector order."""
    return [leaf.name for leaf in adapter.schema.leaves]


def test_only_floating_parameters_are_shared(adapter):
    """F5: batch statistics, RNG state, integers and booleans stay local, by Variable type and then by dtype."""
    assert raveled_names(adapter) == [
        "['half']",
        "['layers'][0]['bias']",
        "['layers'][0]['kernel']",
        "['layers'][1]['bias']",
        "['layers'][1]['kernel']",
        "['norm']['bias']",
        "['norm']['scale']",
        "['scale']",
        "['tiny']",
    ]
    local = {path[0] for path, _ in nnx.to_flat_state(adapter.local)}
    assert local == {"norm", "dropout", "steps", "flags"}


def test_a_state_with_keys_ravels(adapter):
    """F6: a model that holds PRNG keys ravels to float64, because key data are split off."""
    vector = adapter.ravel(adapter.params)
    assert vector.shape == (adapter.schema.dimension,)
    assert vector.dtype == np.float64


def test_unravel_of_ravel_is_bitwise_the_same(adapter):
    """F4: bfloat16, float8 and 0-d leaves come back bit for bit, in their own dtypes."""
    back = adapter.unravel(adapter.ravel(adapter.params))
    for ours, theirs in zip(jax.tree.leaves(adapter.params), jax.tree.leaves(back), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


def test_a_0d_leaf_keeps_its_value(adapter):
    """S12: a 0-d parameter of 0.5 is one entry of the vector, and 0.5 again afterwards."""
    sizes = dict(adapter.schema.layout)
    assert sizes["['scale']"] == 1
    back = adapter.named(adapter.unravel(adapter.ravel(adapter.params)))
    assert back["['scale']"].shape == ()
    assert float(back["['scale']"]) == 0.5


@pytest.mark.parametrize("shape", [(1,), (0,), (38, 1)])
def test_a_vector_of_the_wrong_shape_is_refused(adapter, shape):
    """S8: a vector that would broadcast is refused with both shapes."""
    with pytest.raises(ModelError, match=rf"shape \({adapter.schema.dimension},\), not float64"):
        adapter.unravel(np.zeros(shape))


def test_an_integer_vector_is_refused(adapter):
    """Raw integers of the wire are never taken for a model."""
    with pytest.raises(ModelError, match="not int64"):
        adapter.unravel(np.zeros(adapter.schema.dimension, np.int64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda named: named.pop("['scale']"), r"leaf \['scale'\] is missing"),
        (lambda named: named.update({"['extra']": jnp.zeros(2)}), r"leaf \['extra'\] is not part of the model"),
        (
            lambda named: named.update({"['scale']": jnp.zeros(1)}),
            r"leaf \['scale'\] has shape \[1\], and must have \[\]",
        ),
        (
            lambda named: named.update({"['half']": jnp.zeros(2)}),
            r"leaf \['half'\] has dtype float32, and must have bfloat16",
        ),
    ],
    ids=["missing", "extra", "shape", "dtype"],
)
def test_a_leaf_that_differs_is_named(adapter, change, message):
    """F3, S8: a leaf that is missing, extra, or of another shape or dtype is refused by name."""
    named = dict(adapter.named(adapter.params))
    change(named)
    with pytest.raises(ModelError, match=message):
        adapter.from_named(named)


def test_ravel_refuses_parameters_of_another_model(adapter):
    """F3: a tree of another model does not ravel into this one's vector."""
    other = Adapter.of(logistic(3, nnx.Rngs(0)))
    with pytest.raises(ModelError, match="leaf"):
        adapter.ravel(other.params)


def test_named_leaves_round_trip_through_integer_keys(adapter):
    """F7: the layers of an nnx.List survive being stored under names, since names hold the index."""
    back = adapter.from_named({name: np.asarray(leaf) for name, leaf in adapter.named(adapter.params).items()})
    assert adapter.hash(back) == adapter.hash(adapter.params)
    outputs, _ = adapter.forward(back, adapter.local, jnp.ones((2, 3)), train=False)
    assert outputs.shape == (2, 1)


def test_hashes_tell_models_apart():
    """Schema hashes differ with shapes and dtypes, model hashes also with values."""
    three, four = Adapter.of(logistic(3, nnx.Rngs(0))), Adapter.of(logistic(4, nnx.Rngs(0)))
    assert three.schema.hash != four.schema.hash
    assert three.schema.hash == Adapter.of(logistic(3, nnx.Rngs(1))).schema.hash
    assert three.hash(three.params) != Adapter.of(logistic(3, nnx.Rngs(1))).hash(
        Adapter.of(logistic(3, nnx.Rngs(1))).params
    )
    assert len(three.schema.hash) == 64


def test_a_leaf_that_is_not_finite_is_named(adapter):
    """The finite check names the leaf, in small dtypes that overflow too."""
    vector = adapter.ravel(adapter.params)
    position = sum(size for name, size in adapter.schema.layout if name < "['tiny']")
    vector[position] = np.inf
    with pytest.raises(ModelError, match=r"leaf \['tiny'\] is not finite"):
        adapter.require_finite(adapter.unravel(vector))


def test_a_model_without_parameters_is_refused():
    """A model with nothing to train is refused, and so is a complex parameter, by name."""

    class Empty(nnx.Module):
        def __call__(self, x):
            return x

    class Complex(nnx.Module):
        def __init__(self):
            self.weight = nnx.Param(jnp.zeros(2, jnp.complex64))

    with pytest.raises(ModelError, match="nothing to train"):
        Adapter.of(Empty())
    with pytest.raises(ModelError, match=r"leaf \['weight'\] is complex"):
        Adapter.of(Complex())


def test_batch_statistics_are_coupled_leaves(adapter):
    """A training pass that changes batch statistics is found, and RNG counts or integers are not taken for it."""
    assert adapter.coupled_leaves(jnp.ones((1, 3))) == ("['norm']['mean']", "['norm']['var']")
    assert Adapter.of(logistic(3, nnx.Rngs(0))).coupled_leaves(jnp.ones((1, 3))) == ()


def test_rekeyed_streams_depend_on_the_key_only(adapter):
    """Dropout draws the same after any number of earlier draws, and differently under another key."""
    x = jnp.ones((8, 3))

    def outputs(local, key):
        return adapter.forward(adapter.params, rekey(local, key), x, train=True)

    first, after = outputs(adapter.local, jax.random.key(1))
    again, _ = outputs(after, jax.random.key(1))
    other, _ = outputs(adapter.local, jax.random.key(2))
    dropped = np.asarray(first) == 0
    assert np.array_equal(dropped, np.asarray(again) == 0)
    assert not np.array_equal(dropped, np.asarray(other) == 0)


def test_evaluation_mode_is_deterministic(adapter):
    """In evaluation there is no dropout and batch statistics do not move."""
    _, after = adapter.forward(adapter.params, adapter.local, jnp.ones((4, 3)), train=False)
    for before, later in zip(jax.tree.leaves(adapter.local), jax.tree.leaves(after), strict=True):
        assert jnp.all(before == later)
    merged = adapter.merge(adapter.params, adapter.local)
    assert jnp.array_equal(merged(jnp.ones((4, 3))), merged(jnp.ones((4, 3))))


def test_factories():
    """Bundled models and any importable function build; anything else is refused by its key."""
    assert factory("logistic")(5, nnx.Rngs(0)).kernel.shape == (5, 1)
    sizes = dict(Adapter.of(factory("mlp", (4, 2))(3, nnx.Rngs(0))).schema.layout)
    assert sizes["['layers'][1]['kernel']"] == 8
    assert MLP(3, (4,), nnx.Rngs(0))(jnp.ones((2, 3))).shape == (2, 1)
    assert factory("fl.model:logistic") is logistic
    for bad in ("cnn", "no.such.module:f", "fl.model:nothing", "fl.model:LOSSES"):
        with pytest.raises(ConfigError, match=r"model\.kind"):
            factory(bad)


def test_losses_refuse_an_output_of_the_wrong_shape():
    """Two scores a row would broadcast against the labels; the loss refuses them."""
    for loss in LOSSES.values():
        assert loss(jnp.zeros((3, 1)), jnp.array([0, 1, 1])).shape == (3,)
        with pytest.raises(ModelError, match="one score each"):
            loss(jnp.zeros((3, 2)), jnp.array([0, 1, 1]))


def test_schema_order_matters():
    """Schemas with the same leaves in another order are different, since the vector would be permuted."""
    schema = Adapter.of(MLP(3, (4,), nnx.Rngs(0))).schema
    with pytest.raises(ModelError, match="another order"):
        schema.require(Schema(schema.leaves[::-1]))
