import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.adaptive import AdaptiveClip, AdaptiveCodec
from privacy.codec import GridCodec
from privacy.errors import InputError, PlanError
from privacy.noise import NoiseSource
from privacy.plan import Plan

RULE = AdaptiveClip(quantile=0.5, learning_rate=0.2, bit_noise=36.0, expected=100.0, min_clip=1e-3, max_clip=1e3)
CODEC = AdaptiveCodec(GridCodec(2.0, 1 << 16, 3), 1 << 12)


def settle(rule, norms, clip, rounds=300):
    """Clip norms of rounds without noise over fixed norms."""
    seen = []
    for _ in range(rounds):
        seen.append(clip)
        clip = rule.next_clip(clip, sum(norm <= clip for norm in norms) - len(norms) / 2)
    return seen


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("start", [0.1, 1.0, 10.0])
def test_p13_equal_norms_are_found_from_either_side(start, quantile):
    """P13: all norms 1; from 0.1 and from 10 the clip norm comes to 1 and stays within one step of it."""
    rule = dataclasses.replace(RULE, quantile=quantile)
    last = settle(rule, [1.0] * 100, start)[-50:]
    step = math.exp(rule.learning_rate * max(quantile, 1 - quantile)) * (1 + 1e-9)
    assert all(1 / step <= clip <= step for clip in last)


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("start", [0.1, 10.0])
def test_spread_norms_are_split_at_the_quantile(start, quantile):
    """Norms over three decades: the clip norm settles within a step of their quantile, not of their mean."""
    norms = np.exp(np.linspace(-3.5, 3.5, 101))
    rule = dataclasses.replace(RULE, quantile=quantile, expected=101.0)
    step = math.exp(rule.learning_rate * max(quantile, 1 - quantile)) * math.exp(0.07)
    for clip in settle(rule, norms, start, rounds=600)[-50:]:
        assert 1 / step <= clip / np.quantile(norms, quantile) <= step


@pytest.mark.parametrize("expected", [60.0, 100.0, 160.0])
def test_the_median_is_met_whatever_number_was_expected(expected):
    """Under add-remove nobody knows the count: at quantile 1/2 a wrong one changes the speed, not the place."""
    rule = dataclasses.replace(RULE, expected=expected)
    norms = np.exp(np.linspace(-2, 2, 100))
    for clip in settle(rule, norms, 10.0, rounds=600)[-20:]:
        assert 0.8 < clip < 1.25


def test_direction_of_the_step():
    """C falls when too many norms are within it, and rises when too few are; the sign cannot be turned."""
    assert RULE.next_clip(1.0, 50.0) == pytest.approx(math.exp(-0.1))
    assert RULE.next_clip(1.0, -50.0) == pytest.approx(math.exp(0.1))
    assert RULE.next_clip(1.0, 0.0) == 1.0


@given(
    st.floats(1e-3, 1e3),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(0.01, 0.99),
    st.floats(0.001, 1.0),
)
def test_no_noise_moves_the_clip_norm_far(clip, bits, quantile, rate):
    """Whatever the noisy count, C stays in its range and within a factor exp(learning_rate): never 0 or infinity."""
    rule = dataclasses.replace(RULE, quantile=quantile, learning_rate=rate)
    after = rule.next_clip(clip, bits)
    assert rule.min_clip <= after <= rule.max_clip
    assert math.exp(-rate) * (1 - 1e-12) <= after / clip <= math.exp(rate) * (1 + 1e-12)


@pytest.mark.parametrize("bits", [math.nan, math.inf, -math.inf])
def test_a_count_that_is_no_number_is_refused(bits):
    """NaN would stay NaN for ever."""
    with pytest.raises(InputError, match="sum of bits"):
        RULE.next_clip(1.0, bits)


@pytest.mark.parametrize("clip", [math.nan, 0.0, 9e-4, 1001.0, math.inf])
def test_a_clip_norm_out_of_range_is_refused(clip):
    """A server that names a clip norm which the plan does not allow is told so."""
    with pytest.raises(PlanError, match="clip"):
        RULE.next_clip(clip, 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0, -1, True, "1", None, 10**400])
@pytest.mark.parametrize("name", [each.name for each in dataclasses.fields(AdaptiveClip)])
def test_fields_that_mean_nothing_are_refused(name, value):
    """NaN, infinity, zero, negative numbers, booleans and texts are refused, and the field is named."""
    with pytest.raises(PlanError, match=rf"adaptive\.{name}"):
        dataclasses.replace(RULE, **{name: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantile": 1.0}, r"quantile = 1\.0"),
        ({"learning_rate": 1.5}, r"learning_rate = 1\.5"),
        ({"min_clip": 1e3}, "min_clip = 1000"),
    ],
)
def test_fields_out_of_range_are_refused(changes, message):
    """A quantile of everybody, a rate above 1, an empty range."""
    with pytest.raises(PlanError, match=message):
        dataclasses.replace(RULE, **changes)


def test_fields_round_trip():
    """What is written is read back equal; unknown and missing keys are named."""
    assert AdaptiveClip.from_fields(RULE.to_fields()) == RULE
    with pytest.raises(PlanError, match=r"adaptive\.more"):
        AdaptiveClip.from_fields(RULE.to_fields() | {"more": 1})
    with pytest.raises(PlanError, match=r"adaptive\.bit_noise, adaptive\.expected"):
        AdaptiveClip.from_fields({"quantile": 0.5})
    with pytest.raises(PlanError, match="not an object"):
        AdaptiveClip.from_fields(0.5)
    with pytest.raises(PlanError) as error:
        AdaptiveClip.from_fields(RULE.to_fields() | {"\x1b" * 100_000: 1})
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 100


@given(st.integers(0, 20), st.floats(1e-3, 1e6), st.floats(1.0 + 1e-9, 1e9))
def test_bit_steps_give_the_noise_that_was_asked_for(power, noise, over):
    """The joint noise, counted in contributions, is at most bit_noise; one step less would be more."""
    grid, rule = 1 << power, dataclasses.replace(RULE, bit_noise=noise / 2 * over)
    if not 2 * rule.bit_noise / noise > 1:
        return
    bit = rule.bit_steps(grid, noise)
    exact = Fraction(noise) ** 2 * (grid**2 + bit**2) / (4 * bit**2)
    assert exact <= Fraction(rule.bit_noise) ** 2 * (1 + Fraction(1, 10**12))
    if over > 1.001 and 1 < bit < 1 << 30:
        assert Fraction(noise) ** 2 * (grid**2 + (bit - 1) ** 2) / (4 * (bit - 1) ** 2) > Fraction(rule.bit_noise) ** 2


@pytest.mark.parametrize("noise", [72.0, 80.0, math.inf])
def test_a_bit_that_takes_everything_is_refused(noise):
    """Noise on the count of half the multiplier or less leaves nothing for the update; the error has both numbers."""
    with pytest.raises(PlanError, match=r"bit_noise = 36 .*" + f"{noise / 2:g}"):
        RULE.bit_steps(1 << 20, noise)
    assert RULE.bit_steps(1 << 20, 71.9) > 1 << 20


@pytest.mark.parametrize("bit", [0, -1, True, 1.0, 1 << 62])
def test_a_bit_of_no_steps_is_refused(bit):
    """The bit moves its coordinate by a whole number of steps, at least one."""
    with pytest.raises(PlanError, match="bit"):
        AdaptiveCodec(CODEC.grid_codec, bit)


def test_the_bit_tells_the_norm_from_the_clip_norm():
    """Norms up to C give plus B, above it minus B, absent and non-finite records 0; the vector is the grid codec's."""
    rows = np.array([[0, 0, 0], [2, 0, 0], [2.001, 0, 0], [1.2, 1.6, 0], [5, 5, 5], [np.nan, 0, 0], [1e300, -1e300, 0]])
    present = np.array([True, True, True, True, False, True, True])
    encoded = CODEC.encode_records(rows, present)
    assert encoded[:, -1].tolist() == [4096, 4096, -4096, 4096, 0, 0, -4096]
    assert np.array_equal(encoded[:, :-1], CODEC.grid_codec.encode_records(rows, present))
    for row, integers in zip(rows[:4], encoded, strict=False):
        assert np.array_equal(CODEC.encode_update(row), integers)


def test_updates_are_refused_as_the_grid_codec_does():
    """A non-finite update is refused by leaf name, with the bit as without."""
    with pytest.raises(InputError, match="leaf 'w'"):
        CODEC.encode_update(np.array([1.0, np.nan, 0.0]), (("w", 3),))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_every_floating_type_has_its_bit(dtype):
    """The dtype of the update does not matter to the bit; values beyond float64 count as not finite."""
    assert CODEC.encode_update(np.array([2, 0, 0], dtype))[-1] == 4096
    assert CODEC.encode_records(np.array([[3, 0, 0]], dtype), np.array([True]))[0, -1] == -4096
    huge = np.array([[np.longdouble("1e4000"), 0, 0]])
    assert CODEC.encode_records(huge, np.array([True]))[0].tolist() == [0, 0, 0, 0]


@given(
    st.lists(st.lists(st.floats(width=32), min_size=3, max_size=3), min_size=1, max_size=6),
    st.sampled_from([1e-3, 2.0, 1e3]),
)
def test_no_contribution_passes_the_joint_sensitivity(rows, clip):
    """Whatever the values, one row's integers have squares of at most G**2 + B**2 in all: P12 with the bit."""
    codec = AdaptiveCodec(GridCodec(clip, 1 << 16, 3), 1 << 12)
    for row in codec.encode_records(np.array(rows), np.ones(len(rows), bool)).tolist():
        assert sum(each * each for each in row) <= (1 << 32) + (1 << 24)


def test_each_record_alone_makes_its_integers():
    """Removing, changing and cutting out each record in turn leaves the others' integers and bits, bit for bit."""
    random = np.random.default_rng(3)
    codec = AdaptiveCodec(GridCodec(1.0, 1 << 20, 257), 99_991)
    rows = random.normal(size=(40, 257)) / 16
    rows[:30] /= np.linalg.norm(rows[:30], axis=1)[:, np.newaxis]  # at the clip norm, where rounding decides
    present = np.ones(40, bool)
    whole = codec.encode_records(rows, present)
    assert set(whole[:30, -1]) == {-99_991, 99_991}
    assert np.array_equal(codec.encode_records(np.asfortranarray(rows), present), whole)
    for index in range(40):
        absent, changed = present.copy(), rows.copy()
        absent[index] = False
        changed[index] = np.nan
        kept = np.arange(40) != index
        assert np.array_equal(codec.encode_records(rows, absent)[kept], whole[kept])
        assert np.array_equal(codec.encode_records(changed, present)[kept], whole[kept])
        assert np.array_equal(codec.encode_records(rows[kept], present[kept]), whole[kept])
        assert np.array_equal(codec.encode_records(rows[index : index + 1], present[:1])[0], whole[index])


def test_the_sum_of_bits_is_exact_without_noise():
    """The count of norms within C, less half of all, comes out of the integer sum without any rounding."""
    random = np.random.default_rng(4)
    rows = random.normal(size=(997, 3)) * 1.3
    encoded = CODEC.encode_records(rows, np.ones(997, bool))
    total = encoded.sum(axis=0)
    within = int((np.linalg.norm(rows, axis=1) <= 2.0).sum())
    assert CODEC.bits(total) == within - 997 / 2
    assert np.array_equal(CODEC.decode(total), CODEC.grid_codec.decode(total[:-1]))
    assert CODEC.length == 4


@pytest.mark.parametrize("total", [np.zeros(3, int), np.zeros(5, int), np.zeros((1, 4), int), np.zeros(4)])
def test_a_sum_of_another_shape_is_refused(total):
    """A sum without its bit, or of floats, is refused by decode and by bits."""
    for read in (CODEC.decode, CODEC.bits):
        with pytest.raises(InputError, match="sum"):
            read(total)


def client_plan(**changes):
    """Twenty clients, little noise, so that the clip norm can be seen to move."""
    base = {
        "unit": "client",
        "relation": "zero-out",
        "sites": 20,
        "dropouts": 2,
        "colluders": 1,
        "records_per_site": 1,
        "dimension": 64,
        "clip": 10.0,
        "rounds": 80,
        "delta": 1e-3,
        "noise_multiplier": 2.0,
        "divisor": 20.0,
        "adaptive": dataclasses.replace(RULE, bit_noise=3.0, expected=20.0),
    }
    return Plan.solve(**(base | changes))


def one_round(plan, source, updates, clip, number):
    """Sites encode and add their noise, integers are summed: the codec of the round, and the sum."""
    codec = plan.codec(clip)
    total = np.zeros(plan.length, np.int64)
    for site, update in enumerate(updates):
        share = source.share(
            plan.sigma_local, plan.length, run="test", round=number, attempt=0, site=site, purpose="update"
        )
        sent = codec.encode_update(update) + share
        assert np.abs(sent).max() <= plan.bound
        total += sent
    assert np.abs(total).max() < 1 << (plan.bits - 1)
    return codec, total


@pytest.mark.parametrize("start", [0.1, 10.0])
def test_p13_through_the_integer_sum_with_noise(start):
    """P13 end to end: sites, integers, discrete noise, sum, next clip norm; equal norms of 1 are found and kept."""
    plan, source = client_plan(clip=start), NoiseSource.insecure_test(11)
    updates = np.random.default_rng(5).normal(size=(20, 64))
    updates /= np.linalg.norm(updates, axis=1)[:, np.newaxis]
    clip, seen = plan.clip, []
    for number in range(plan.rounds):
        codec, total = one_round(plan, source, updates, clip, number)
        clip = plan.adaptive.next_clip(clip, codec.bits(total))
        seen.append(clip)
    assert all(0.7 < each < 1.4 for each in seen[-30:])
    assert plan.rounds * plan.mu(18) ** 2 <= plan.budget().mu_squared


def test_records_find_their_quantile_through_the_integer_sum():
    """Three hospitals' records with norms over a decade: the clip norm comes to their 0.8 quantile."""
    plan = Plan.solve(
        unit="record",
        relation="add-remove",
        sites=3,
        dropouts=0,
        colluders=0,
        records_per_site=200,
        dimension=8,
        clip=0.1,
        rounds=120,
        delta=1e-4,
        noise_multiplier=8.0,
        divisor=500.0,
        adaptive=dataclasses.replace(RULE, quantile=0.8, bit_noise=10.0, expected=500.0),
    )
    random, source = np.random.default_rng(6), NoiseSource.insecure_test(12)
    tables = [random.normal(size=(rows, 8)) * random.lognormal(size=(rows, 1)) for rows in (200, 170, 130)]
    norms = np.concatenate([np.linalg.norm(table, axis=1) for table in tables])
    clip, seen = plan.clip, []
    for number in range(plan.rounds):
        codec = plan.codec(clip)
        total = sum(
            codec.encode_records(table, np.ones(len(table), bool)).sum(axis=0)
            + source.share(plan.sigma_local, plan.length, run="r", round=number, attempt=0, site=site, purpose="update")
            for site, table in enumerate(tables)
        )
        clip = plan.adaptive.next_clip(clip, codec.bits(total))
        seen.append(clip)
    assert 0.85 < np.mean(seen[-40:]) / np.quantile(norms, 0.8) < 1.15


def test_noise_of_the_bit_is_what_was_planned():
    """Through the real shares the noise on the count has the planned standard deviation; half of it is rejected."""
    plan, source = client_plan(dimension=1), NoiseSource.insecure_test(13)
    shares = sum(
        source.share(plan.sigma_local, 20_000, run="b", round=0, attempt=0, site=site, purpose="bits")
        for site in range(17)  # the honest ones at the floor
    )
    counted = np.std(shares / (2 * plan.bit))
    assert counted == pytest.approx(plan.sigma_star / (2 * plan.bit), rel=0.03)
    assert counted == pytest.approx(plan.adaptive.bit_noise, rel=0.03)
    assert counted != pytest.approx(plan.adaptive.bit_noise / 2, rel=0.1)


def test_p14_noise_goes_with_the_clip_norm_that_was_used():
    """P14: zero updates, so that C falls; each round's decoded noise has the scale of its own C, not of the next."""
    plan = client_plan(dimension=20_000, rounds=6)
    source, clip = NoiseSource.insecure_test(14), plan.clip
    for number in range(6):
        codec, total = one_round(plan, source, np.zeros((20, 20_000)), clip, number)
        after = plan.adaptive.next_clip(clip, codec.bits(total))
        scale = np.std(codec.decode(total)) * plan.grid / (math.sqrt(20) * plan.sigma_local)
        assert scale == pytest.approx(clip, rel=0.02)
        if after < clip:
            assert scale != pytest.approx(after, rel=0.02)
        clip = after
    assert clip < plan.clip * math.exp(-0.3)


def test_the_first_clip_norm_changes_nothing_that_is_accounted():
    """Sensitivity, noise and epsilon are in grid steps: they are the same whatever C a round uses."""
    one, other = client_plan(clip=0.01), client_plan(clip=900.0)
    assert (one.grid, one.bit, one.sensitivity, one.sigma_local) == (
        other.grid,
        other.bit,
        other.sensitivity,
        other.sigma_local,
    )
    assert one.accounted_epsilon() == other.accounted_epsilon()


@pytest.mark.parametrize("clip", [1, True, "1", [1.0], None])
def test_a_clip_norm_that_is_no_float_is_refused(clip):
    """What a server names is checked for its kind first."""
    adaptive = AdaptiveClip(quantile=0.5, learning_rate=0.2, bit_noise=9.0, expected=9.0, min_clip=0.1, max_clip=10.0)
    with pytest.raises(PlanError, match="clip ="):
        adaptive.check_clip(clip)
