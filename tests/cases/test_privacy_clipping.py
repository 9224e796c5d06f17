"""The rows about what is clipped: bad values, the norm in integers, a clip norm that adapts, leaves without dimensions."""

import dataclasses
import math

import ml_dtypes
import numpy as np
import pytest

from privacy import AdaptiveClip, AdaptiveCodec, FixedPoint, GridCodec, InputError, NoiseSource, PlanError

RULE = AdaptiveClip(quantile=0.5, learning_rate=0.2, bit_noise=3.0, expected=20.0, min_clip=1e-3, max_clip=1e3)
BAD = [math.nan, math.inf, -math.inf]
LEAVES = (("['bias']", 1), ("['kernel']", 2))


def squares(integers):
    """The sum of squares of integers, in Python's own."""
    return sum(int(x) ** 2 for x in integers)


@pytest.mark.case("P6")
@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_an_update_with_a_bad_value_is_refused(value, dtype):
    """[bad, 1e9] at clip 1 gives no integers but an error with the leaf's name, in every codec that takes an update."""
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    grid = GridCodec(1.0, 1 << 20, 3)
    for encode in (grid.encode_update, AdaptiveCodec(grid, 7).encode_update, FixedPoint(1e10, 8, 3).encode):
        for place, leaf in ((0, "['bias']"), (1, "['kernel']"), (2, "['kernel']")):
            update = np.full(3, 6e4, kind)
            update[place] = value
            with pytest.raises(InputError) as caught:
                encode(update, LEAVES)
            assert leaf in str(caught.value)
            assert "not finite" in str(caught.value)


@pytest.mark.case("P6")
@pytest.mark.parametrize("value", BAD)
def test_a_record_with_a_bad_value_counts_as_zero(value):
    """One record that is not finite must not show, nor pass unclipped: it is zero, and every other record is what it was."""
    rows = np.array([[1e9, 1.0], [value, 1e9], [0.1, -0.1]])
    for codec in (GridCodec(1.0, 1024, 2), AdaptiveCodec(GridCodec(1.0, 1024, 2), 7)):
        encoded = codec.encode_records(rows, np.ones(3, bool))
        assert not encoded[1].any()
        assert np.array_equal(encoded[[0, 2]], codec.encode_records(rows[[0, 2]], np.ones(2, bool)))


@pytest.mark.case("P6")
@pytest.mark.parametrize("size", [1e9, 1e30, 1e300, 1.7e308])
def test_a_finite_update_is_clipped_whatever_its_size(size):
    """Values whose squares overflow are clipped like any other: to the clip norm, in their direction."""
    encoded = GridCodec(1.0, 1 << 20, 2).encode_update(np.array([size, -size / 2]))
    assert squares(encoded) <= 1 << 40
    assert encoded / (1 << 20) == pytest.approx([2 / math.sqrt(5), -1 / math.sqrt(5)], rel=1e-5)


@pytest.mark.case("P12")
@pytest.mark.parametrize("dimension", [3, 100, 10_000])
def test_the_norm_is_checked_on_the_integers(dimension):
    """Where clipping in float32 and rounding ends above the bound in many draws, no vector of ours does, by either path."""
    grid, draws = 1 << 12, 60
    rows = np.random.default_rng(dimension).normal(size=(draws, dimension)).astype(np.float32) * 100
    naive = np.rint(rows / np.linalg.norm(rows, axis=1)[:, None] * np.float32(grid)).astype(np.int64)
    assert sum(squares(row) > grid**2 for row in naive) > draws / 4
    codec = GridCodec(1.0, grid, dimension)
    for row in (*codec.encode_records(rows, np.ones(draws, bool)), *map(codec.encode_update, rows)):
        assert (grid - math.sqrt(dimension) - 1) ** 2 <= squares(row) <= grid**2
    adaptive = AdaptiveCodec(codec, 1000)
    for row in (*adaptive.encode_records(rows, np.ones(draws, bool)), *map(adaptive.encode_update, rows)):
        assert squares(row) <= grid**2 + 1000**2


@pytest.mark.case("P12")
def test_a_vector_that_fails_by_one_step_is_shrunk(monkeypatch):
    """The certificate does not rest on the floats: with floats that are off by a part in a thousand it holds all the same."""
    from privacy import codec as module

    real = module._row_sums
    monkeypatch.setattr(module, "_row_sums", lambda values: real(values) * 0.998)
    rows = np.random.default_rng(1).normal(size=(200, 50)) * 100
    for row in GridCodec(1.0, 1 << 20, 50).encode_records(rows, np.ones(200, bool)):
        assert 0.99 * (1 << 40) < squares(row) <= 1 << 40


def adaptive_plan(plan_of, **fields):
    """Twenty clients and little noise, so that the clip norm can be seen to move."""
    base = {"unit": "client", "relation": "zero-out", "records_per_site": 1, "sites": 20, "dropouts": 2}
    base |= {"rounds": 60, "delta": 1e-3, "epsilon": None, "noise_multiplier": 2.0, "divisor": 20.0, "adaptive": RULE}
    return plan_of(**(base | fields))


def adaptive_round(plan, source, updates, clip, number):
    """A round at one clip norm: its codec, and the sum of what the sites send."""
    codec, label = plan.codec(clip), {"run": "run", "round": number, "attempt": 0, "purpose": "update"}
    sent = [
        codec.encode_update(update) + source.share(plan.sigma_local, plan.length, site=site, **label)
        for site, update in enumerate(updates)
    ]
    return codec, np.sum(sent, axis=0)


@pytest.mark.case("P13")
@pytest.mark.parametrize("start", [0.1, 1.0, 10.0])
def test_equal_norms_are_found(plan_of, start):
    """All norms 1: from 0.1 and from 10 the clip norm comes to 1 and stays there, with the noise of a real plan in the count."""
    plan, source = adaptive_plan(plan_of, clip=start), NoiseSource.insecure_test(11)
    updates = np.random.default_rng(5).normal(size=(20, 40))
    updates /= np.linalg.norm(updates, axis=1)[:, None]
    clip, seen = plan.clip, []
    for number in range(plan.rounds):
        codec, total = adaptive_round(plan, source, updates, clip, number)
        clip = plan.adaptive.next_clip(clip, codec.bits(total))
        seen.append(clip)
    assert all(0.65 < each < 1.5 for each in seen[-20:])


@pytest.mark.case("P13")
@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("start", [0.1, 10.0])
def test_the_quantile_is_found(quantile, start):
    """Spread norms, no noise: from either side the clip norm comes to their quantile, within one step, and does not leave."""
    rule = dataclasses.replace(RULE, quantile=quantile, expected=101.0)
    norms = np.exp(np.linspace(-3.0, 3.0, 101))
    clip, seen = start, []
    for _ in range(400):
        codec = AdaptiveCodec(GridCodec(clip, 1024, 1), 9)
        total = codec.encode_records(norms[:, None], np.ones(101, bool)).sum(axis=0)
        clip = rule.next_clip(clip, codec.bits(total))
        seen.append(clip)
    step = math.exp(rule.learning_rate * max(quantile, 1 - quantile)) * math.exp(0.06)
    assert all(1 / step <= each / np.quantile(norms, quantile) <= step for each in seen[-100:])


@pytest.mark.case("P13")
@pytest.mark.parametrize("bits", [1e9, -1e9, 0.0])
def test_no_count_sends_the_clip_norm_away(bits):
    """Whatever the noise in a count, a round moves the clip norm by one step at most, and never out of its range."""
    for clip in (1e-3, 0.1, 1e3):
        after = RULE.next_clip(clip, bits)
        assert clip * math.exp(-0.2) * (1 - 1e-9) <= after <= clip * math.exp(0.2) * (1 + 1e-9)
        assert 1e-3 <= after <= 1e3
    with pytest.raises(InputError, match="nan"):
        RULE.next_clip(1.0, math.nan)


@pytest.mark.case("P14")
@pytest.mark.parametrize("size", [0.0, 1e6], ids=["the norm falls", "the norm rises"])
def test_noise_goes_with_the_clip_norm_that_was_used(plan_of, size):
    """In every round the decoded noise is that of the clip norm that clipped, in the planned proportion, not of the next one."""
    plan, source, clip = adaptive_plan(plan_of, dimension=20_001), NoiseSource.insecure_test(14), 1.0
    updates = np.zeros((20, 20_001))
    updates[:, 0] = size
    for number in range(5):
        codec, total = adaptive_round(plan, source, updates, clip, number)
        after = plan.adaptive.next_clip(clip, codec.bits(total))
        spread = np.std(codec.decode(total)[1:])
        assert spread == pytest.approx(clip * math.sqrt(20) * plan.sigma_local / plan.grid, rel=0.02)
        assert spread / (clip * plan.sensitivity / plan.grid) > plan.noise_multiplier
        assert max(clip / after, after / clip) > 1.05
        clip = after
    assert (clip < 0.8) if size == 0 else (clip > 1.2)


@pytest.mark.case("P14")
def test_no_clip_norm_changes_what_is_accounted(plan_of):
    """Noise and sensitivity are in steps of the clip norm in use, so a server that names another one gains nothing."""
    one, other = adaptive_plan(plan_of, clip=0.002), adaptive_plan(plan_of, clip=900.0)
    assert (one.sigma_local, one.sensitivity) == (other.sigma_local, other.sensitivity)
    assert one.accounted_epsilon() == other.accounted_epsilon()
    for clip in (0.0, 1e-4, 1001.0, math.nan):
        with pytest.raises(PlanError, match="clip"):
            one.codec(clip)
    with pytest.raises(PlanError, match="does not adapt"):
        plan_of().codec(2.0)


@pytest.mark.case("P24")
@pytest.mark.parametrize("value", [-5.0, 0.25, 1e9])
def test_a_leaf_without_dimensions_is_clipped_and_noised(value):
    """A lone 0-d value counts as one coordinate: clipped to the clip norm, and with noise of its own."""
    codec = GridCodec(1.0, 1024, 1)
    for update in (np.float64(value), np.float32(value), np.array(value)):
        encoded = codec.encode_update(update, (("['scale']", 1),))
        assert encoded.shape == (1,)
        assert encoded[0] == round(max(-1.0, min(1.0, value)) * 1024) or abs(encoded[0]) == 1023
    with pytest.raises(InputError, match="'scale'"):
        codec.encode_update(np.float64(math.nan), (("['scale']", 1),))
    source, label = NoiseSource(), {"run": "run", "attempt": 0, "site": 0, "purpose": "['scale']"}
    drawn = [source.share(1000.0, 1, round=number, **label) for number in range(400)]
    assert {share.shape for share in drawn} == {(1,)}
    assert np.std(drawn) == pytest.approx(1000.0, rel=0.25)


@pytest.mark.case("P25")
@pytest.mark.parametrize("dtype", ["int64", "int32", "uint64", "int8", "bool", "complex64"])
def test_what_is_no_float_is_neither_clipped_nor_noised(dtype):
    """Integers, booleans and complex numbers are refused with their dtype by every codec, rather than cast."""
    grid = GridCodec(1.0, 1024, 2)
    values = np.array([1, 0], dtype)
    for encode in (grid.encode_update, AdaptiveCodec(grid, 7).encode_update, FixedPoint(64.0, 8, 2).encode):
        with pytest.raises(InputError, match=f"dtype {dtype}"):
            encode(values)
    with pytest.raises(InputError, match=f"dtype {dtype}"):
        grid.encode_records(values[None], np.ones(1, bool))
