"""The rows about models: which leaves are averaged, in which type, and under which name they come back from a disk."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax.flatten_util import ravel_pytree

from fl import run
from fl.algorithms import Server, SiteUpdate, WeightedEncoding, optimizer
from fl.checkpoint import Checkpoints
from fl.errors import ModelError, RoundFailedError, RunError
from fl.experiment import prepare
from fl.model import Adapter, Functional
from fl.simulation import Consortium
from fl.site import Announcement
from privacy.codec import FixedPoint
from secagg.testing import simulate_round

MODES = ("secure", "ideal", "plain")
SMALL_FLOATS = [
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "float8_e4m3b11fnuz",
]


class Leaves(nnx.Module):
    """A model of the given Variables; its score for a row is the sum of the row times `w`."""

    def __init__(self, **variables):
        for name, variable in variables.items():
            setattr(self, name, variable)

    def __call__(self, x):
        """(batch, features) → (batch,)."""
        return x @ self.w.get_value()


def announced(adapter):
    """Round 0 on a model."""
    return Announcement(0, 0, adapter.ravel(adapter.params), adapter.hash(adapter.params))


def pair(**more):
    """Two weights, and further Variables."""
    return Leaves(w=nnx.Param(jnp.zeros(2)), **more)


OTHER_MODELS = {
    "a parameter more": lambda: pair(more=nnx.Param(jnp.zeros(3))),
    "a 0-d parameter more": lambda: pair(more=nnx.Param(jnp.zeros(()))),
    "a statistic more": lambda: pair(more=nnx.BatchStat(jnp.zeros(3))),
    "a counter more": lambda: pair(more=nnx.Variable(jnp.int32(0))),
    "another name": lambda: Leaves(weight=nnx.Param(jnp.zeros(2))),
    "another dtype": lambda: Leaves(w=nnx.Param(jnp.zeros(2, jnp.bfloat16))),
}


@pytest.mark.case("F3")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("other", OTHER_MODELS)
def test_a_leaf_that_one_site_has_alone(toy, make_model, mode, other):
    """A site whose model has a leaf more, fewer, or under another name takes no part: the round says so by the site, in every mode."""
    make_model(lambda _features, _rngs: pair())
    experiment = prepare(toy("model.loss=squared", mode=mode), "run-1", silences={})
    consortium = Consortium(experiment, {})
    consortium.sites[2].adapter = Adapter.of(OTHER_MODELS[other]())
    with pytest.raises((RoundFailedError, ModelError), match=r"float vector of shape|not the one that was announced"):
        consortium.aggregate(announced(experiment.adapter))


@pytest.mark.case("F3")
@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        ({"['w']": np.zeros(2, np.float32), "['more']": np.zeros(3, np.float32)}, "leaf ['more'] is not part of the model"),
        ({"['more']": np.zeros(2, np.float32)}, "leaf ['w'] is missing: it must be float32[2]"),
        ({}, "leaf ['w'] is missing: it must be float32[2]"),
    ],
)  # fmt: skip
def test_a_foreign_leaf_is_named(leaves, message):
    """Whatever is given as the model's leaves from outside is held against the schema, and the leaf is named."""
    adapter = Adapter.of(pair())
    for read in (adapter.checked, adapter.ravel, lambda named: adapter.checked_local(named, adapter.params)):
        with pytest.raises(ModelError) as caught:
            read(leaves)
        assert str(caught.value) == message


@pytest.mark.case("F4")
@pytest.mark.parametrize("dtype", SMALL_FLOATS)
def test_every_value_of_a_small_type(dtype):
    """Every value that the type has goes through the vector that is summed and comes back bit for bit, in its dtype."""
    width = jnp.dtype(dtype).itemsize
    every = np.arange(2 ** (8 * width), dtype=f"uint{8 * width}").view(dtype)
    every = every[np.isfinite(every.astype(np.float32))]
    adapter = Adapter.of(Leaves(w=nnx.Param(jnp.asarray(every)), scale=nnx.Param(jnp.ones((), dtype))))
    back = adapter.unravel(adapter.ravel(adapter.params))
    assert {name: (leaf.shape, str(leaf.dtype)) for name, leaf in back.items()} == {
        "['w']": (every.shape, dtype),
        "['scale']": ((), dtype),
    }
    assert np.asarray(back["['w']"]).tobytes() == every.tobytes()


@pytest.mark.case("F4")
@pytest.mark.parametrize("dtype", SMALL_FLOATS)
def test_sums_are_not_taken_in_a_small_type(params_of, dtype):
    """The mean of a large value and many small ones is exact; in the small type they would be lost one after the other."""
    values = np.array([16.0, *[0.0625] * 32], dtype)
    layout = (("['w']", 1),)
    encoding = WeightedEncoding(layout, FixedPoint(64.0, 32, 1), 10)
    params = params_of(len(values), encoding.blocks(len(values)))
    inputs = {i: encoding.encode(SiteUpdate(values[i : i + 1], 1, 0.0)) for i in params.cohort}
    mean = -encoding.decode(simulate_round(params, inputs).sums).gradient[0]
    assert mean == 18.0 / 33
    naive = values[0]
    for value in values[1:]:
        naive = np.asarray(naive + value, dtype)[()]
    assert (float(naive) == 16.0) == (dtype != "float16")


class Mixture(nnx.Module):
    """One parameter of each small type."""

    def __init__(self, dtypes):
        for dtype in dtypes:
            setattr(self, dtype, nnx.Param(jnp.zeros(2, dtype)))
        self.dtypes = tuple(dtypes)

    def __call__(self, x):
        """(batch, features) → (batch,)."""
        return sum(x @ getattr(self, dtype).get_value().astype(jnp.float32) for dtype in self.dtypes)


@pytest.mark.case("F4")
@pytest.mark.parametrize("mode", MODES)
def test_a_run_on_small_types(toy, tmp_path, spoil, *, make_model, mean_of, mode):
    """Leaves of every small type are trained together, and each comes out in its own type, at the cast of the exact mean."""
    dtypes = ["bfloat16", "float16", "float32", "float8_e4m3fn", "float8_e5m2"]
    make_model(lambda _features, _rngs: Mixture(dtypes))
    updates = spoil()
    config = toy("model.loss=squared", mode=mode)
    trained = run(config, out=tmp_path / "run").model
    mean = mean_of(updates.values()).reshape(len(dtypes), 2)
    for dtype, expected in zip(sorted(dtypes), mean, strict=True):
        leaf = np.asarray(getattr(trained, dtype).get_value())
        assert str(leaf.dtype) == dtype
        # The mean is rounded to 2^-33, and the cast of what it was rounded to can be the type's next value.
        step = float(jnp.finfo(dtype).eps) * np.abs(expected) + 2.0**-32
        assert (np.abs(leaf.astype(np.float64) - expected) <= step).all()
        assert leaf.astype(np.float64).any()


class Counting(nnx.Module):
    """Beside its weights: a counter that each pass moves, a mask, statistics of two dtypes, random streams and bare keys."""

    def __init__(self, rngs):
        self.w = nnx.Param(jnp.zeros(2))
        self.table = nnx.Param(jnp.arange(3, dtype=jnp.int32))
        self.steps = nnx.Variable(jnp.int32(2**30))
        self.mask = nnx.Param(jnp.array([True, False]))
        self.seen = nnx.BatchStat(jnp.zeros(()))
        self.tracked = nnx.BatchStat(jnp.int32(0))
        self.key = nnx.Variable(jax.random.key(3))
        self.raw = nnx.Variable(jax.random.PRNGKey(4))
        self.dropout = nnx.Dropout(0.25, rngs=rngs)

    def __call__(self, x):
        """(batch, features) → (batch,)."""
        if not self.dropout.deterministic:
            self.steps.set_value(self.steps.get_value() + 1)
            self.tracked.set_value(self.tracked.get_value() + len(x))
            self.seen.set_value(self.seen.get_value() + jnp.mean(x))
        return self.dropout(x) @ self.w.get_value()


@pytest.mark.case("F5")
@pytest.mark.parametrize("batch_stats", ["local", "shared"])
def test_what_is_averaged_goes_by_its_type(toy, tmp_path, make_model, *, spoil, mean_of, batch_stats):
    """Floating parameters travel, statistics where it is agreed; counters, masks and keys are in no sum and stay as each site has them."""
    make_model(lambda _features, rngs: Counting(rngs))
    config = toy("model.loss=squared", f"model.batch_stats={batch_stats}", "algorithm.local_steps=3")
    experiment = prepare(config, "run-1")
    adapter = experiment.adapter
    shared = ["['seen']"] * (batch_stats == "shared") + ["['w']"]
    mine = {"['table']", "['steps']", "['mask']", "['tracked']", "['raw']"}
    assert [leaf.name for leaf in adapter.schema.leaves] == shared
    assert set(adapter.local) == mine | ({"['seen']"} - set(shared))
    updates = spoil()
    result = run(config, out=tmp_path / "run")
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoint")
    state, sites = checkpoints.load(adapter, experiment.algorithm.init(adapter.params), [adapter.local] * 4)
    checkpoints.close()
    np.testing.assert_allclose(adapter.ravel(state.params), mean_of(updates.values()), rtol=0, atol=2.0**-20)
    assert [int(site["['steps']"]) for site in sites] == [2**30 + 3] * 4
    assert [int(site["['tracked']"]) for site in sites] == [
        64 * 3 if rows > 32 else 32 * 3 for rows in slots(experiment)
    ]
    for name in ("table", "mask", "raw"):
        before = np.asarray(adapter.local[f"['{name}']"]).tolist()
        assert [np.asarray(site[f"['{name}']"]).tolist() for site in sites] == [before] * 4
    for name in (
        "table",
        "steps",
        "mask",
        "tracked",
        "raw",
    ):  # the published model has them of somebody, and not of a mixture
        published = np.asarray(getattr(result.model, name).get_value())
        assert published.dtype == adapter.local[f"['{name}']"].dtype
        assert published.tolist() in [np.asarray(own[f"['{name}']"]).tolist() for own in (adapter.local, *sites)]
    if batch_stats == "local":
        assert len({float(site["['seen']"]) for site in sites}) == 4


def slots(experiment):
    """Slots of each site's rows, which a batch of more rows than that has."""
    return [experiment.algorithm.slots(len(site.y)) for site in experiment.train.values()]


@pytest.mark.case("F5")
@pytest.mark.parametrize("wide", [True, False], ids=["64-bit JAX", "32-bit JAX"])
def test_counters_of_64_bits(wide):
    """An int64 counter beside the weights keeps every bit, whether JAX computes in 64 bits or not, and is no part of what travels."""
    with jax.enable_x64(wide):
        counter = np.array([2**62 + 1, -(2**53) - 1])
        built = pair(calls=nnx.Variable(counter), table=nnx.Param(counter.copy()))
        adapter = Adapter.of(built)
        assert {leaf.name for leaf in adapter.schema.leaves} == {"['w']"}
        trained = adapter.unravel(adapter.ravel(adapter.params) + 0.5)
        x = jnp.ones((1, 2))
        _, params, local = adapter.forward(trained, adapter.local, x, key=jax.random.key(0), train=True)
        after = adapter.merge(params, local)
        for variable in (after.calls, after.table):
            value = np.asarray(variable.get_value())
            assert (str(value.dtype), value.tolist()) == ("int64", counter.tolist())


class LinenCounting(linen.Module):
    """The same in Linen: a collection of counters, and batch statistics."""

    @linen.compact
    def __call__(self, x, *, train):
        """(batch, features) → (batch,)."""
        calls = self.variable("counts", "calls", lambda: jnp.int32(7))
        flags = self.variable("counts", "flags", lambda: jnp.array([True, False]))
        seen = self.variable("batch_stats", "seen", lambda: jnp.zeros(()))
        if train and not self.is_initializing():
            calls.value += flags.value.sum()
            seen.value += jnp.mean(x)
        return linen.Dense(1, use_bias=False)(x)[:, 0]


def functional_counting():
    """The same as a plain pytree and a function."""

    def apply(params, state, x, *, key, train):  # noqa: ARG001 - the adapter's call
        after = state | {"calls": state["calls"] + 1, "seen": state["seen"] + jnp.mean(x)} if train else state
        return x @ params["w"], after

    params = {"w": jnp.zeros(2), "table": jnp.arange(3), "key": jax.random.key(0)}
    state = {"calls": jnp.int32(7), "flags": jnp.array([True]), "seen": jnp.zeros(()), "key": jax.random.key(1)}
    return Functional(params, apply, state)


@pytest.mark.case("F5")
@pytest.mark.parametrize("kind", ["linen", "functional"])
def test_other_frameworks_counters(kind):
    """In Linen by the collection, in a plain pytree by what is a parameter: floats of these travel, nothing else does."""
    built = LinenCounting() if kind == "linen" else functional_counting()
    adapter = Adapter.of(built, example=jnp.zeros((1, 2)), key=jax.random.key(0))
    [leaf] = adapter.schema.leaves
    assert leaf.dtype == "float32"
    counters = [name for name in adapter.local if "calls" in name]
    assert len(counters) == 1
    before = adapter.local[counters[0]]
    _, params, local = adapter.forward(
        adapter.params, adapter.local, jnp.ones((4, 2)), key=jax.random.key(1), train=True
    )
    assert int(local[counters[0]]) == int(before) + 1
    assert {name: leaf.dtype for name, leaf in local.items()} == {n: leaf.dtype for n, leaf in adapter.local.items()}
    assert not [name for name in {**params, **local} if "key" in name]


class Streams(nnx.Module):
    """Dropout, and keys in every form in which a model can hold one."""

    def __init__(self, rngs):
        self.w = nnx.Param(jnp.ones((2, 1)))
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.rngs = rngs
        self.typed = nnx.Variable(jax.random.key(1))
        self.several = nnx.Variable(jax.random.split(jax.random.key(2), 3))
        self.legacy = nnx.RngKey(jax.random.PRNGKey(5), tag="legacy")
        self.count = nnx.RngCount(jnp.uint32(3), tag="legacy")

    def __call__(self, x):
        """(batch, 2) → (batch,)."""
        return (self.dropout(x) @ self.w.get_value())[:, 0]


@pytest.mark.case("F6")
def test_a_state_with_keys_is_raveled():
    """Where `ravel_pytree` fails, the adapter splits the keys off: the vector has the parameters, the model runs and comes back whole."""
    built = Streams(nnx.Rngs(0))
    with pytest.raises(TypeError):
        ravel_pytree(nnx.state(built))
    adapter = Adapter.of(built)
    assert adapter.ravel(adapter.params).tolist() == [1.0, 1.0]
    assert not [value for value in adapter.local.values() if jnp.issubdtype(value.dtype, jax.dtypes.prng_key)]
    merged = adapter.merge(adapter.unravel(adapter.ravel(adapter.params) * 3), adapter.local)
    x = jnp.ones((4, 2))
    assert merged(x).tolist() == [6.0] * 4
    kinds = {name: getattr(merged, name).get_value() for name in ("typed", "several")}
    assert {name: (key.shape, key.dtype) for name, key in kinds.items()} == {
        "typed": ((), jax.random.key(0).dtype),
        "several": ((3,), jax.random.key(0).dtype),
    }


@pytest.mark.case("F6")
def test_the_key_of_a_pass_is_the_pass_s():
    """Dropout follows the key that a pass is given, compiled or not, and no state of the model."""
    adapter = Adapter.of(Streams(nnx.Rngs(0)))
    other = Adapter.of(Streams(nnx.Rngs(99)))
    x = jnp.ones((64, 2))

    def scores(of, seed, *, train=True):
        forward = jax.jit(lambda key: of.forward(of.params, of.local, x, key=key, train=train)[0])
        return forward(jax.random.key(seed)).tolist()

    assert scores(adapter, 0) == scores(adapter, 0) == scores(other, 0)
    assert scores(adapter, 0) != scores(adapter, 1)
    assert scores(adapter, 0, train=False) == scores(adapter, 1, train=False) == [2.0] * 64


@pytest.mark.case("F6")
def test_a_run_with_keys_in_the_state(toy, tmp_path, make_model):
    """Such a model goes through a whole run, checkpoint included, and the same run again gives the same bits."""
    make_model(lambda _features, rngs: Streams(rngs))
    weights = [
        np.asarray(run(toy("model.loss=squared", rounds=2), out=tmp_path / name).model.w.get_value()).tobytes()
        for name in ("one", "two")
    ]
    assert weights[0] == weights[1] != np.ones((2, 1), np.float32).tobytes()


class Deep(nnx.Module):
    """Twelve layers in a list: index 10 comes before 2 where indices became strings."""

    def __init__(self, rngs, layers=12):
        self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(layers)])

    def __call__(self, x):
        """(batch, 2) → (batch,)."""
        for layer in self.layers:
            x = layer(x)
        return x[:, 0]


def keyed_by_both():
    """A pytree with the keys 0 and "0"."""
    tree = {"a": {0: jnp.array([1.0]), 1: jnp.array([2.0])}, "b": {"0": jnp.array([3.0])}, "c": [jnp.array([4.0])]}
    return Functional(tree, lambda params, state, x, *, key, train: (x[:, 0] * params["a"][0], state))  # noqa: ARG005 - the adapter's call


@pytest.mark.case("F7")
@pytest.mark.parametrize("build", [lambda: Deep(nnx.Rngs(0)), keyed_by_both], ids=["nnx.List", "pytree"])
def test_integer_keys_through_a_checkpoint(tmp_path, build):
    """Leaves under integer keys, adaptive optimiser state for them, and a site's own ones come back bit for bit, under their names."""
    adapter = Adapter.of(build())
    server = Server(adapter, optimizer("server", "yogi", 0.1, {}), "last", 10)
    state = dataclasses.replace(server.init(adapter.unravel(adapter.ravel(adapter.params) + 0.25)), round=3)
    sites = [{name: value + i for name, value in adapter.params.items()} for i in range(3)]
    checkpoints = Checkpoints(tmp_path / "checkpoint")
    checkpoints.save(state, sites)
    back, local = checkpoints.load(adapter, server.init(adapter.params), [adapter.params] * 3)
    checkpoints.close()
    same(back.params, state.params)
    same(back.opt_state, state.opt_state)
    same(list(local), sites)
    assert back.round == 3
    moved = dataclasses.replace(back, params=adapter.unravel(adapter.ravel(back.params) * 2))
    assert adapter.hash(moved.params) != adapter.hash(back.params)


@pytest.mark.case("F7")
def test_a_list_goes_on_from_a_checkpoint(toy, tmp_path, make_model):
    """After a run the checkpoint of a model with a list is the published model, and a step from it moves every layer."""
    make_model(lambda _features, rngs: Deep(rngs))
    config = toy("model.loss=squared", "model.personal=['layers.3.*']", "algorithm.learning_rate=0.01", rounds=2)
    experiment = prepare(config, "run-1")
    result = run(config, out=tmp_path / "run")
    adapter, sites = experiment.adapter, [experiment.algorithm.local] * 4
    assert adapter.personal == {"['layers'][3]['bias']", "['layers'][3]['kernel']"}
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoint")
    state, local = checkpoints.load(adapter, experiment.algorithm.init(adapter.params), sites)
    checkpoints.close()
    for index in (0, 2, 10, 11):
        published = np.asarray(result.model.layers[index].kernel.get_value())
        assert published.tobytes() == np.asarray(state.params[f"['layers'][{index}]['kernel']"]).tobytes()
        assert not np.array_equal(published, adapter.params[f"['layers'][{index}]['kernel']"])
    kernels = {np.asarray(site["['layers'][3]['kernel']"]).tobytes() for site in local}
    assert len(kernels) == 4


@pytest.mark.case("F7")
@pytest.mark.parametrize("layers", [11, 13])
def test_a_checkpoint_of_another_list(tmp_path, layers):
    """A checkpoint whose list is shorter or longer is an error by the leaf; nothing is taken from it in silence."""
    adapter, other = Adapter.of(Deep(nnx.Rngs(0))), Adapter.of(Deep(nnx.Rngs(0), layers))
    server = Server(adapter, optimizer("server", "sgd", 1.0, {}), "last", 10)
    checkpoints = Checkpoints(tmp_path / "checkpoint")
    checkpoints.save(server.init(adapter.params))
    theirs = dataclasses.replace(server, adapter=other)
    with pytest.raises((ModelError, RunError), match=r"leaf \['layers'\]\[1[12]\]\['(bias|kernel)'\]"):
        checkpoints.load(other, theirs.init(other.params))
    checkpoints.close()


def same(one, other):
    """That two trees are bitwise the same, names and types too."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        a, b = np.asarray(a), np.asarray(b)  # noqa: PLW2901 - the same values
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
