import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from flax import linen, nnx

from fl.algorithms import Server
from fl.builders import (
    build_adapter,
    build_algorithm,
    build_optimizer,
    build_plan,
    example_of,
    require_fit,
    unprotected,
)
from fl.config import build_config
from fl.data import SiteData
from fl.errors import ConfigError, DataError, ModelError
from fl.model import Functional
from fl.sections import FedSgd

CLIENT = "privacy={epsilon=20.0,delta=1e-4,unit='client',divisor=4,clip=0.5,dropouts=1,colluders=1}"


X, Y = np.zeros((3, 2), np.float32), np.zeros(3, np.int32)


def site(name="a", x=X, y=Y):
    """A site's rows."""
    return SiteData(name, x, y, (), name)


def config(*overrides):
    """Federated averaging of logistic regression."""
    table = {"name": "x", "rounds": 2, "data": {"bundled": "heart"}, "algorithm": {"name": "fedavg", "local_epochs": 1}}
    return build_config(table, overrides)


def algorithm(*overrides, sites=4):
    """The algorithm over four sites with two features."""
    chosen = config(*overrides)
    example = example_of({"a": site()})
    adapter = build_adapter(chosen, example)
    plan = build_plan(chosen, sites, adapter.schema.dimension)
    server = Server(adapter, build_optimizer(chosen), chosen.server.average, chosen.rounds, plan)
    return build_algorithm(chosen, server, plan, sites, example)


def test_unprotected_is_what_privacy_is_compared_with():
    """No plan, no protocol, nobody silent; record-level descent becomes whole gradients, and the rest stays."""
    record = "privacy={epsilon=1,delta=1e-4,divisor=4,records_per_site=9,dropouts=1}"
    chosen = config("algorithm={name='dp_fedsgd'}", record, "simulation={drop_rate=0.5,baselines=true}", "mode=local")
    bare = unprotected(chosen)
    assert (bare.privacy, bare.secagg.mode, bare.algorithm) == (None, "plain", FedSgd())
    assert (bare.simulation.drop_rate, bare.simulation.baselines) == (0.0, False)
    assert (bare.mode, bare.seed, bare.rounds, bare.server, bare.model) == (
        chosen.mode,
        chosen.seed,
        chosen.rounds,
        chosen.server,
        chosen.model,
    )
    averaging = config("algorithm.proximal=0.5", CLIENT)
    assert unprotected(averaging).algorithm == averaging.algorithm
    assert unprotected(bare) == bare


def test_the_example_has_the_datas_shape():
    """One record of zeros, of the sites' shape and type."""
    example = example_of(
        {"a": site(x=np.ones((3, 4, 4), np.int32)), "b": site("b", np.ones((0, 4, 4), np.int32), np.zeros(0, np.int32))}
    )
    assert (example.shape, example.dtype, example.any()) == ((1, 4, 4), np.int32, False)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (
            {"x": np.zeros((3, 5), np.float32)},
            r"site b: records are float32\[5\], those of the first site are float32\[2\]",
        ),
        ({"x": np.zeros((3, 2), np.int32)}, r"site b: records are int32\[2\]"),
        ({"y": np.zeros(3, np.float32)}, r"site b: labels are float32\[\], those of the first site are int32\[\]"),
        ({"y": np.zeros((3, 2), np.int32)}, r"site b: labels are int32\[2\]"),
    ],
)
def test_sites_of_another_shape_are_named(odd, message):
    """F3: a site whose records or labels differ from the others' is refused by its name and both shapes."""
    with pytest.raises(DataError, match=message):
        example_of({"a": site(), "b": site("b", **odd)})


@pytest.mark.parametrize(
    ("overrides", "given", "error", "message"),
    [
        (
            ["model={kind='mlp',outputs=3,loss='softmax'}"],
            {"y": [0, 2, 3]},
            DataError,
            "site a: .* number of outputs, 3",
        ),
        (["model={kind='mlp',outputs=3}"], {"y": [0, 1, 1]}, ModelError, "one score each"),
        (["model={loss='softmax'}"], {"y": [0, 1, 1]}, DataError, "number of outputs, 1"),
        (["model={class_weights=[1.0]}"], {"y": [0, 1, 1]}, DataError, "site a: .* number of class weights, 1"),
        (["model={class_weights=[1.0,2.0]}"], {"y": [0, 1, 2]}, DataError, "labels other than 0 and 1"),
        (
            ["model={class_weights=[1.0,2.0],loss='squared'}"],
            {"y": [0.5, 1, 1]},
            DataError,
            "number of class weights, 2",
        ),
        (
            [f"model={{kind='{__name__}:narrow'}}"],
            {},
            ConfigError,
            r'model\.kind: ".*:narrow" does not take records float32\[2\]: ',
        ),
    ],
)
def test_what_does_not_go_together_is_refused(overrides, given, error, message):
    """Labels beyond the outputs or the weights, a wrong number of scores, and a model for other records: before training."""
    chosen = config(*overrides)
    values = given.get("y", [0, 1, 1])
    train = {"a": site(y=np.array(values, np.float32 if 0.5 in values else np.int32))}
    adapter = build_adapter(chosen, example_of(train))
    with pytest.raises(error, match=message):
        require_fit(chosen, adapter, train)
    require_fit(config(), build_adapter(config(), example_of(train)), {"a": site()})


def narrow(features, rngs):
    """A model for records of five features."""
    del features
    return nnx.Linear(5, 1, rngs=rngs)


def shaped(features, rngs):
    """A model that is told the shape of an image, or a number of features."""
    width = features if isinstance(features, int) else features[0] * features[1]
    return nnx.Sequential(
        lambda x: x.reshape(len(x), -1), nnx.BatchNorm(width, rngs=rngs), nnx.Linear(width, 1, rngs=rngs)
    )


def test_a_model_of_ones_own_is_told_the_shape():
    """A number of features for rows of a table, else a record's shape; what is personal, frozen and shared follows the keys."""
    chosen = config(
        f"model={{kind='{__name__}:shaped',personal=['layers.2.*'],frozen=['*.scale'],batch_stats='shared'}}"
    )
    adapter = build_adapter(chosen, example_of({"a": site(x=np.zeros((3, 4, 4), np.float32))}))
    assert adapter.params["['layers'][1]['mean']"].shape == (16,)
    assert (len(adapter.personal), len(adapter.frozen), len(adapter.averaged)) == (2, 1, 2)
    assert build_adapter(config(f"model.kind={__name__}:shaped"), example_of({"a": site()})).schema.dimension == 7


def test_a_plan_is_solved_where_there_is_a_budget():
    """Without a section none; with one, for the sites and the dimension at hand."""
    assert build_plan(config(), 4, 3) is None
    plan = build_plan(config(CLIENT), 5, 3)
    assert (plan.sites, plan.dimension, plan.rounds, plan.unit, plan.relation) == (5, 3, 2, "client", "zero-out")


def test_algorithms_send_what_they_need():
    """Blocks, what is told beside the model, and the cap on rows, by the algorithm's name."""
    averaging, descent = algorithm("algorithm.max_weight=100"), algorithm("algorithm={name='fedsgd'}")
    for made, cap in ((averaging, 100), (descent, 2**16)):
        assert [block.name for block in made.blocks] == ["update", "weight", "loss"]
        assert (made.max_rows, made.broadcast) == (cap, ())
    variates = algorithm("algorithm={name='scaffold',local_epochs=1}")
    assert [block.name for block in variates.blocks] == ["update", "control", "weight", "loss"]
    assert variates.broadcast == ("control",)
    for override in ("algorithm.upload=gradient", "algorithm={name='fedsgd'}"):
        clipped = algorithm(override, CLIENT)
        assert [block.name for block in clipped.blocks] == ["update"]
        assert clipped.decode({"update": np.full(3, 2**20)}).gradient.min() > 0  # a gradient, not its opposite
    record = msgspec.structs.replace(config(), algorithm=DP)
    with pytest.raises(ConfigError, match=r"needs a \[privacy\] section"):
        build_algorithm(record, None, None, 4, None)


DP = config("algorithm={name='dp_fedsgd'}", "privacy={epsilon=1,delta=1e-4,divisor=4,records_per_site=9}").algorithm


def test_floats_have_no_cap():
    """In plain mode nothing can wrap: neither rows nor the number of sites are limited by a ring."""
    many = ("algorithm.fraction_bits=52", "algorithm.max_weight=4194304")
    with pytest.raises(ConfigError, match=r"algorithm\.limit"):
        algorithm(*many)
    assert algorithm(*many, "secagg.mode=plain").max_rows > 10**9
    assert algorithm("algorithm={name='scaffold',local_epochs=1}", "secagg.mode=plain").max_rows > 10**9


def growing(features, rngs):
    """A function whose state has another shape after each pass."""
    del rngs

    def apply(params, state, x, *, key, train):
        del key
        return x @ params, {"seen": jnp.concatenate([state["seen"], x[:, 0]])} if train else state

    return Functional(jnp.zeros(features), apply, {"seen": jnp.zeros(1)})


def sprouting(features, rngs):
    """A function whose state has a further leaf after a training pass; its key is no leaf."""
    del rngs
    state = {"seen": jnp.zeros(()), "key": jax.random.key(0)}

    def apply(params, state, x, *, key, train):
        del key
        return x @ params, state | ({"more": x.sum()} if train else {})

    return Functional(jnp.zeros(features), apply, state)


def raising(features, rngs):
    """A function that makes a mistake in a training pass."""
    del rngs

    def apply(params, state, x, *, key, train):
        del key
        return x @ params, state["absent"] if train else state

    return Functional(jnp.zeros(features), apply, {})


class Late(linen.Module):
    """With a variable that only a training pass makes, in a collection that is there already or not."""

    collection: str

    @linen.compact
    def __call__(self, x, train: bool):
        """X (batch, features) → (batch, 1)."""
        self.variable("batch_stats", "mean", jnp.zeros, ())
        if train:
            self.variable(self.collection, "late", jnp.zeros, ())
        return linen.Dense(1)(x)


def late(features, rngs):
    """The collection is there already."""
    del features, rngs
    return Late("batch_stats")


def later(features, rngs):
    """The collection is not there."""
    del features, rngs
    return Late("other")


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        ("growing", ModelError, r"leaf state\['seen'\] is float32\[1\], and after a training pass float32\[3\]"),
        ("sprouting", ModelError, r"leaf state\['more'\] is there only after a training pass"),
        ("raising", ConfigError, "cannot make a training pass: KeyError: 'absent'"),
        ("late", ModelError, r"leaf \['batch_stats'\]\['late'\] is there only after a training pass"),
        ("later", ModelError, "has a variable that only a training pass makes: .*other"),
    ],
)
def test_a_state_that_does_not_stay_is_refused(function, error, message):
    """Before anything is trained a training pass is tried: what it leaves must be what it found."""
    chosen, train = config(f"model={{kind='{__name__}:{function}'}}"), {"a": site()}
    adapter = build_adapter(chosen, example_of(train))
    with pytest.raises(error, match=message):
        require_fit(chosen, adapter, train)


def bad_loss(outputs, y):
    """A mistake."""
    return {}[outputs.shape, y.shape]


def whole_loss(outputs, y):
    """Integers have no gradient."""
    return (outputs[:, 0] > y).astype(np.int32)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        ("bad_loss", ConfigError, r'^model\.loss: ".*:bad_loss" failed: KeyError'),
        ("whole_loss", ModelError, r"model\.loss: .*:whole_loss gives int32"),
    ],
)
def test_a_loss_that_fails_is_refused(function, error, message):
    """A loss of one's own is tried before anything is trained."""
    chosen, train = config(f"model={{loss='{__name__}:{function}'}}"), {"a": site()}
    with pytest.raises(error, match=message):
        require_fit(chosen, build_adapter(chosen, example_of(train)), train)
