"""What a run may spend under its plan, and a data set over all its runs.

Without sampling both are filters over Gaussians. Below a rate of 1 a run is a schedule fixed in advance: as long as no
release of it is worse than the plan's floor at the plan's rate, it may make `Plan.most_releases`. A data set whose ledger
starts with such a plan has a filter at one Rényi order, the one that is best for this plan: it is chosen before anything
is released, as it must be. A ledger that starts otherwise keeps the exact filter, in which sampled releases count in full.
"""

from dataclasses import replace
from typing import Final

from privacy.accounting.gaussian import SAMPLER_DISTANCE
from privacy.budget import Budget
from privacy.errors import BudgetExceededError, PlanError
from privacy.ledger.spend import Spend
from privacy.plan import Plan
from privacy.plan.poisson import order_budget

_TOLERANCE: Final = 1e-9  # between machines whose libraries round otherwise
_LAST_DIGITS: Final = 1e-12  # likewise, of one number


def keeps_to_plan(plan: Plan, after: Spend) -> bool:
    """Whether a run's spend, its last release included, is one that the plan has room for."""
    if _is_schedule(plan, after):
        return after.releases <= plan.most_releases
    limit = plan.cached_budget
    return after.counted(None, limit.order) <= limit.mu_squared * (1 + _TOLERANCE)


def check_run(plan: Plan, before: Spend) -> None:
    """Return if a run has room for one more release at the plan's floor.

    Raises:
        BudgetExceededError: it has not; nothing was spent.
    """
    after = _after(plan, before)
    if not _is_schedule(plan, after):
        check_budget(plan.cached_budget, plan, before)
    elif after.releases > plan.most_releases:
        raise BudgetExceededError(
            f"the {plan.most_releases} releases that its budget of epsilon = {plan.epsilon:g} at delta = {plan.delta:g} and "
            f"sample_rate = {plan.sample_rate:g} allows were made, attempts included"
        )


def check_budget(limit: Budget, plan: Plan, before: Spend) -> None:
    """Return if a budget has room for one more release at the plan's floor.

    Raises:
        BudgetExceededError: it has not; nothing was spent.
    """
    after = _after(plan, before)
    spent = before.counted(after.group, limit.order)
    try:
        # However much noise the budget was made for, it pays for the noise that was really drawn.
        drawn = max(limit.sampler_delta, after.draws * SAMPLER_DISTANCE)
        paying = limit if drawn == limit.sampler_delta else replace(limit, sampler_delta=drawn)
        paying.check(spent, after.counted(None, limit.order) - spent)
    except PlanError as error:
        raise BudgetExceededError(str(error)) from error


def lifetime(budget: Budget, first: Plan) -> Budget:
    """The filter of a data set whose ledger starts with this plan; a budget that names its order is left as it is."""
    if budget.order is not None or first.sample_rate == 1:
        return budget
    return order_budget(first.release, budget)


def _after(plan: Plan, before: Spend) -> Spend:
    return before.plus((plan.unit, plan.relation), plan.release.mu, rate=plan.sample_rate, draws=plan.draws)


def _is_schedule(plan: Plan, after: Spend) -> bool:
    mu, rate = plan.release
    # Releases for another unit or relation are never sampled, so their rate of 1 is above this plan's.
    return rate < 1 and after.worst.mu <= mu * (1 + _LAST_DIGITS) and after.worst.rate <= rate
