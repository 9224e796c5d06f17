import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.algorithms import ClippedEncoding, LocalTraining, Mean, Server, SiteUpdate, WeightedEncoding, fedavg, plain_mean
from fl.errors import ConfigError
from fl.model import LOSSES
from privacy.adaptive import AdaptiveClip
from privacy.codec import FixedPoint
from privacy.errors import InputError
from privacy.plan import Plan

LAYOUT = (("['bias']", 1), ("['kernel']", 3))


def total(encoding, updates):
    """The sum of the updates' integers, by block."""
    encoded = [encoding.encode(update) for update in updates.values()]
    return {name: sum(e[name] for e in encoded) for name in encoded[0]}


def plan(**changes):
    """A client-level plan of four sites for a vector of four."""
    options = {"epsilon": 1.0, "unit": "client", "relation": "zero-out", "sites": 4, "dropouts": 1, "colluders": 0}
    options |= {"clip": 0.5, "records_per_site": 1, "dimension": 4, "rounds": 4, "delta": 1e-4, "divisor": 4.0}
    return Plan.solve(**options | changes)


@given(
    st.lists(
        st.tuples(st.integers(0, 100), st.lists(st.floats(-64, 64, width=32), min_size=4, max_size=4)),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(["delta", "gradient", "parameters"]),
    st.booleans(),
)
def test_the_sum_of_integers_is_the_float_mean(sites, upload, uniform):
    """S17, S21: decoding the integer sum and then dividing gives the weighted float mean, to fixed-point precision."""
    updates = {str(i): SiteUpdate(np.float32(values), w, float(i)) for i, (w, values) in enumerate(sites)}
    encoding = WeightedEncoding(LAYOUT, FixedPoint(64.0, 32, 4), 100, upload, uniform=uniform)
    mean = encoding.decode(total(encoding, updates))
    expected, excluded = plain_mean(updates, upload=upload, uniform=uniform)
    assert excluded == ()
    assert mean.weight == expected.weight == sum(min(w, 1) if uniform else w for w, _ in sites)
    if mean.weight == 0:
        assert mean == expected == Mean(None, weight=0)
        return
    for ours, theirs in ((mean.gradient, expected.gradient), (mean.parameters, expected.parameters)):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            np.testing.assert_allclose(ours, theirs, rtol=1e-15, atol=2.0**-33)
    assert (mean.gradient is None) == (upload == "parameters")
    assert mean.loss == pytest.approx(expected.loss, abs=2.0**-20)


def test_values_on_the_grid_are_exact():
    """What fixed point can write is summed without any error: weights and values come out to the last bit."""
    encoding = WeightedEncoding(LAYOUT, FixedPoint(64.0, 32, 4), 100)
    updates = {
        "a": SiteUpdate(np.array([1 + 2.0**-32, -64, 0, 3]), 3, 0.25),
        "b": SiteUpdate(np.array([2.0, 0, -0.5, 3]), 1, 0.75),
    }
    mean = encoding.decode(total(encoding, updates))
    assert mean.gradient.tolist() == [-(3 * (1 + 2.0**-32) + 2) / 4, 48, 0.125, -3]
    assert (mean.weight, mean.loss) == (4, 0.375)


def test_further_vectors_are_averaged_too():
    """A vector beside the update has a block of its own, the same bound, and the same mean."""
    encoding = WeightedEncoding(LAYOUT, FixedPoint(64.0, 32, 4), 100, extra=("control",), uniform=True)
    assert [block.name for block in encoding.blocks(3)] == ["update", "control", "weight", "loss"]
    assert encoding.blocks(3)[1].bound == encoding.blocks(3)[0].bound == 64 * 2**32
    updates = {str(i): SiteUpdate(np.full(4, float(i)), 10**i, 0.0, {"control": np.arange(4.0) * i}) for i in range(3)}
    mean = encoding.decode(
        total(encoding, updates | {"empty": SiteUpdate(np.zeros(4), 0, 0.0, {"control": np.zeros(4)})})
    )
    assert mean.weight == 3
    assert mean.extra["control"].tolist() == [0, 1, 2, 3]
    assert mean.gradient.tolist() == [-1] * 4


@pytest.mark.parametrize(
    ("update", "leaf"),
    [
        (SiteUpdate(np.array([0, 0, np.nan, 0]), 1, 0.0), r"\['kernel'\]"),
        (SiteUpdate(np.array([65.0, 0, 0, 0]), 1, 0.0), r"\['bias'\]"),
        (SiteUpdate(np.zeros(4), 1, np.inf), "training loss"),
        (SiteUpdate(np.zeros(1), 1, 0.0), r"\(1,\)"),
        (SiteUpdate(np.zeros(4), -1, 0.0), "weight -1 is negative"),
    ],
    ids=["nan", "beyond the limit", "loss", "shape", "negative weight"],
)
def test_what_cannot_be_encoded_is_named(update, leaf):
    """S6, S8, F2: NaN, a value beyond the limit, an infinite loss, another shape and a negative weight are refused by name."""
    with pytest.raises(InputError, match=leaf):
        WeightedEncoding(LAYOUT, FixedPoint(64.0, 32, 4), 100).encode(update)


def test_what_is_beside_the_update_is_checked_too():
    """S6: a NaN in a further vector is refused by its leaf."""
    encoding = WeightedEncoding(LAYOUT, FixedPoint(64.0, 32, 4), 100, extra=("control",))
    with pytest.raises(InputError, match=r"\['bias'\]"):
        encoding.encode(SiteUpdate(np.zeros(4), 1, 0.0, {"control": np.array([np.nan, 0, 0, 0])}))


def test_bits_follow_from_the_bound():
    """S4, S16: the update's ring is the smallest that cannot wrap, and one that would need 65 bits is refused."""
    values = FixedPoint(64.0, 32, 4)
    update = WeightedEncoding(LAYOUT, values, 100).blocks(4)[0]
    assert 4 * update.bound < 2 ** (update.bits - 1)
    assert 4 * update.bound >= 2 ** (update.bits - 2)
    with pytest.raises(ConfigError, match="max_weight 4194304 x 100000 sites"):
        WeightedEncoding(LAYOUT, values, 2**22).blocks(100_000)
    assert WeightedEncoding(LAYOUT, values, 2**22, uniform=True).blocks(100_000)[0].bits == 56


@pytest.mark.parametrize("upload", ["delta", "gradient"])
def test_client_level_privacy_sends_one_clipped_vector(adapter, upload):
    """At the client level only the clipped upload leaves, without loss or count; the mean divides by the constant."""
    agreed = plan()
    encoding = ClippedEncoding(LAYOUT, agreed, upload)
    server = Server(adapter, optax.sgd(1.0), "last", 4)
    algorithm = fedavg(server, LOSSES["logistic"], LocalTraining(optax.sgd(0.1), 2), encoding, 4)
    values = algorithm.encode(SiteUpdate(np.array([3.0, 4.0, 0.0, 0.0]), 17, 0.1))
    assert set(values) == {"update"}
    assert [(b.name, b.bits, b.bound) for b in algorithm.blocks] == [("update", agreed.bits, agreed.bound)]
    mean, sign = algorithm.decode(values), 1 if upload == "gradient" else -1
    np.testing.assert_allclose(mean.gradient, np.array([0.3, 0.4, 0, 0]) * sign / 4, atol=1e-5)
    assert mean.weight is None
    assert mean.loss is None
    with pytest.raises(InputError, match=r"\['kernel'\]"):
        algorithm.encode(SiteUpdate(np.array([0, 0, np.nan, 0]), 1, 0.0))
    assert not algorithm.encode(SiteUpdate(np.zeros(4), 0, 0.0))[
        "update"
    ].any()  # F17, F19: zero, and no division by it


def test_parameters_fit_no_clip_norm():
    """A clipped set of parameters is no model, so this upload is refused at the client level."""
    with pytest.raises(ConfigError, match=r'algorithm\.upload: "parameters" do not fit a clip norm'):
        ClippedEncoding(LAYOUT, plan(), "parameters")


def test_a_clients_bit_is_one_more_coordinate(adapter):
    """At the client level the bit says whether the change is within this round's C; the mean has the scale of that C."""
    rule = AdaptiveClip(quantile=0.5, learning_rate=0.2, bit_noise=1.0, expected=4, min_clip=0.1, max_clip=9.0)
    encoding = ClippedEncoding(LAYOUT, plan(epsilon=20.0, adaptive=rule))
    server = Server(adapter, optax.sgd(1.0), "last", 4)
    algorithm = fedavg(server, LOSSES["logistic"], LocalTraining(optax.sgd(0.1), 2), encoding, 4)
    assert algorithm.blocks[0].length == 5
    update = SiteUpdate(np.array([3.0, 4.0, 0.0, 0.0]), 17, 0.1)
    for clip, bits, length in ((0.5, -0.5, 0.5), (4.9, -0.5, 4.9), (5.1, 0.5, 5.0)):
        mean = algorithm.decode(algorithm.encode(update, clip), clip)
        assert mean.bits == bits
        np.testing.assert_allclose(mean.gradient, [-0.6 * length / 4, -0.8 * length / 4, 0, 0], atol=1e-4)
