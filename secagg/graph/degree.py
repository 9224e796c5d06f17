"""How many neighbours and shares a sparse round needs: union bounds over a random ring, and the search that meets them.

The n clients stand on a ring in uniformly random order, each next to its k/2 nearest on either side (k even). Client i's
secrets have k + 1 holders, N(i) and i itself, and open with t shares. Corrupt clients are fixed before the order is drawn.

Curious server (everybody follows the protocol, corrupt clients too; who goes silent does not depend on the order), at most 2^-40:
    an honest client has t corrupt neighbours, or the honest survivors are not connected on the ring.
    Clients that cheat are not covered: by refusing others falsely they choose who drops out, after they have seen the order.
Lying server (chooses who is listed as alive after it has seen the order, and can try 2^64 orders) and clients that cheat, at most
2^-104 per order:
    an honest client i has so many corrupt neighbours c_i that 2t <= k + 1 + c_i, or two disjoint stretches of k/2 places
    hold at least t - k/2 - 1 corrupt clients each.
Correctness, at most 2^-20: somebody's secrets are left with fewer than t holders by r clients that go silent.

docs/graphs.md derives why nothing else can go wrong. The structure is that of [BBG+20]; its lying columns do not carry over.
"""

import functools
import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from secagg.errors import ParameterError

# -log2 of the largest failure probability. A lying server moves last and can try 2^64 transcripts.
SECURITY_BITS = {"curious": 40, "lying": 40 + 64}
CORRECTNESS_BITS = 20
MAX_CLIENTS = 10**6
# lgamma is off by under 1e-8 nats at 10^6, and a log-probability adds up nine of them; sums and the rest of the arithmetic are
# good to 1e-9. Every bound gives this much away, so that rounding is on the safe side.
_SLACK_BITS = 1e-6
_LN2 = math.log(2)
_BLOCK = 2**18

_Floats = NDArray[np.float64]


class Degree(NamedTuple):
    """The parameters of a graph.

    Attributes:
        degree: Neighbours of a client, k: even, or n - 1 for the complete graph.
        threshold: Shares that open a secret, t; 2 <= t <= k.
    """

    degree: int
    threshold: int


class Bounds(NamedTuple):
    """What is proved about a graph, as -log2 of the failure probabilities: 0 is no promise, infinity is certainty.

    Attributes:
        security_bits: Of an order of the ring on which the server can learn anything but the sum of all survivors.
        correctness_bits: Of a round that r random silent clients end, because a secret has fewer than t holders left.
    """

    security_bits: float
    correctness_bits: float


class _Case(NamedTuple):
    """Who is against a graph: n clients, c corrupt, r silent ones, and the server."""

    n: int
    c: int
    r: int
    curious: bool


def choose(n: int, corrupt: float, dropout: float, adversary: str = "lying") -> Degree:
    """The smallest degree that meets the bounds, and with it the smallest threshold.

    Where no sparse graph does, the complete one, whose rules are deterministic: t > c, and 2t > n + c if the server lies.

    Args:
        n: Clients in the cohort, 3 … 10^6.
        corrupt: Clients that may share what they see with the server, and beside a lying one also cheat. A float is a fraction
            in [0, 1), rounded down for a curious and up for a lying server; an int is a count.
        dropout: Clients that may go silent, in the same form and rounded the same way.
        adversary: "lying" or "curious".

    Raises:
        ParameterError: An argument out of range, or no graph at all can work; the message has the numbers.

    Guarantees:
        `bounds` of the result is at least 40 (curious) or 104 (lying) bits of security and 20 of correctness.
        No smaller even degree has a threshold with these bounds; no smaller threshold has them at this degree.
    """
    n = _require("n", n, 3, MAX_CLIENTS)
    needed = _security_bits(adversary)
    c = _count("corrupt", corrupt, n, adversary)
    r = _count("dropout", dropout, n, adversary)
    quorum = (n + c) // 2 + 1
    if n - r < quorum:
        raise ParameterError(
            f"n - r = {n - r} clients cannot reach the quorum of {quorum}, more than half of n + c (n = {n}, c = {c}, r = {r}): "
            f"no graph helps"
        )
    sparse = _search(_Case(n, c, r, adversary == "curious"), needed)
    if sparse is not None:
        return sparse
    t = max(2, c + 1 if adversary == "curious" else quorum)
    if t > n - 1:
        raise ParameterError(
            f"threshold t = {t} must be in 2..{n - 1}: with c = {c} corrupt of n = {n} clients there is nobody to protect"
        )
    return Degree(n - 1, t)


def bounds(  # noqa: PLR0917 - the numbers of one formula, in the order in which docs/graphs.md introduces them
    n: int, colluders: int, dropouts: int, degree: int, threshold: int, adversary: str = "lying"
) -> Bounds:
    """What is proved about a graph.

    Args:
        n: Clients in the cohort, 3 … 10^6. Curious: the places on the ring. Lying: the most there are; as a reserve the bound
            covers every ring of n - r … n places.
        colluders: At most so many corrupt clients, c. Curious: they follow the protocol.
        dropouts: At most so many silent clients, r. Lying: a sum has at least n - r contributions, or clients refuse it.
        degree: k, even and below n - 1, or n - 1 for the complete graph.
        threshold: t in 2 … k.
        adversary: "lying" or "curious".

    Raises:
        ParameterError: An argument out of range.

    Guarantees:
        Lower bounds in bits, never negative, with the rounding of floats on the safe side.
    """
    n = _require("n", n, 3, MAX_CLIENTS)
    c = _require("colluders", colluders, 0, n - 1)
    r = _require("dropouts", dropouts, 0, n - 1)
    k = _require("degree", degree, 2, n - 1)
    t = _require("threshold", threshold, 2, k)
    _security_bits(adversary)
    case = _Case(n, c, r, adversary == "curious")
    if k == n - 1:
        sound = t > c and (case.curious or 2 * t > n + c)
        return Bounds(math.inf if sound else 0.0, math.inf if n - r >= t else 0.0)
    if k % 2:
        raise ParameterError(f"degree = {k} must be even, or n - 1 = {n - 1} for the complete graph")
    return Bounds(_bits(_log_insecure(case, k, t)), _bits(float(_log_incorrect(case, k)[t])))


def _search(case: _Case, needed: int) -> Degree | None:
    """The smallest sparse degree that has a threshold, with its smallest threshold; None where there is none."""
    k = 2
    while k < case.n - 1:
        high = _highest_correct(case, k)
        low = _lowest_by_neighbours(case, k, needed)
        if low > high:
            # Two more neighbours raise `high` by at most 2, and never lower `low`; a lying server's `low` rises by at least
            # 1. So no degree in between closes the gap, and skipping keeps the result minimal.
            gap = low - high
            k += gap + gap % 2 if case.curious else 2 * gap
            continue
        if _bits(_log_insecure(case, k, high)) >= needed:
            return Degree(k, next(t for t in range(low, high + 1) if _bits(_log_insecure(case, k, t)) >= needed))
        k += 2
    return None


def _highest_correct(case: _Case, k: int) -> int:
    """The largest threshold that meets the correctness bound, 0 … k; the failure grows with the threshold."""
    return int(np.flatnonzero(-_log_incorrect(case, k) / _LN2 - _SLACK_BITS >= CORRECTNESS_BITS)[-1])


def _lowest_by_neighbours(case: _Case, k: int, needed: int) -> int:
    """The smallest threshold at which corrupt neighbours alone are rare enough; above k if there is none."""
    rare = math.log(case.n) + _tails(_log_corrupt_neighbours(case, k)) <= -needed * _LN2
    fewest = int(np.argmax(np.append(rare, [True])))  # so many corrupt neighbours nobody has
    return max(2, fewest) if case.curious else (k + 1 + fewest + 1) // 2


def _log_insecure(case: _Case, k: int, t: int) -> float:
    """Log of the union bound on a bad ring."""
    n, c, r, curious = case
    too_many = max(0, t if curious else 2 * t - k - 1)
    tails = _tails(_log_corrupt_neighbours(case, k))
    by_neighbours = math.log(n) + float(tails[too_many]) if too_many <= k else -math.inf
    # Two stretches, disjoint and at least one place apart on either side: n (n - k - 1) / 2 pairs.
    pairs = math.log(n) + math.log(n - k - 1) - _LN2
    by_stretches = _log_all_gone(n, min(n, c + r), k) if curious else _log_two_stretches(case, k, t - k // 2 - 1)
    return float(np.logaddexp(by_neighbours, pairs + by_stretches))


def _log_incorrect(case: _Case, k: int) -> _Floats:
    """Log of the union bound on a secret with fewer than t live holders, for t = 0 … k; shape (k + 1,).

    A survivor holds one share itself and needs t - 1 live neighbours among n - 1 others, of which r are silent. A silent
    client needs t, but is not among its own silent neighbours: r - 1 of the others are.
    """
    n, _, r, _ = case
    failure = np.full(k + 1, -math.inf)
    # Entry x: at least x silent neighbours. Fewer than t - 1 of k alive are at least k - t + 2 silent.
    failure[2:] = math.log(n) + _tails(_log_hypergeometric(n, n - 1, r, k))[:1:-1]
    if r:
        of_silent = _tails(_log_hypergeometric(n, n - 1, r - 1, k))
        failure[1:] = np.logaddexp(failure[1:], math.log(r) + of_silent[:0:-1])
    return failure


def _log_corrupt_neighbours(case: _Case, k: int) -> _Floats:
    """Log-probabilities of 0 … k corrupt neighbours of an honest client; shape (k + 1,).

    Lying: on the smallest ring that the reserve covers; on one of k + 1 or fewer everybody is a neighbour.
    """
    n, c, r, curious = case
    others = n - 1 if curious else max(n - r - 1, k)
    return _log_hypergeometric(n, others, min(c, others), k)


def _log_all_gone(n: int, gone: int, k: int) -> float:
    """Log-probability that k given places are among the random ones of `gone` clients."""
    return -math.inf if gone < k else float(_log_choose(n, n - k, gone - k) - _log_choose(n, n, gone))


def _log_two_stretches(case: _Case, k: int, least: int) -> float:
    """Log-probability that each of two given disjoint stretches of k / 2 places holds `least` or more corrupt clients.

    The fewer places there are on the ring, the likelier; a ring of k + 1 or fewer has no two stretches that cut it.
    """
    n, c, r, _ = case
    places, half = max(n - r, k + 2), k // 2
    if least <= 0 or c > places:
        return 0.0
    counts = np.arange(least, min(half, c - least) + 1)
    each = _log_choose(n, half, counts)
    rest = places - k
    rows = max(1, _BLOCK // max(1, len(counts)))
    total = -math.inf
    for start in range(0, len(counts), rows):  # in blocks: a huge degree with a low threshold would not fit into memory
        outside = c - counts[start : start + rows, None] - counts
        possible = (outside >= 0) & (outside <= rest)
        joint = each[start : start + rows, None] + each + _log_choose(n, rest, np.clip(outside, 0, rest))
        total = float(np.logaddexp(total, np.logaddexp.reduce(joint[possible], initial=-math.inf)))
    return total - float(_log_choose(n, places, c))


def _log_hypergeometric(n: int, population: int, marked: int, draws: int) -> _Floats:
    """Log-probabilities of 0 … draws marked ones in a sample without replacement, -inf where impossible; shape (draws + 1,)."""
    found = np.arange(draws + 1)
    possible = (found <= marked) & (draws - found <= population - marked)
    x = found[possible]
    out = np.full(draws + 1, -math.inf)
    out[possible] = (
        _log_choose(n, marked, x) + _log_choose(n, population - marked, draws - x) - _log_choose(n, population, draws)
    )
    return out


def _tails(log_probabilities: _Floats) -> _Floats:
    """Log-probability of x or more, for every x; same shape."""
    return np.logaddexp.accumulate(log_probabilities[::-1])[::-1]


def _log_choose(n: int, of: int, pick: int | NDArray[np.int_]) -> _Floats:
    """Log of the binomial coefficients, of <= n, from the table of n."""
    table = _log_factorials(n)
    return np.asarray(table[of] - table[pick] - table[of - pick])


@functools.lru_cache(maxsize=8)
def _log_factorials(n: int) -> _Floats:
    """log(x!) for x = 0 … n; shape (n + 1,)."""
    return np.array([math.lgamma(x + 1) for x in range(n + 1)])


def _bits(log_probability: float) -> float:
    """-log2 of a bound, less the slack; a bound of 1 or more promises nothing."""
    return max(0.0, -log_probability / _LN2 - _SLACK_BITS)


def _count(name: str, value: object, n: int, adversary: str) -> int:
    """A fraction or a count, as a count."""
    if not isinstance(value, float):
        return _require(name, value, 0, n - 1)
    if not 0 <= value < 1:
        raise ParameterError(f"{name} = {value} must be a fraction in [0, 1), or an int that counts clients")
    # The decimal that was written, not its binary neighbour: 0.07 of 100 clients are 7, rounded up or down.
    exact = Fraction(str(float(value))) * n
    return math.floor(exact) if adversary == "curious" else math.ceil(exact)


def _require(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ParameterError(f"{name} must be an integer, got {value!r}")
    if not low <= value <= high:
        raise ParameterError(f"{name} = {value} is outside {low}..{high}")
    return value


def _security_bits(adversary: str) -> int:
    needed = SECURITY_BITS.get(adversary)
    if needed is None:
        raise ParameterError(f"adversary {adversary!r} is unknown; 'lying' or 'curious'")
    return needed
