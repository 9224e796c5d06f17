"""Two independent routes to every epsilon, behind a guard that refuses what has no sound answer.

* Every record in every step (``sample_rate = 1``): the closed form and Rényi (privacy.accounting.gaussian), with a
  privacy loss distribution (PLD) as a cross-check.
* Poisson-subsampled: a pessimistic PLD (privacy.accounting.pld) and Rényi at integer orders (privacy.accounting.subsampled);
  the optimistic PLD bounds epsilon from below. The unsampled closed form is a third upper bound, for what a PLD cannot
  hold in memory.

Upper bounds have no fixed order (a PLD's grid is loose for many steps), so the smallest finite one is reported. Routes
that contradict each other raise: one of them is wrong, and nobody can say which.

Under secure aggregation these are claims of computational differential privacy [MPRV09]: they rest on the masks.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from privacy.accounting.gaussian import (
    MAX_MU_SQUARED,
    MIN_MU_SQUARED,
    closed_form,
    largest_mu_squared,
    rdp_form,
    with_sampler,
)
from privacy.accounting.guard import (
    Relation,
    Sampling,
    Subsampled,
    Unit,
    not_negative,
    positive,
    probability,
    question,
)
from privacy.accounting.pld import gaussian_bounds, pld_grid, pld_route
from privacy.accounting.subsampled import rdp_route
from privacy.errors import AccountingError

_MARGIN: Final = 1e-9  # so that a filter which sums the steps one by one, rounding up, lets the last one pass
_CHECK_CELLS: Final = 50_000  # the closed form's cross-check may be on a coarse grid
_CHECK_MAX_MU: Final = 25.0  # the PLD's losses overflow beyond
_CHECK_DELTAS: Final = (1e-12, 0.99)  # the PLD's tails are cut at 1e-15, and 1 - 0.99 is told by its sums


@dataclass(frozen=True)
class EpsilonBound:
    """Epsilon between two proved bounds, for computational differential privacy.

    Attributes:
        upper: The smallest finite upper bound; inf where none is proved (the noise sampler alone may cost delta).
        lower: No accountant can say less: the closed form, or the optimistic PLD when subsampled (0 without one).
        routes: Every upper bound by name: ``closed_form``, ``rdp``, ``pld``, ``unsampled``.
    """

    upper: float
    lower: float
    routes: Mapping[str, float]


def epsilon(
    *,
    noise_multiplier: float,
    sample_rate: float = 1.0,
    steps: int,
    delta: float,
    unit: Unit = "record",
    relation: Relation | None = None,
    silos: int = 1,
    sampling: Sampling = "poisson",
) -> EpsilonBound:
    """Epsilon of the Gaussian mechanism, composed over steps.

    Args:
        noise_multiplier: Standard deviation of the noise in the sum, over the clip norm. The clip norm, not the
            sensitivity: ``relation`` and ``silos`` say how often one unit's change counts.
        sample_rate: Probability of each record's own secret coin in each step (Poisson sampling); 1 for all records.
        steps: Number of releases.
        delta: In (0, 1).
        unit: Whom the claim protects. ``record``: one patient's rows. ``client``: one whole site; its cohort is public,
            so the rate is 1 and the relation zero-out or replace-one.
        relation: ``add-remove``, ``zero-out`` (the same bounds), or ``replace-one`` (twice the clip norm). By default
            add-remove for a record, zero-out for a client.
        silos: At how many sites one record's owner may have data; the sensitivity is that many clip norms. Below a
            rate of 1, each site's coin is its own.
        sampling: ``poisson``, or ``fixed`` for shuffled or fixed-size batches, which are accounted as if every record
            were in every step, and only where no other record takes a place: zero-out or replace-one.

    Raises:
        AccountingError: an input is not finite, out of range or of the wrong type, they do not go together, or two
            routes contradict.

    Guarantees:
        ``lower`` <= the true epsilon <= ``upper`` = the smallest finite route.
        A noise multiplier however small is answered in bounded memory.
    """
    z = positive("noise_multiplier", noise_multiplier)
    asked = question(sample_rate=sample_rate, steps=steps, unit=unit, relation=relation, sampling=sampling, silos=silos)
    delta = probability("delta", delta)
    above, below = asked.above(z), asked.below(z)
    routes = upper_bounds(above, delta)
    lower = _cross_check(above, delta, routes) if above.q == 1 else 0.0
    consistent(lower, routes)
    if below is None:
        return consistent(0.0, routes)
    if below.q == 1:
        return consistent(closed_form(_mu_squared(below), delta, upward=False), routes)
    grid = pld_grid(below, delta)
    return consistent(0.0 if grid is None else pld_route(below, delta, grid, pessimistic=False), routes)


def gaussian_epsilon(mu_squared: float, delta: float, *, sampler_delta: float = 0.0) -> EpsilonBound:
    """Epsilon of any adaptive composition of Gaussian mechanisms, equal or not.

    Args:
        mu_squared: Sum over the releases of (sensitivity / standard deviation)**2; 0 when nothing was released.
        delta: In (0, 1), the sampler's part included.
        sampler_delta: Total variation distance of all the noise drawn from its ideal law: coordinates times 2**-100.
            ``(1 + exp(epsilon)) sampler_delta`` is paid out of delta.

    Returns:
        The bound, with routes ``closed_form`` and ``rdp``; ``upper`` is inf where the sampler alone may cost delta.

    Raises:
        AccountingError: an input is not finite or out of range, or the routes contradict.

    Guarantees:
        Exact for Gaussians: ``lower`` and the closed form differ by the sampler's part and 1e-10.
        Never decreases in mu_squared or sampler_delta.
    """
    mu_squared = not_negative("mu_squared", mu_squared)
    sampler_delta = not_negative("sampler_delta", sampler_delta)
    delta = probability("delta", delta)
    routes = {
        "closed_form": with_sampler(partial(closed_form, mu_squared), delta, sampler_delta),
        "rdp": with_sampler(partial(rdp_form, mu_squared), delta, sampler_delta),
    }
    _closed_form_is_lowest(routes)
    return consistent(closed_form(mu_squared, delta, upward=False), routes)


def noise_multiplier(
    *,
    epsilon: float,
    delta: float,
    steps: int,
    sample_rate: float = 1.0,
    unit: Unit = "record",
    relation: Relation | None = None,
    silos: int = 1,
    sampling: Sampling = "poisson",
) -> float:
    """Noise multiplier for a budget, on the safe side.

    Args:
        epsilon: The target, positive.
        delta: In (0, 1).
        steps: Number of releases.
        sample_rate: As for `epsilon`, and so are the others.
        unit: Whom the claim protects.
        relation: What a neighbour is.
        silos: At how many sites one record's owner may have data.
        sampling: How batches are drawn.

    Returns:
        The smallest noise multiplier found whose epsilon does not pass the target: to 9 digits at sample_rate 1, to 4
        when subsampled.

    Raises:
        AccountingError: an input is out of range, or no noise reaches the target.

    Guarantees:
        The `epsilon` of the result is never above the target.
        A smaller target, a smaller delta, more steps or a larger sample rate never give less noise, to those digits.
    """
    target = positive("epsilon", epsilon)
    asked = question(sample_rate=sample_rate, steps=steps, unit=unit, relation=relation, sampling=sampling, silos=silos)
    delta = probability("delta", delta)
    # Without sampling the answer is exact; with it, the same noise is a safe place to start from.
    z = math.sqrt(_mu_squared(asked.above(1.0)) / largest_mu_squared(target, delta)) * (1 + _MARGIN)
    nudge = 1e-15
    while closed_form(_mu_squared(asked.above(z)), delta) > target:
        z *= 1 + nudge
        nudge *= 2
    if asked.above(z).q == 1:
        return z
    least = math.sqrt(_mu_squared(asked.above(1.0)) / MAX_MU_SQUARED) * (1 + _MARGIN)
    z = smallest_noise(lambda z: rdp_route(asked.above(z), delta), target, (least, z), tolerance=0.02)
    return smallest_noise(
        lambda z: min(upper_bounds(asked.above(z), delta).values()), target, (least, z), tolerance=1e-4
    )


def smallest_noise(
    upper: Callable[[float], float], target: float, between: tuple[float, float], *, tolerance: float
) -> float:
    """Smallest z with ``upper(z) <= target``, going down from one that has it to the least there is; the result was tried."""
    from scipy.optimize import brentq  # noqa: PLC0415 - 0.2 s to import

    def gap(log_z: float) -> float:
        return min(upper(math.exp(log_z)) / target, 1e3) - 1

    least, good = between
    high = math.log(good)
    if gap(high) > 0:  # another route set the starting point
        return good
    step = 16 * tolerance
    low = high - step
    while low > math.log(least) and gap(low) <= 0:
        step *= 2
        high, low = low, low - step
    if low <= math.log(least):  # delta may cover every record that is drawn at all
        low = math.log(least)
        if gap(low) <= 0:
            return least
    z = math.exp(float(brentq(gap, low, high, xtol=tolerance / 4)) + tolerance / 4)
    while upper(z) > target:  # the grid changes with z, so the curve has tiny steps
        z *= 1 + tolerance / 4
    return min(z, good)


def upper_bounds(mechanism: Subsampled, delta: float) -> dict[str, float]:
    """Every route's upper bound, by name."""
    if mechanism.q == 1:
        routes = {"closed_form": unsampled(mechanism, delta), "rdp": rdp_form(_mu_squared(mechanism), delta)}
        _closed_form_is_lowest(routes)
        return routes
    routes = {"unsampled": unsampled(mechanism, delta)}  # first, for it refuses what is beyond float64
    routes["rdp"] = rdp_route(mechanism, delta)
    grid = pld_grid(mechanism, delta)
    if grid is not None:
        routes["pld"] = pld_route(mechanism, delta, grid)
    return routes


def unsampled(mechanism: Subsampled, delta: float) -> float:
    """Epsilon by the closed form, as if every record were in every step."""
    return closed_form(_mu_squared(mechanism), delta)


def _cross_check(mechanism: Subsampled, delta: float, routes: dict[str, float]) -> float:
    """Add the PLD of the unsampled mechanism to the routes where it is cheap; return the optimistic one, or 0.

    The T steps are one Gaussian of sqrt(T) times the sensitivity, so nothing is composed and the grid is the only error.
    """
    mu = math.sqrt(_mu_squared(mechanism))
    if mu > _CHECK_MAX_MU or not _CHECK_DELTAS[0] <= delta <= _CHECK_DELTAS[1]:
        return 0.0
    grid = max(1e-4 * min(1.0, mu), (mu * mu + 22 * mu) / _CHECK_CELLS)
    pld, optimistic = gaussian_bounds(mu, delta, grid)
    routes["pld"] = pld
    if not abs(pld - routes["closed_form"]) <= grid + 1e-6:
        raise AccountingError(f"the closed form ({routes['closed_form']}) and the PLD ({pld}, grid {grid}) contradict")
    return optimistic


def _closed_form_is_lowest(routes: Mapping[str, float]) -> None:
    if routes["closed_form"] > routes["rdp"]:
        raise AccountingError(f"the closed form ({routes['closed_form']}) is above Rényi ({routes['rdp']})")


def consistent(lower: float, routes: Mapping[str, float]) -> EpsilonBound:
    """The bound, or a refusal where a lower bound is above an upper one."""
    for name, upper in routes.items():
        if not lower <= upper:  # NaN fails too
            raise AccountingError(f"the lower bound {lower} is above the upper bound {upper} by route {name}")
    return EpsilonBound(min(routes.values()), lower, dict(routes))


def _mu_squared(mechanism: Subsampled) -> float:
    sensitivity = 2 if mechanism.replace_one else 1
    mu = sensitivity / mechanism.z
    result = mechanism.steps * mu * mu
    if not MIN_MU_SQUARED <= result <= MAX_MU_SQUARED:
        raise AccountingError(
            f"noise_multiplier = {mechanism.z} over {mechanism.steps} steps is beyond float64: mu**2 = {result:g} is not "
            f"in [{MIN_MU_SQUARED:g}, {MAX_MU_SQUARED:g}]"
        )
    return result
