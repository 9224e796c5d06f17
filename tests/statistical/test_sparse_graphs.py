"""Random rings against the bounds of secagg.graph.degree, at sizes where bad rings can be counted.

What makes a ring bad is found here by following shares and masks, not by the formulas that the bounds are sums of. Each check
compares a frequency with the bound of the parameters it was run with, at ALPHA; the same check must reject rings of a
smaller degree or threshold against that bound. Seeds are fixed, so the outcome is too.
"""

import itertools

import numpy as np
import pytest
from scipy import stats

from secagg.graph import degree
from secagg.protocols.pairwise.mask import settle

pytestmark = pytest.mark.statistical

ALPHA = 1e-6
COUNT = 20_000


def rings(seed, n, c, r=0):
    """COUNT random rings of n places: who is corrupt, and who of the others goes silent, each (COUNT, n) bool."""
    kind = np.zeros((COUNT, n), np.int8)
    kind[:, :c] = 1
    kind[:, c : c + r] = 2
    kind = np.random.default_rng(seed).permuted(kind, axis=1)
    return kind == 1, kind == 2


def around(marked, k):
    """How many of a place's k neighbours are marked; same shape, int."""
    return sum(np.roll(marked, step, axis=-1).astype(np.int16) for step in range(-(k // 2), k // 2 + 1) if step)


def within(bits, frequency):
    """p-value of a number of bad rings if a ring is bad with at most 2^-bits."""
    return float(stats.binom.sf(np.count_nonzero(frequency) - 1, len(frequency), 2.0**-bits))


def opened(corrupt, k, t):
    """Rings on which the corrupt neighbours of an honest client open its secrets on their own."""
    return np.any(~corrupt & (around(corrupt, k) >= t), axis=1)


def cut(gone, k):
    """Rings on which the clients that are left cannot all reach each other."""
    left = ~gone
    reached = left & (np.cumsum(left, axis=1) == 1)
    while True:
        further = reached | (left & (around(reached, k) > 0))
        if np.array_equal(further, reached):
            return np.any(left & ~reached, axis=1)
        reached = further


def stuck(silent, k, t):
    """Rings on which somebody's secrets have fewer than t live holders."""
    return np.any(around(~silent, k) + ~silent < t, axis=1)


@pytest.mark.parametrize(("n", "c", "r", "k", "t"), [(60, 12, 6, 12, 8), (100, 20, 20, 14, 10), (200, 10, 10, 10, 5)])
def test_a_curious_server_opens_a_client_no_oftener_than_the_bound(n, c, r, k, t):
    """Clients with t corrupt neighbours stay within the bound; one share fewer, or a third fewer shares, is rejected."""
    corrupt, silent = rings(1, n, c, r)
    bits = degree.bounds(n, c, r, k, t, "curious").security_bits
    assert bits > 3
    assert within(bits, opened(corrupt, k, t) | cut(corrupt | silent, k)) > ALPHA
    assert within(bits, opened(corrupt, k, t - 2)) < ALPHA


@pytest.mark.parametrize(("n", "c", "r", "k"), [(40, 8, 8, 8), (60, 15, 15, 12), (100, 20, 10, 10)])
def test_a_curious_server_finds_survivors_apart_no_oftener_than_the_bound(n, c, r, k):
    """Rings whose survivors fall apart stay within the bound; rings of two neighbours fewer are rejected."""
    corrupt, silent = rings(2, n, c, r)
    bits = degree.bounds(n, c, r, k, k, "curious").security_bits
    assert bits > 3
    assert within(bits, cut(corrupt | silent, k)) > ALPHA
    assert within(bits, cut(corrupt | silent, k - 2)) < ALPHA


@pytest.mark.parametrize(("n", "r", "k", "t"), [(60, 6, 12, 7), (100, 20, 20, 10), (200, 10, 10, 6)])
def test_secrets_are_left_without_holders_no_oftener_than_the_bound(n, r, k, t):
    """Secrets with fewer than t live holders stay within the bound; a threshold one higher, or two neighbours fewer, is rejected."""
    _, silent = rings(3, n, 0, r)
    bits = degree.bounds(n, 0, r, k, t).correctness_bits
    assert bits > 3
    assert within(bits, stuck(silent, k, t)) > ALPHA
    assert within(bits, stuck(silent, k, t + 1)) < ALPHA
    assert within(bits, stuck(silent, k - 2, t)) < ALPHA


def arcs(corrupt, k, t, budget):
    """Rings on which a lying server, by dropping honest clients, learns the sum of an arc of the others.

    It leaves the honest clients of an arc alive, drops those within k / 2 places on either side, and leaves the rest alive.
    The arc's sum opens if every honest client on it has t holders among itself, its neighbours on the arc and the corrupt.

    Args:
        corrupt: Rings, (count, n) bool.
        k: Degree.
        t: Threshold.
        budget: Honest clients that can be dropped.
    """
    n, half = corrupt.shape[1], k // 2
    found = np.zeros(len(corrupt), bool)
    sums = np.cumsum(np.pad(np.tile(corrupt, 3), ((0, 0), (1, 0))), axis=1, dtype=np.int16)

    def count(first, last):
        """Corrupt clients on the places first … last, counted from each place of the ring; (count, n)."""
        return sums[:, n + last + 1 : 2 * n + last + 1] - sums[:, n + first : 2 * n + first]

    def opens(place, length):
        """Whether the client at a place of the arc that starts at each place of the ring opens, or is corrupt; (count, n)."""
        first, last = max(0, place - half), min(length - 1, place + half)
        holders = last - first + 1 + count(place - half, first - 1) + count(last + 1, place + half)
        return (holders >= t) | np.roll(corrupt, -place, axis=1)

    # On an arc of more than k the two ends do not see each other.
    left = np.logical_and.reduce([opens(place, n) for place in range(half)])
    right = np.logical_and.reduce([np.roll(opens(k - place, k + 1), k, axis=1) for place in range(half)])
    for length in range(1, n - k):
        if length > k:
            everybody = left & np.roll(right, -(length - 1), axis=1)
        else:
            everybody = np.logical_and.reduce([opens(place, length) for place in range(length)])
        dropped = k - count(-half, -1) - count(length, length + half - 1)
        on_the_arc = length - count(0, length - 1)
        beyond = n - k - length - count(length + half, n - half - 1)
        found |= np.any(everybody & (dropped <= budget) & (on_the_arc > 0) & (beyond > 0), axis=1)
    return found


def split(corrupt, k, t):
    """Rings on which a lying server opens one honest client by showing it another U2 than the others.

    The client masks with t - 1 neighbours, the corrupt ones and honest ones that the others hear have dropped out; the rest of
    its neighbours, and the corrupt, then hold the shares of its self seed.
    """
    near = around(corrupt, k)
    return np.any(~corrupt & (near + (k - np.maximum(t - 1, near)) >= t), axis=1)


@pytest.mark.parametrize(
    ("n", "c", "k", "t"), [(40, 6, 10, 9), (60, 6, 10, 9), (40, 7, 8, 8), (60, 12, 14, 13), (30, 8, 10, 10)]
)
def test_a_lying_server_learns_a_part_no_oftener_than_the_bound(n, c, k, t):
    """An adversary that sees the ring and drops whom it likes stays within the bound; a smaller degree or threshold is rejected."""
    corrupt, _ = rings(4, n, c)
    bits = degree.bounds(n, c, 0, k, t).security_bits
    assert bits > 3
    assert within(bits, arcs(corrupt, k, t, n) | split(corrupt, k, t)) > ALPHA
    assert within(bits, arcs(corrupt, k, t - 1, n)) < ALPHA
    assert within(bits, arcs(corrupt, k - 2, t - 2, n)) < ALPHA


@pytest.mark.parametrize(("n", "c", "r", "k", "t"), [(60, 6, 9, 12, 10), (60, 6, 12, 14, 11), (60, 9, 15, 16, 13)])
def test_dropouts_chosen_on_sight_break_the_bound_for_random_ones(n, c, r, k, t):
    """The published bound for a lying server, with dropouts that know nothing of the ring, is rejected; ours is not."""
    corrupt, _ = rings(5, n, c)
    published = degree.bounds(n, c, r, k, 2 * t - k - 1, "curious").security_bits
    assert published > 10
    assert within(published, arcs(corrupt, k, t, r)) < ALPHA
    assert within(degree.bounds(n, c, r, k, t).security_bits, arcs(corrupt, k, t, r)) > ALPHA


def test_parameters_for_a_curious_server_do_not_bind_a_lying_one():
    """At full size: with dropouts chosen on sight every ring of the published degree falls apart, and none of the chosen degree."""
    corrupt = rings(6, 1_000, 50)[0][:100]
    assert arcs(corrupt, 30, 17, budget=50).all()
    assert not arcs(corrupt, *degree.choose(1_000, 50, 50), budget=50).any()


OPEN, FRINGE, DECOY, IDLE, DROPPED = range(5)


def leaks(corrupt, k, t):
    """Every way in which a lying server that splits the clients' views learns the sum of a part of one small ring.

    All clients that answer at the end agree on one (U2, U3). A part K leaks if each of its self seeds has t answering or
    corrupt holders, and each of its pair masks is shared with K, with a corrupt client or with one that dropped out. Roles of
    the honest: OPEN, in K, answers; FRINGE, in K, was shown another U2, masks only with K, the corrupt and the dropped, and
    never answers; DECOY, outside K, answers; IDLE, outside K, listed as alive, does not answer; DROPPED, listed as dropped.

    Args:
        corrupt: One ring, (n,) bool.
        k: Degree.
        t: Threshold.

    Returns:
        The roles, -1 for the corrupt; shape (leaks, n).
    """
    honest = np.count_nonzero(~corrupt)
    role = np.full((5**honest, len(corrupt)), -1, np.int8)
    role[:, ~corrupt] = np.indices((5,) * honest, dtype=np.int8).reshape(honest, -1).T
    part, outside = (role == OPEN) | (role == FRINGE), (role == DECOY) | (role == IDLE)
    bad = around(role == -1, k)
    answering = around((role == OPEN) | (role == DECOY), k) + bad
    masked_with = around(part | (role == DROPPED), k) + bad
    wrong = (role == OPEN) & ((around(outside, k) > 0) | (answering + 1 < t))
    wrong |= (role == FRINGE) & ((masked_with + 1 < t) | (answering < t))
    wrong |= (role == DECOY) & (around(part | outside, k) + bad + 1 < t)
    return role[part.any(axis=1) & outside.any(axis=1) & ~wrong.any(axis=1)]


def bad_ring(corrupt, k, t):
    """The two events of the bound for a lying server: too many corrupt neighbours, two heavy stretches."""
    n, half = len(corrupt), k // 2
    neighbours = np.any(~corrupt & (2 * t <= k + 1 + around(corrupt, k)))
    heavy = [
        place for place in range(n) if np.take(corrupt, range(place, place + half), mode="wrap").sum() >= t - half - 1
    ]
    stretches = any(half < b - a < n - half for a, b in itertools.combinations(heavy, 2))
    return bool(neighbours), stretches


@pytest.mark.parametrize(
    ("n", "c", "k", "t"), [(8, 2, 4, 4), (9, 2, 4, 4), (9, 3, 6, 5), (10, 3, 6, 6), (10, 4, 6, 6), (11, 5, 6, 6)]
)
def test_no_lie_leaks_on_a_ring_without_the_two_events(n, c, k, t):
    """Over every placement and every role of every client, a part leaks only where the bound counts the ring as bad.

    The events of a threshold one higher do not cover the leaks, wherever there are any.
    """
    leaking = missed = 0
    for others in itertools.combinations(range(1, n), c - 1):
        corrupt = np.isin(np.arange(n), (0, *others))
        if len(leaks(corrupt, k, t)):
            leaking += 1
            missed += not any(bad_ring(corrupt, k, t + 1))
            assert any(bad_ring(corrupt, k, t)), others
    assert (missed > 0) == (leaking > 0)


def test_a_split_view_needs_no_dropout():
    """A client can be left out of the sum while nobody is listed as dropped, so a limit on dropouts lowers no bound."""
    corrupt = np.isin(np.arange(11), (0, 1, 4, 5))
    found = leaks(corrupt, 6, 6)
    dropped = np.count_nonzero(found == DROPPED, axis=1)
    one_view = ~np.any(found == FRINGE, axis=1)
    assert dropped.min() == 0
    assert dropped[one_view].min() == 2
    assert bad_ring(corrupt, 6, 6) == (False, True)


def test_without_the_neighbour_rule_one_client_is_opened():
    """A ring without two heavy stretches leaks one client's input through two views of U2 if 2t <= k + 1 + its corrupt neighbours."""
    corrupt = np.isin(np.arange(12), (0, 1, 2, 3, 7))
    found = leaks(corrupt, 8, 7)
    assert bad_ring(corrupt, 8, 7) == (True, False)
    assert len(found)
    assert np.all(np.any(found == FRINGE, axis=1))


def accusers(targets, corrupt, k):
    """A corrupt neighbour for each target that refuses it and nobody else, by corrupt client; None where there are too few."""
    n, chosen = len(corrupt), {}

    def place(target, asked):
        for step in range(-(k // 2), k // 2 + 1):
            cheat = (target + step) % n
            if corrupt[cheat] and cheat not in asked:
                asked.add(cheat)
                if cheat not in chosen or place(chosen[cheat], asked):
                    chosen[cheat] = target
                    return True
        return False

    return chosen if all(place(target, set()) for target in targets) else None


def split_by_refusals(corrupt, k, t, least):
    """Whether false refusals by the corrupt alone cut one ring's honest survivors in two, under a server that follows the protocol.

    Each corrupt client knows the ring by then and refuses one honest neighbour; the server settles the disputes by its rule.
    The round goes on: every survivor keeps t holders, and the fewest survivors are there.

    Args:
        corrupt: One ring, (n,) bool.
        k: Degree.
        t: Threshold.
        least: Fewest survivors.
    """
    n, half, c = len(corrupt), k // 2, np.count_nonzero(corrupt)
    price = sum(np.roll(~corrupt, -step).astype(int) for step in range(half))
    pairs = [(price[a] + price[b], a, b) for a in range(n) for b in range(a + half + 1, min(n, a + n - half))]
    for cost, *starts in sorted(pairs)[:400]:
        if cost > min(c, n - least):
            break
        targets = [place % n for a in starts for place in range(a, a + half) if not corrupt[place % n]]
        refused = accusers(targets, corrupt, k)
        if refused is None:
            continue
        gone = np.zeros(n, bool)
        gone[list(settle({i: (refused[i],) if i in refused else () for i in range(n)}, c))] = True
        stays = np.count_nonzero(~gone) >= least and not np.any(~gone & (around(~gone, k) + 1 < t))
        if stays and cut((corrupt | gone)[np.newaxis], k)[0]:
            return True
    return False


@pytest.mark.parametrize(("n", "c", "r", "k", "t"), [(40, 8, 8, 16, 13), (60, 12, 9, 20, 16), (60, 15, 10, 20, 17)])
def test_false_refusals_keep_to_the_lying_bound_and_not_to_the_curious_one(n, c, r, k, t):
    """Clients that cheat under an honest server split the sum oftener than the curious bound, and only on rings that the lying one counts."""
    corrupt = rings(7, n, c)[0][:1_000]
    found = np.array([split_by_refusals(ring, k, t, n - r) for ring in corrupt])
    curious, lying = (degree.bounds(n, c, r, k, t, adversary).security_bits for adversary in ("curious", "lying"))
    assert curious > 20
    assert within(curious, found) < ALPHA
    assert lying > 1
    assert within(lying, found) > ALPHA
    assert all(any(bad_ring(ring, k, t)) for ring in corrupt[found])
    assert not all(any(bad_ring(ring, k, t + 1)) for ring in corrupt[found])


def test_parameters_for_a_curious_server_do_not_bind_cheating_clients():
    """At full size: false refusals split rings of the curious degree, and none of the lying one."""
    corrupt = rings(8, 1_000, 330)[0][:6]
    for adversary, splits in (("curious", True), ("lying", False)):
        chosen = degree.choose(1_000, 330, 50, adversary)
        assert any(split_by_refusals(ring, *chosen, least=950) for ring in corrupt) == splits
