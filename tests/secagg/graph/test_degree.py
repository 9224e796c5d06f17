import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secagg.errors import ParameterError
from secagg.graph.degree import CORRECTNESS_BITS, SECURITY_BITS, Bounds, Degree, bounds, choose

# n, corrupt, dropout: the reference results of [BBG+20]'s authors for a curious server, and what is reached here. Ours are smaller
# because a survivor holds a share of its own secrets, a silent client is not one of its own silent neighbours, and the failure
# probabilities are added up instead of each having to be below half of the limit.
CURIOUS = {
    (10, 0.05, 0.05): ((2, 2), (2, 2)),
    (10, 0.33, 0.05): ((4, 4), (4, 4)),
    (10, 0.33, 0.33): ((8, 4), (8, 4)),
    (100, 0.05, 0.05): ((12, 6), (12, 6)),
    (100, 0.33, 0.05): ((34, 29), (32, 28)),
    (100, 0.33, 0.33): ((68, 34), (66, 34)),
    (1_000, 0.05, 0.05): ((30, 17), (26, 16)),
    (1_000, 0.33, 0.05): ((78, 60), (74, 57)),
    (1_000, 0.33, 0.33): ((286, 150), (280, 147)),
    (10_000, 0.05, 0.05): ((34, 20), (32, 19)),
    (10_000, 0.33, 0.05): ((92, 70), (90, 69)),
    (10_000, 0.33, 0.33): ((422, 221), (416, 218)),
}
LYING = {
    (10, 0.05, 0.05): (4, 4),
    (10, 0.33, 0.05): (8, 8),
    (100, 0.05, 0.05): (16, 12),
    (100, 0.33, 0.05): (44, 40),
    (1_000, 0.05, 0.05): (76, 59),
    (1_000, 0.1, 0.1): (142, 106),
    (1_000, 0.2, 0.1): (210, 165),
    (1_000, 0.33, 0.05): (210, 182),
    (10_000, 0.05, 0.05): (98, 76),
    (10_000, 0.1, 0.1): (194, 145),
    (10_000, 0.2, 0.1): (308, 241),
    (10_000, 0.33, 0.05): (304, 261),
}


def meets(*case):
    """Whether (n, c, r, k, t, adversary) meet both limits."""
    found = bounds(*case)
    return found.security_bits >= SECURITY_BITS[case[-1]] and found.correctness_bits >= CORRECTNESS_BITS


def at_least(population, marked, draws, x):
    """Exact probability of x or more marked ones in a sample without replacement."""
    ways = sum(math.comb(marked, i) * math.comb(population - marked, draws - i) for i in range(max(0, x), draws + 1))
    return Fraction(ways, math.comb(population, draws))


def exact(*case):
    """The bounds of (n, c, r, k, t, adversary) as exact failure probabilities, straight from docs/graphs.md."""
    n, c, r, k, t, adversary = case
    pairs, half = Fraction(n * (n - k - 1), 2), k // 2
    if adversary == "curious":
        security = n * at_least(n - 1, c, k, t)
        if c + r >= k:
            security += pairs * Fraction(math.comb(n - k, c + r - k), math.comb(n, c + r))
    else:
        others, places, least = max(n - r - 1, k), max(n - r, k + 2), t - half - 1
        security = n * at_least(others, c, k, 2 * t - k - 1)
        security += pairs * sum(
            Fraction(math.comb(half, x) * math.comb(half, y) * math.comb(places - k, c - x - y), math.comb(places, c))
            for x in range(max(0, least), half + 1)
            for y in range(max(0, least), min(half, c - x) + 1)
        )
    correctness = n * at_least(n - 1, r, k, k - t + 2)
    if r:
        correctness += r * at_least(n - 1, r - 1, k, k - t + 1)
    return security, correctness


def bits(probability):
    """-log2 of an exact probability."""
    return math.log2(probability.denominator) - math.log2(probability.numerator) if probability else math.inf


@pytest.mark.parametrize("case", CURIOUS, ids=str)
def test_the_reference_results_for_a_curious_server_are_reproduced_or_beaten(case):
    """The published parameters meet our bounds, and ours are as small or smaller."""
    n, corrupt, dropout = case
    published, ours = CURIOUS[case]
    assert meets(
        n, math.floor(Fraction(str(corrupt)) * n), math.floor(Fraction(str(dropout)) * n), *published, "curious"
    )
    assert choose(n, corrupt, dropout, "curious") == ours
    assert ours[0] <= published[0]
    assert ours[1] <= published[1]


@pytest.mark.parametrize("case", LYING, ids=str)
def test_the_results_for_a_lying_server(case):
    """The table of docs/graphs.md."""
    assert choose(*case) == LYING[case]


@pytest.mark.parametrize(
    ("n", "c", "r", "at_40", "at_104"),
    [
        (1_000, 50, 50, (60, 44), (84, 65)),
        (10_000, 500, 500, (72, 52), (100, 77)),
        (1_000, 330, 50, (154, 129), (224, 194)),
    ],
)
def test_the_first_union_bound_for_a_lying_server_holds(n, c, r, at_40, at_104):
    """Parameters of a coarser bound meet ours at 2^-40 and 2^-104, and the ones chosen are smaller."""
    assert bounds(n, c, r, *at_40).security_bits >= 40
    assert meets(n, c, r, *at_104, "lying")
    assert choose(n, c, r).degree < at_104[0]


@pytest.mark.parametrize(
    ("n", "c", "r", "k", "t"), [(1_000, 50, 50, 52, 37), (10_000, 500, 500, 62, 44), (1_000, 330, 50, 132, 109)]
)
def test_published_parameters_for_a_lying_server_are_refused(n, c, r, k, t):
    """They assume dropouts that know nothing of the ring: against chosen ones they do not reach 2^-40 even without grinding."""
    assert bounds(n, c, r, k, t, "lying").security_bits < 40


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ((1_000, 50, 50, 60, 44), 50.2),
        ((1_000, 50, 50, 84, 65), 132.8),
        ((1_000, 50, 50, 52, 37), 28.9),
        ((10_000, 500, 500, 72, 52), 41.2),
        ((10_000, 500, 500, 100, 77), 108.8),
        ((10_000, 500, 500, 62, 44), 25.6),
        ((1_000, 330, 50, 154, 129), 42.5),
        ((1_000, 330, 50, 224, 194), 115.7),
        ((1_000, 330, 50, 132, 109), 25.6),
    ],
)
def test_the_bits_of_other_parameters_for_a_lying_server(case, expected):
    """The comparison in docs/graphs.md."""
    assert round(bounds(*case).security_bits, 1) == expected


@pytest.mark.parametrize(
    ("c", "r", "k", "t", "expected"),
    [
        (50, 50, 26, 16, (41.0, 40.8, 39.9, 39.9)),
        (330, 50, 74, 57, (40.1, 39.4, 36.4, 36.4)),
        (330, 330, 280, 147, (40.0, 38.5, 32.3, 0.0)),
        (330, 330, 286, 150, (41.2, 39.6, 33.3, 0.0)),
    ],
)
def test_over_the_members_alone_the_curious_bound_would_not_hold(c, r, k, t, expected):
    """The table of docs/graphs.md, and the figures of docs/decisions/0009: 1 000, 990, 950 and n - r places."""
    places = (1_000, 990, 950, 1_000 - r)
    found = [bounds(n, c, max(0, r - (1_000 - n)), k, t, "curious").security_bits for n in places]
    assert [round(bits, 1) for bits in found] == list(expected)


@pytest.mark.parametrize(("c", "smallest", "chosen"), [(50, (74, 57), (76, 59)), (330, (204, 176), (210, 182))])
def test_the_reserve_in_the_places_of_the_ring_costs_a_few_neighbours(c, smallest, chosen):
    """Counted on all n places, 1 000 clients with 50 silent would do with slightly less; no smaller degree would."""

    def would_do(k, t):
        return bounds(1_000, c, 0, k, t).security_bits >= 104 and bounds(1_000, c, 50, k, t).correctness_bits >= 20

    assert choose(1_000, c, 50) == chosen
    assert would_do(*smallest)
    assert not any(would_do(smallest[0] - 2, t) for t in range(2, smallest[0] - 1))
    assert not would_do(smallest[0], smallest[1] - 1)


@pytest.mark.parametrize("adversary", ["curious", "lying"])
@pytest.mark.parametrize(
    "case",
    [
        (30, 5, 3, 6, 4),
        (30, 5, 3, 10, 9),
        (60, 12, 9, 20, 14),
        (200, 20, 10, 40, 30),
        (200, 60, 140, 100, 90),
        (40, 4, 30, 20, 18),
    ],
)
def test_bounds_are_the_exact_sums_on_the_safe_side(case, adversary):
    """Against rational arithmetic no bound promises more, and none gives away more than two millionths of a bit."""
    for found, truth in zip(bounds(*case, adversary), exact(*case, adversary), strict=True):
        if truth == 0 or truth >= 1:
            assert found == (math.inf if truth == 0 else 0)
        else:
            assert bits(truth) - 2e-6 <= found < bits(truth)


def test_bounds_at_full_size_are_on_the_safe_side():
    """The same at 10 000 clients, where the logarithms of factorials are largest."""
    for case in [(10_000, 500, 500, 98, 76, "lying"), (10_000, 3_300, 3_300, 416, 218, "curious")]:
        for found, truth in zip(bounds(*case), exact(*case), strict=True):
            assert bits(truth) - 2e-6 <= found < bits(truth)


fractions = st.floats(0, 0.45, allow_nan=False).map(lambda x: round(x, 3))
adversaries = st.sampled_from(["curious", "lying"])


@given(st.integers(3, 400), fractions, fractions, adversaries)
def test_a_choice_meets_its_bounds(n, corrupt, dropout, adversary):
    """Whatever choose returns, bounds accepts, and one share fewer it does not."""
    try:
        chosen = choose(n, corrupt, dropout, adversary)
    except ParameterError:
        return
    turn = math.floor if adversary == "curious" else math.ceil
    c, r = (turn(Fraction(str(x)) * n) for x in (corrupt, dropout))
    k, t = chosen
    assert 2 <= t <= k <= n - 1
    assert meets(n, c, r, k, t, adversary)
    assert t == 2 or not meets(n, c, r, k, t - 1, adversary)


@given(st.integers(3, 40), st.integers(0, 12), st.integers(0, 12), adversaries)
def test_a_choice_is_minimal(n, c, r, adversary):
    """No smaller even degree has a threshold, and no smaller threshold does at this degree."""
    try:
        k, t = choose(n, min(c, n - 1), min(r, n - 1), adversary)
    except ParameterError:
        return
    smaller = [(a, b) for a in range(2, min(k, n - 2), 2) for b in range(2, a + 1)] + [(k, b) for b in range(2, t)]
    assert not any(meets(n, c, r, a, b, adversary) for a, b in smaller)


@pytest.mark.parametrize(
    ("n", "c", "r", "adversary"),
    [
        (1_000, 50, 50, "lying"),
        (1_000, 50, 50, "curious"),
        (1_000, 330, 50, "curious"),
        (300, 60, 30, "lying"),
        (1_000, 50, 0, "lying"),
        (300, 99, 0, "lying"),
        (300, 99, 0, "curious"),
    ],
)
def test_a_choice_is_minimal_in_large_cohorts(n, c, r, adversary):
    """The search skips no degree that would do."""
    k, t = choose(n, c, r, adversary)
    smaller = [(a, b) for a in range(2, k, 2) for b in range(2, a + 1)] + [(k, b) for b in range(2, t)]
    assert not any(meets(n, c, r, a, b, adversary) for a, b in smaller)


@pytest.mark.parametrize("adversary", ["curious", "lying"])
def test_more_neighbours_at_the_same_share_are_safer(adversary):
    """With the threshold at four fifths of the degree, both bounds grow with the degree."""
    found = [bounds(1_000, 100, 50, k, 4 * k // 5, adversary) for k in range(20, 141, 20)]
    for values in zip(*found, strict=True):
        assert list(values) == sorted(set(values))


@pytest.mark.parametrize("adversary", ["curious", "lying"])
def test_more_corrupt_or_silent_clients_are_worse(adversary):
    """Security falls with the corrupt and the silent, correctness with the silent alone."""
    base, corrupt, silent = (bounds(1_000, c, r, 100, 75, adversary) for c, r in [(50, 50), (60, 50), (50, 60)])
    assert corrupt.security_bits < base.security_bits
    assert corrupt.correctness_bits == base.correctness_bits
    assert silent.security_bits < base.security_bits or adversary == "curious"
    assert silent.correctness_bits < base.correctness_bits


def test_counts_are_rounded_as_the_adversary_demands():
    """Fractions become counts: down for a curious server, up for a lying one, and as the decimals that were written."""
    assert choose(250, 0.05, 0.05, "curious") == choose(250, 12, 12, "curious") != choose(250, 13, 13, "curious")
    assert choose(250, 0.05, 0.05) == choose(250, 13, 13) != choose(250, 12, 12)
    # 0.07 * 100 is 7.000000000000001 in floats, 0.29 * 100 is 28.999999999999996.
    assert choose(100, 0.07, 0.07) == choose(100, 7, 7) != choose(100, 8, 8)
    assert choose(100, 0.29, 0.29, "curious") == choose(100, 29, 29, "curious") != choose(100, 28, 28, "curious")


@pytest.mark.parametrize(
    ("n", "c", "r", "adversary", "expected"),
    [
        (3, 0, 0, "lying", (2, 2)),
        (3, 0, 1, "curious", (2, 2)),
        (4, 1, 1, "lying", (3, 3)),
        (10, 1, 4, "lying", (9, 6)),
        (100, 33, 33, "lying", (99, 67)),
        (4, 2, 0, "curious", (3, 3)),
    ],
)
def test_where_no_sparse_graph_will_do_it_is_the_complete_one(n, c, r, adversary, expected):
    """Small cohorts and many silent clients need everybody; the rules are then deterministic."""
    assert choose(n, c, r, adversary) == expected
    assert expected[0] == n - 1
    assert bounds(n, c, r, *expected, adversary) == (math.inf, math.inf)


def test_the_complete_graph_is_sound_or_promises_nothing():
    """It needs t > c for a curious server, 2t > n + c for a lying one, n - r >= t for correctness; odd and even degrees alike."""
    assert bounds(10, 5, 4, 9, 6, "curious") == Bounds(math.inf, math.inf)
    assert bounds(10, 6, 4, 9, 6, "curious") == Bounds(0, math.inf)
    assert bounds(10, 2, 3, 9, 7, "lying") == Bounds(math.inf, math.inf)
    assert bounds(10, 2, 4, 9, 6, "lying") == Bounds(0, math.inf)
    assert bounds(11, 2, 5, 10, 7, "lying") == Bounds(math.inf, 0)


def test_what_cannot_happen_is_certain():
    """No corrupt and no silent client: infinite bits, no nan, no warning, for the smallest parameters."""
    assert choose(1_000, 0, 0, "curious") == Degree(2, 2)
    assert bounds(1_000, 0, 0, 2, 2, "curious") == (math.inf, math.inf)
    assert choose(1_000, 0, 0, "lying") == Degree(4, 4)
    assert bounds(1_000, 0, 0, 4, 4, "lying") == (math.inf, math.inf)


def test_hopeless_parameters_promise_nothing():
    """A bound of one or more is zero bits, never negative ones."""
    assert bounds(1_000, 999, 999, 2, 2, "curious") == (0, 0)
    assert bounds(1_000, 999, 999, 2, 2, "lying") == (0, 0)
    assert bounds(1_000, 900, 900, 500, 251, "lying") == (0, 0)


def test_a_huge_degree_is_summed_in_blocks(monkeypatch):
    """The sum over both stretches does not depend on how it is cut."""
    whole = bounds(400, 100, 20, 160, 125)
    monkeypatch.setattr("secagg.graph.degree._BLOCK", 7)
    blocks = bounds(400, 100, 20, 160, 125)
    assert blocks.security_bits == pytest.approx(whole.security_bits, rel=1e-12)
    assert whole.security_bits > 0


@pytest.mark.parametrize(
    ("n", "corrupt", "dropout", "adversary", "message"),
    [
        (2, 0, 0, "lying", r"n = 2 is outside 3\.\.1000000"),
        (True, 0, 0, "lying", "n must be an integer, got True"),
        (100.0, 0, 0, "lying", r"n must be an integer, got 100\.0"),
        (100, math.nan, 0, "lying", r"corrupt = nan must be a fraction in \[0, 1\)"),
        (100, -0.1, 0, "curious", r"corrupt = -0\.1 must be a fraction"),
        (100, 0, 1.0, "lying", r"dropout = 1\.0 must be a fraction"),
        (100, 0, math.inf, "lying", "dropout = inf must be a fraction"),
        (100, True, 0, "lying", "corrupt must be an integer, got True"),
        (100, "5", 0, "lying", "corrupt must be an integer, got '5'"),
        (100, -1, 0, "lying", r"corrupt = -1 is outside 0\.\.99"),
        (100, 0, 100, "curious", r"dropout = 100 is outside 0\.\.99"),
        (100, 0, 0, "honest", "adversary 'honest' is unknown"),
        (1_000, 0.5, 0.5, "curious", r"n - r = 500 clients cannot reach the quorum of 751.*n = 1000, c = 500, r = 500"),
        (1_000, 0.4, 0.4, "lying", r"n - r = 600 clients cannot reach the quorum of 701"),
        (4, 3, 0, "lying", r"threshold t = 4 must be in 2\.\.3: with c = 3 corrupt of n = 4"),
        (4, 3, 0, "curious", r"threshold t = 4 must be in 2\.\.3"),
    ],
)
def test_choices_that_cannot_be_made_are_refused_with_the_numbers(n, corrupt, dropout, adversary, message):
    """Bad arguments, and combinations for which there is no graph."""
    with pytest.raises(ParameterError, match=message):
        choose(n, corrupt, dropout, adversary)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2, 0, 0, 2, 2), "n = 2 is outside"),
        ((100, 100, 0, 10, 8), r"colluders = 100 is outside 0\.\.99"),
        ((100, 0.05, 0, 10, 8), r"colluders must be an integer, got 0\.05"),
        ((100, 0, -1, 10, 8), "dropouts = -1 is outside"),
        ((100, 0, 0, 100, 8), r"degree = 100 is outside 2\.\.99"),
        ((100, 0, 0, 11, 8), "degree = 11 must be even, or n - 1 = 99"),
        ((100, 0, 0, 10, 11), r"threshold = 11 is outside 2\.\.10"),
        ((100, 0, 0, 10, 1), "threshold = 1 is outside"),
        ((100, 0, 0, 10, 8, "honest"), "adversary 'honest' is unknown"),
    ],
)
def test_bounds_of_impossible_graphs_are_refused(arguments, message):
    """Bad arguments name themselves."""
    with pytest.raises(ParameterError, match=message):
        bounds(*arguments)
