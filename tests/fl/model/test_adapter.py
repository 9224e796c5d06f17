import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fl.errors import ConfigError, ModelError
from fl.model import Adapter, logistic

KEY = jax.random.key(0)


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
    assert set(adapter.local) == {"['norm']['mean']", "['norm']['var']", "['steps']", "['flags']"}


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
    back = adapter.unravel(adapter.ravel(adapter.params))
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
    named = dict(adapter.params)
    change(named)
    with pytest.raises(ModelError, match=message):
        adapter.checked(named)


def test_ravel_refuses_parameters_of_another_model(adapter):
    """F3: a tree of another model does not ravel into this one's vector."""
    other = Adapter.of(logistic(3, nnx.Rngs(0)))
    with pytest.raises(ModelError, match="leaf"):
        adapter.ravel(other.params)


def test_named_leaves_round_trip_through_integer_keys(adapter):
    """F7: the layers of an nnx.List survive being stored under names, since names hold the index."""
    back = adapter.checked({name: np.asarray(leaf) for name, leaf in adapter.params.items()})
    assert adapter.hash(back) == adapter.hash(adapter.params)
    outputs, _, _ = adapter.forward(back, adapter.local, jnp.ones((2, 3)), key=KEY, train=False)
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


def test_streams_depend_on_the_key_only(adapter):
    """Dropout draws the same after any number of earlier draws, and differently under another key."""
    x = jnp.ones((8, 3))

    def outputs(local, key):
        return adapter.forward(adapter.params, local, x, key=key, train=True)

    first, _, after = outputs(adapter.local, jax.random.key(1))
    again, _, _ = outputs(after, jax.random.key(1))
    other, _, _ = outputs(adapter.local, jax.random.key(2))
    dropped = np.asarray(first) == 0
    assert np.array_equal(dropped, np.asarray(again) == 0)
    assert not np.array_equal(dropped, np.asarray(other) == 0)


def test_evaluation_mode_is_deterministic(adapter):
    """In evaluation there is no dropout and batch statistics do not move."""
    _, _, after = adapter.forward(adapter.params, adapter.local, jnp.ones((4, 3)), key=KEY, train=False)
    for before, later in zip(jax.tree.leaves(adapter.local), jax.tree.leaves(after), strict=True):
        assert jnp.all(before == later)
    merged = adapter.merge(adapter.params, adapter.local)
    assert jnp.array_equal(merged(jnp.ones((4, 3))), merged(jnp.ones((4, 3))))


def test_what_leaves_by_name(adapter):
    """The traceable vector of the shared leaves holds the values of the exact one."""
    flat = adapter.flat(adapter.params)
    assert flat.dtype == jnp.float32
    assert np.array_equal(np.asarray(flat, np.float64), adapter.ravel(adapter.params))


def test_statistics_are_shared_where_the_policy_says_so():
    """Averaged statistics are part of the vector, move in training, and are no trained leaf."""
    adapter = Adapter.of(Mixed(nnx.Rngs(0)), batch_stats="shared")
    assert adapter.averaged == {"['norm']['mean']", "['norm']['var']"}
    assert adapter.averaged < set(adapter.params)
    assert set(adapter.local) == {"['steps']", "['flags']"}
    x = jax.random.normal(KEY, (8, 3))
    _, moved, _ = adapter.forward(adapter.params, adapter.local, x, key=KEY, train=True)
    changed = {name for name in adapter.params if not np.array_equal(moved[name], adapter.params[name])}
    assert changed == adapter.averaged
    assert not adapter.averaged & set(adapter.trainable(adapter.params, adapter.local))
    assert adapter.coupled_leaves(x) == ("['norm']['mean']", "['norm']['var']")


def test_personal_and_frozen_leaves_never_leave():
    """Personal leaves are trained and local; frozen ones are neither trained nor sent; both are still used."""
    adapter = Adapter.of(Mixed(nnx.Rngs(0)), personal=["norm.*"], frozen=["layers.0.*"])
    assert adapter.personal == {"['norm']['bias']", "['norm']['scale']"}
    assert set(adapter.frozen) == {"['layers'][0]['bias']", "['layers'][0]['kernel']"}
    assert not (adapter.personal | set(adapter.frozen)) & set(adapter.params)
    trained = adapter.trainable(adapter.params, adapter.local)
    assert adapter.personal < set(trained)
    params, local = adapter.put(adapter.params, adapter.local, {name: value + 1 for name, value in trained.items()})
    assert np.array_equal(local["['norm']['scale']"], adapter.local["['norm']['scale']"] + 1)
    assert np.array_equal(local["['norm']['mean']"], adapter.local["['norm']['mean']"])
    before, _, _ = adapter.forward(adapter.params, adapter.local, jnp.ones((2, 3)), key=KEY, train=False)
    after, _, _ = adapter.forward(adapter.params, local, jnp.ones((2, 3)), key=KEY, train=False)
    assert not np.array_equal(before, after)
    assert set(params) == set(adapter.params)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ({"personal": ["nrom.*"]}, r'model\.personal: "nrom\.\*" matches no floating leaf'),
        ({"frozen": ["steps"]}, r'model\.frozen: "steps" matches no floating leaf'),
        ({"personal": ["norm.*"], "frozen": ["*.scale"]}, r"leaf \['norm'\]\['scale'\] is frozen as well"),
    ],
)
def test_patterns_that_do_not_fit_are_refused(patterns, message):
    """A pattern without a leaf, an integer leaf, or a leaf that two keys claim is refused by its key."""
    with pytest.raises(ConfigError, match=message):
        Adapter.of(Mixed(nnx.Rngs(0)), **patterns)


def test_all_leaves_personal_leaves_nothing_to_share():
    """A federation that shares nothing is none."""
    with pytest.raises(ModelError, match="nothing to train"):
        Adapter.of(logistic(3, nnx.Rngs(0)), personal=["*"])


def test_the_fingerprint_covers_what_is_not_sent():
    """Another frozen value, or another role of a leaf, is another model, though the shared leaves are alike."""
    frozen = {"frozen": ["layers.0.*"]}
    one, same, other = (Adapter.of(Mixed(nnx.Rngs(seed)), **frozen) for seed in (0, 0, 1))
    assert one.fingerprint == same.fingerprint
    assert one.schema.hash == other.schema.hash
    assert one.fingerprint != other.fingerprint
    personal = Adapter.of(Mixed(nnx.Rngs(0)), personal=["layers.0.*"])
    assert personal.schema.hash == one.schema.hash
    assert personal.fingerprint != one.fingerprint


def test_what_is_told_beside_the_model_is_in_its_hash(adapter):
    """A vector that the server tells the sites beside the model changes the hash by name and by value."""
    vector = np.zeros(adapter.schema.dimension)
    hashes = {
        adapter.hash(adapter.params),
        adapter.hash(adapter.params, {"control": vector}),
        adapter.hash(adapter.params, {"other": vector}),
        adapter.hash(adapter.params, {"control": vector + 1}),
    }
    assert len(hashes) == 4
