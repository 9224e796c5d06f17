"""Plans whose records flip a secret coin of their own before each round: Poisson batches.

A run under such a plan is a schedule that was fixed in advance: so many releases, none of them worse than the floor at
the plan's rate. So its epsilon may be that of a privacy loss distribution, which no filter over chosen releases may use.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from privacy.accounting import EpsilonBound
from privacy.accounting.gaussian import MAX_MU_SQUARED, as_text, rdp_epsilon, with_sampler
from privacy.accounting.releases import Release, best_order, counted, divergences, releases_epsilon
from privacy.accounting.routes import smallest_noise
from privacy.budget import Budget
from privacy.errors import PlanError
from privacy.reading import check_count

if TYPE_CHECKING:
    from privacy.plan.plan import Plan

LEAST_RATE: Final = 2.0**-32  # a coin that is right to 2**-64 then is right to nine digits
MARGIN: Final = 1e-6  # between machines whose Fourier transforms round otherwise


def check_poisson(plan: "Plan") -> None:
    """Return if a plan's Poisson batches can be accounted.

    Raises:
        PlanError: unit, relation or silos do not go with them, or the rate is too small.
    """
    rate = f"sample_rate = {plan.sample_rate:g}"
    if plan.unit == "client":
        raise PlanError(f"{rate} with unit client: the signed cohort publishes who takes part, so no coin is secret")
    if plan.relation != "add-remove":
        raise PlanError(f"{rate} with relation {plan.relation}: Poisson batches are planned for add-remove alone")
    if plan.silos > 1:
        raise PlanError(
            f"{rate} with silos = {plan.silos}: each site flips a coin of its own, and plans count one coin a person"
        )
    check_rate(plan.sample_rate)


def check_rate(rate: float) -> None:
    """Return if a rate is large enough for a coin of 64 bits to have it.

    Raises:
        PlanError: it is not.
    """
    if rate < LEAST_RATE:
        raise PlanError(f"sample_rate = {rate:g} is below 2**-32")


def sampled_epsilon(release: Release, rounds: int, delta: float, sampler: float) -> EpsilonBound:
    """Epsilon of a number of equal releases; ``sampler``: what the noise of one may cost."""
    return releases_epsilon({release: rounds}, delta, sampler_delta=rounds * sampler)


def order_budget(release: Release, budget: Budget) -> Budget:
    """The same budget over releases of any kind, at the order that is best for this one; as it is where no order has room."""
    order = best_order(release, float(budget.epsilon), budget.delta)
    try:
        return replace(budget, order=order)
    except PlanError:  # no room left once the sampler is paid
        return budget


def most_releases(plan: "Plan") -> int:
    """How many releases a run may make: T, or what Rényi has room for beyond; attempts included.

    Guarantees:
        So many at the floor stay within the plan's (epsilon, delta).
    """
    budget = plan.budget()
    if budget.order is None:
        return plan.rounds
    most = math.floor(budget.mu_squared / (counted(plan.release, budget.order) * (1 + MARGIN)))
    return max(plan.rounds, min(most, plan.sites * plan.rounds))  # the budget pays for n T rounds of noise


def least_noise(epsilon: float, rounds: int, delta: float, sampler: float, *, rate: float, start: float) -> float:
    """The least noise multiplier that was found to keep to a budget, to four digits; ``start``: one that does."""
    target = epsilon / (1 + MARGIN)
    least = math.sqrt(rounds / MAX_MU_SQUARED) * (1 + MARGIN)

    def by_renyi(noise: float) -> float:
        curve = rounds * divergences(Release(1 / noise, rate))
        return with_sampler(lambda left: rdp_epsilon(curve, left), delta, rounds * sampler)

    def smallest(noise: float) -> float:
        return sampled_epsilon(Release(1 / noise, rate), rounds, delta, sampler).upper

    start *= 1 + 4 * MARGIN  # the noise of full batches, which keeps to the target itself
    if by_renyi(start) <= target:
        start = smallest_noise(by_renyi, target, (least, start), tolerance=0.02)
    return smallest_noise(smallest, target, (least, start), tolerance=1e-4)


def least_epsilon(noise: float, rounds: int, delta: float, sampler: float, *, rate: float, least: float) -> float:
    """The least budget for a noise multiplier, not below ``least``.

    Raises:
        PlanError: no route has a bound.
    """
    upper = sampled_epsilon(Release(1 / noise, rate), rounds, delta, sampler).upper
    if not math.isfinite(upper):
        raise PlanError(
            f"{rounds} rounds at noise_multiplier = {noise:g} and sample_rate = {rate:g} have no epsilon at delta = {delta:g}"
        )
    return max(upper, least) * (1 + MARGIN)


def most_rounds(epsilon: float, noise: float, delta: float, sampler: float, *, rate: float) -> int:
    """The most rounds that were found to keep to a budget, to a thousandth.

    Raises:
        PlanError: one is too many.
    """
    release, target = Release(1 / noise, rate), epsilon / (1 + MARGIN)

    def fits(rounds: int) -> bool:
        return sampled_epsilon(release, rounds, delta, sampler).upper <= target

    def fits_by_renyi(rounds: int) -> bool:
        curve = rounds * divergences(release)
        return with_sampler(lambda left: rdp_epsilon(curve, left), delta, rounds * sampler) <= target

    if not fits(1):
        once = sampled_epsilon(release, 1, delta, sampler).upper
        raise PlanError(
            f"one round at noise_multiplier = {noise:g} and sample_rate = {rate:g} spends epsilon = {as_text(once)} at delta "
            f"= {delta:g}; the budget is {epsilon:g}"
        )
    first = _last(fits_by_renyi, 1, 2.0, 1)  # quick; the other route then says more
    return _last(fits, first, 1.1, max(1, first >> 10))


def _last(fits: Callable[[int], bool], fitting: int, growth: float, width: int) -> int:
    """The largest count that was found to fit, from one that does; the next one tried that does not is at most ``width`` away."""
    too_many = math.ceil(fitting * growth) + 1
    while fits(too_many):
        fitting, too_many = too_many, math.ceil(too_many * growth) + 1
        check_count("rounds", too_many, 1)
    while too_many - fitting > width:
        middle = (fitting + too_many) // 2
        if fits(middle):
            fitting = middle
        else:
            too_many = middle
    return fitting
