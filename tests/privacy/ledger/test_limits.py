import json
from dataclasses import replace
from pathlib import Path

import pytest

from privacy.accounting.gaussian import SAMPLER_DISTANCE
from privacy.accounting.releases import Release, counted
from privacy.budget import Budget
from privacy.errors import BudgetExceededError
from privacy.ledger.limits import check_budget, check_run, keeps_to_plan, lifetime
from privacy.ledger.spend import Spend
from privacy.plan import Plan

FIELDS = json.loads((Path(__file__).parents[2] / "heart_plan.json").read_text(encoding="utf-8"))
FULL = Plan.solve(**FIELDS)
SAMPLED = Plan.solve(**FIELDS, sample_rate=0.1)
GROUP = ("record", "add-remove")


def spent(plan, count, *, survivors=None):
    """The spend of so many releases, at the floor or closed with survivors."""
    spend, floor = Spend(), plan.release.mu
    for _ in range(count):
        spend = spend.plus(GROUP, floor, rate=plan.sample_rate, draws=plan.draws)
        if survivors is not None:
            spend = spend.plus(GROUP, plan.mu(survivors), rate=plan.sample_rate, instead_of=floor)
    return spend


@pytest.mark.parametrize("survivors", [None, 3, 4])
def test_a_sampled_run_is_a_schedule(survivors):
    """It makes T releases, whatever noise the survivors gave, and not one more: the loss distribution is of a fixed schedule."""
    check_run(SAMPLED, spent(SAMPLED, 39, survivors=survivors))
    assert keeps_to_plan(SAMPLED, spent(SAMPLED, 40, survivors=survivors))
    assert not keeps_to_plan(SAMPLED, spent(SAMPLED, 41, survivors=survivors))
    with pytest.raises(BudgetExceededError, match=r"the 40 releases .* sample_rate = 0\.1 allows were made"):
        check_run(SAMPLED, spent(SAMPLED, 40, survivors=survivors))


@pytest.mark.parametrize("worse", [Release(0.5, 0.1), Release(0.1, 0.2), Release(0.2, 1.0)])
def test_a_release_that_is_worse_than_the_schedule_is_counted_by_renyi(worse):
    """After one (an interrupted write of another plan) the run goes by the filter at the plan's order, so it ends earlier."""
    after = spent(SAMPLED, 10).plus(GROUP, worse.mu, rate=worse.rate, draws=SAMPLED.draws)
    order = SAMPLED.budget().order
    assert after.counted(None, order) == pytest.approx(
        10 * counted(SAMPLED.release, order) + counted(worse, order), rel=1e-9
    )
    room = (SAMPLED.budget().mu_squared - after.counted(None, order)) / counted(SAMPLED.release, order)
    while room > 1:
        assert keeps_to_plan(SAMPLED, after)
        check_run(SAMPLED, after)
        after, room = after.plus(GROUP, SAMPLED.release.mu, rate=0.1, draws=SAMPLED.draws), room - 1
    with pytest.raises(BudgetExceededError, match="would bring epsilon to"):
        check_run(SAMPLED, after)
    over = after.plus(GROUP, SAMPLED.release.mu, rate=0.1)
    assert not keeps_to_plan(SAMPLED, over)
    assert over.releases < 40


def test_full_batches_are_filtered_as_before():
    """The exact filter on the sum of mu**2: room above the floor is used for more releases."""
    assert keeps_to_plan(FULL, spent(FULL, 40))
    assert not keeps_to_plan(FULL, spent(FULL, 41))
    assert keeps_to_plan(FULL, spent(FULL, 55, survivors=4))
    check_run(FULL, spent(FULL, 39))
    with pytest.raises(BudgetExceededError, match="would bring epsilon to"):
        check_run(FULL, spent(FULL, 40))


def test_sampled_releases_count_in_full_in_the_exact_filter():
    """A filter that was chosen for Gaussians does not know the coins."""
    limit = Budget(4.0, 1e-4)
    full = int(limit.mu_squared / SAMPLED.release.mu**2)
    check_budget(limit, SAMPLED, spent(SAMPLED, full - 1))
    with pytest.raises(BudgetExceededError):
        check_budget(limit, SAMPLED, spent(SAMPLED, full))
    by_order = lifetime(limit, SAMPLED)
    check_budget(by_order, SAMPLED, spent(SAMPLED, 10 * full))


def test_the_ledgers_first_plan_says_which_filter_holds():
    """A full first plan leaves the exact one, a sampled one takes the order that is best for it, a named order stays."""
    limit = Budget(2.0, 1e-4)
    assert lifetime(limit, FULL) == limit
    chosen = lifetime(limit, SAMPLED)
    assert chosen == replace(limit, order=chosen.order)
    most = {
        order: Budget(2.0, 1e-4, order=order).mu_squared / counted(SAMPLED.release, order)
        for order in (*range(8, 33), 64)
    }
    assert max(most, key=most.get) == chosen.order
    named = Budget(2.0, 1e-4, order=16)
    assert lifetime(named, SAMPLED) == lifetime(named, FULL) == named


def test_a_filter_at_an_order_holds_for_mixed_releases():
    """Full and sampled releases add up at the one order, to what Rényi converts to the budget at most."""
    limit = lifetime(Budget(1.0, 1e-4), SAMPLED)
    spend, plans = Spend(), [SAMPLED, FULL]
    for number in range(400):
        plan = plans[number % 5 == 4]
        try:
            check_budget(limit, plan, spend)
        except BudgetExceededError:
            break
        spend = spend.plus(GROUP, plan.release.mu, rate=plan.sample_rate, draws=plan.draws)
    assert 10 < number < 399
    assert 0.9 < spend.routes(1e-4)["rdp"] <= 1.0
    assert spend.routes(1e-4)["closed_form"] > 3.0


def test_a_filter_at_an_order_pays_for_the_noise_that_was_drawn():
    """What the sampler may cost is taken from delta at an order too; where it takes all, nothing passes."""
    limit = lifetime(Budget(1.0, 1e-4), SAMPLED)
    drawn = Spend().plus(GROUP, 1e-6, rate=0.1, draws=int(1e-5 / SAMPLER_DISTANCE))
    most = replace(limit, sampler_delta=1.01e-5).mu_squared
    assert most < limit.mu_squared
    check_budget(limit, SAMPLED, drawn)
    with pytest.raises(BudgetExceededError, match="sampler alone"):
        check_budget(limit, SAMPLED, Spend().plus(GROUP, 1e-6, rate=0.1, draws=int(1e-4 / SAMPLER_DISTANCE)))
