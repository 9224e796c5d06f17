"""Gaussian releases with and without Poisson batches that stand together: a run's plan, or all that a ledger holds.

A release has ``mu = sensitivity / sigma`` of one record that takes part, and the probability ``rate`` with which it does.
Three bounds hold for a sequence of them, against adding or removing a record:

* ``closed_form``: as if every record took part in every release. Telling the coins makes nothing harder to tell apart, and
  given the coins the releases are Gaussians whose ``mu**2`` sum to no more than all.
* ``rdp``: Rényi divergences add up at each order, whatever was chosen after seeing what.
* ``pld``: privacy loss distributions are convolved; for a sequence that was fixed in advance, or is no worse than one.

Costs grow with mu and with the rate, so a coin that falls a little less often than its rate says costs no more.
"""

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from privacy.accounting.gaussian import RDP_ORDERS, closed_form, rdp_epsilon, with_sampler
from privacy.accounting.guard import Subsampled
from privacy.accounting.pld import Direction, Losses, Vector, bounded_epsilon, one_step, pld_grid, rounding_delta
from privacy.accounting.routes import EpsilonBound, consistent
from privacy.accounting.subsampled import rdp_add_remove, rdp_replace_one

MOST_KINDS: Final = 8  # that a PLD is composed of; each takes as long as a plan

_CONVOLUTION_STEPS: Final = 100  # what joining two PLDs may cost, counted as steps of `rounding_delta`
_DIRECTIONS: Final[tuple[Direction, ...]] = ("remove", "add")


class Release(NamedTuple):
    """One kind of release.

    Attributes:
        mu: Sensitivity over standard deviation, for a record that takes part; positive.
        rate: Probability with which it does, in (0, 1].
    """

    mu: float
    rate: float


def divergences(release: Release, *, replaced: bool = False) -> Vector:
    """Rényi divergences of one release at `RDP_ORDERS`: ``float64 (66,)``, not to be written to.

    Args:
        release: Its mu is that of adding a record.
        replaced: For a record that is replaced instead: privacy.accounting.subsampled has the pair of laws.

    Guarantees:
        Never above those of the release at rate 1, and never infinite where those are not.
    """
    return _divergences(release, replaced)


@lru_cache(maxsize=4096)
def _divergences(release: Release, replaced: bool) -> Vector:  # by position, so that one question has one key
    mu, rate = release
    moved = 2 * mu if replaced else mu
    orders = np.array(RDP_ORDERS, np.float64)
    result: Vector = orders * (moved * moved / 2)
    if rate < 1:
        step = rdp_replace_one if replaced else rdp_add_remove
        result = np.minimum(result, [step(order, 1 / mu, rate) for order in RDP_ORDERS])
    result.flags.writeable = False
    return result


def counted(release: Release, order: int) -> float:
    """What a filter at one order counts a release as: its mu**2 where the rate is 1, and less below."""
    return 2 * float(divergences(release)[RDP_ORDERS.index(order)]) / order


def best_order(release: Release, epsilon: float, delta: float) -> int | None:
    """The order at which most such releases stay within (epsilon, delta); None where no order has room for anything."""
    room = np.array([order_room(order, epsilon, delta) for order in RDP_ORDERS])
    with np.errstate(divide="ignore"):
        count = room / divergences(release)
    best = int(np.argmax(count))
    return RDP_ORDERS[best] if room[best] > 0 else None


def order_room(order: int, epsilon: float, delta: float) -> float:
    """The Rényi divergence that (epsilon, delta) has room for at one order, by [CKS20, Prop. 12]; negative where for none."""
    return (epsilon - math.log1p(-1 / order) + (math.log(delta) + math.log(order)) / (order - 1)) * (1 - 1e-12)


def releases_epsilon(releases: Mapping[Release, int], delta: float, *, sampler_delta: float = 0.0) -> EpsilonBound:
    """Epsilon of releases that were fixed in advance, against adding or removing a record.

    Args:
        releases: How many of each kind.
        delta: In (0, 1).
        sampler_delta: As for `gaussian_epsilon`.

    Raises:
        AccountingError: a number is beyond float64, or the routes contradict.

    Guarantees:
        ``upper`` is the smallest finite one of the routes ``closed_form``, ``rdp`` and ``pld``.
    """
    squares = sum(count * release.mu**2 for release, count in releases.items())
    curve = np.sum([count * divergences(release) for release, count in releases.items()], axis=0)
    routes = {
        "closed_form": with_sampler(lambda left: closed_form(squares, left), delta, sampler_delta),
        "rdp": with_sampler(lambda left: rdp_epsilon(curve, left), delta, sampler_delta),
    }
    return with_pld(routes, releases, delta, sampler_delta)


def with_pld(
    routes: dict[str, float], releases: Mapping[Release, int], delta: float, sampler_delta: float
) -> EpsilonBound:
    """Add the PLD of releases to routes that are known, and hold its lower bound against them.

    Raises:
        AccountingError: the routes contradict.
    """
    kinds = {release: count for release, count in releases.items() if release.rate < 1}
    full = sum(count * release.mu**2 for release, count in releases.items() if release.rate == 1)
    if full:
        kinds[Release(math.sqrt(full), 1.0)] = 1  # Gaussians together are one
    bounds = _pld(tuple(sorted(kinds.items())), delta, sampler_delta)
    if bounds is None:
        return consistent(0.0, routes)
    return consistent(bounds[1], routes | {"pld": bounds[0]})


@lru_cache(maxsize=256)
def _pld(kinds: tuple[tuple[Release, int], ...], delta: float, sampler_delta: float) -> tuple[float, float] | None:
    """Epsilon from above and from below; None where there are too many kinds, or one that no PLD holds."""
    if len(kinds) > MOST_KINDS:
        return None
    mechanisms = [Subsampled(1 / mu, rate, count, replace_one=False) for (mu, rate), count in kinds]
    grids = [pld_grid(each, delta) for each in mechanisms]
    slack = rounding_delta(sum(each.steps for each in mechanisms) + _CONVOLUTION_STEPS * (len(kinds) - 1))
    if not kinds or None in grids or slack > delta / 2:
        return None
    grid = max(each for each in grids if each is not None)
    above, below = (
        [_joined(mechanisms, grid, direction, pessimistic=pessimistic) for direction in _DIRECTIONS]
        for pessimistic in (True, False)
    )
    upper = with_sampler(lambda left: max(bounded_epsilon(each, left, slack) for each in above), delta, sampler_delta)
    return upper, max(bounded_epsilon(each, delta, slack) for each in below)


def _joined(mechanisms: Iterable[Subsampled], grid: float, direction: Direction, *, pessimistic: bool) -> Losses:
    """The loss of all of them, one after the other."""
    first, *rest = (
        one_step(each, grid, direction, pessimistic=pessimistic).composed(each.steps) for each in mechanisms
    )
    for other in rest:
        first = _convolved(first, other)
    return first


def _convolved(one: Losses, other: Losses) -> Losses:
    """The sum of two independent losses on one grid."""
    from scipy.signal import fftconvolve  # noqa: PLC0415 - half a second to import

    masses = np.asarray(fftconvolve(one.masses, other.masses))
    if one.pessimistic:
        masses = np.maximum(masses, 0)
    infinity = one.infinity + other.infinity - one.infinity * other.infinity
    return Losses(one.grid, one.lowest + other.lowest, masses, infinity, one.pessimistic)
