import math

import numpy as np
import pytest

from privacy.accounting.gaussian import closed_form
from privacy.budget import Budget, add_upward
from privacy.errors import BudgetExceededError, PlanError


def test_budget_is_exact():
    """What the budget allows spends it to nine digits, and not more."""
    budget = Budget(1.0, 1e-5)
    assert 1 - 1e-9 < closed_form(budget.mu_squared, 1e-5) <= 1.0


def test_budget_pays_the_sampler_out_of_delta():
    """A sampler that is off allows less, and one that may cost delta by itself allows no budget."""
    assert Budget(1.0, 1e-5, sampler_delta=1e-6).mu_squared < Budget(1.0, 1e-5).mu_squared
    with pytest.raises(PlanError, match="sampler"):
        Budget(1.0, 1e-5, sampler_delta=1e-5)
    with pytest.raises(PlanError, match="sampler"):
        Budget(900.0, 1e-5, sampler_delta=2.0**-100)


def test_check_lets_through_what_fits_and_nothing_else():
    """Unequal adaptive releases pass while they fit; the first that does not raises and names the numbers."""
    budget = Budget(1.0, 1e-5)
    spent = 0.0
    for share in (0.5, 0.25, 0.125):
        coming = share * budget.mu_squared
        budget.check(spent, coming)
        spent = add_upward(spent, coming)
    with pytest.raises(BudgetExceededError, match="budget is 1"):
        budget.check(spent, 0.126 * budget.mu_squared)
    budget.check(spent, 0.12 * budget.mu_squared)


@pytest.mark.parametrize("tiny", [5e-324, 1e-300, 1e-30, 1e-18])
def test_p19_tiny_spends_after_exhaustion_are_refused(tiny):
    """P19: with the budget used up to the last digit, a release that rounding would swallow does not pass."""
    budget = Budget(1.0, 1e-5)
    assert budget.mu_squared + tiny == budget.mu_squared
    with pytest.raises(BudgetExceededError):
        budget.check(budget.mu_squared, tiny)


def test_p19_tiny_spends_add_up():
    """P19: a million spends below the last digit are not free, as a plain sum would have it."""
    spent = 1.0
    for _ in range(1000):
        spent = add_upward(spent, 1e-30)
    assert spent > 1.0
    assert 1.0 + 1e-30 == 1.0
    assert add_upward(0.5, 0.25) >= 0.75
    assert add_upward(0.5, 0.0) == 0.5


@pytest.mark.parametrize(
    ("spent", "coming"), [(math.nan, 1), (0, math.nan), (0, 0), (0, -1), (-1, 1), (0, math.inf), (math.inf, 1)]
)
def test_p2_spends_that_mean_nothing_are_refused(spent, coming):
    """P2: NaN, infinity, zero and negative spends raise instead of passing."""
    with pytest.raises(PlanError, match="cannot be booked"):
        Budget(1.0, 1e-5).check(spent, coming)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((0, 1e-5), "epsilon"),
        ((math.nan, 1e-5), "epsilon"),
        ((math.inf, 1e-5), "epsilon"),
        ((True, 1e-5), "epsilon"),
        ((1.0, 2.0), "delta"),
        ((1.0, math.nan), "delta"),
        ((1.0, 1e-5, -1e-9), "sampler_delta"),
    ],
)
def test_budget_refuses_what_is_none(arguments, name):
    """P3: a budget out of range is refused by name."""
    with pytest.raises(PlanError, match=name):
        Budget(*arguments)


def test_budget_has_no_override():
    """P19: nothing but epsilon, delta, the sampler and the order can be set, and nothing changed afterwards."""
    import dataclasses

    assert [f.name for f in dataclasses.fields(Budget) if f.init] == ["epsilon", "delta", "sampler_delta", "order"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Budget(1.0, 1e-5).mu_squared = 2.0


@pytest.mark.parametrize("order", [3, 16, 512])
def test_an_order_allows_what_its_divergence_converts_to(order):
    """At an order the filter allows the Gaussians whose Rényi divergence there is within the budget, and no more."""
    from privacy.accounting.gaussian import RDP_ORDERS, rdp_epsilon

    budget = Budget(8.0, 1e-5, order=order)
    curve = np.full(len(RDP_ORDERS), math.inf)
    at = RDP_ORDERS.index(order)
    for factor, within in ((1.0, True), (1 + 1e-9, False)):
        curve[at] = order * budget.mu_squared * factor / 2
        assert (rdp_epsilon(curve, 1e-5) <= 8.0) is within
    assert budget.mu_squared < Budget(8.0, 1e-5).mu_squared
    assert Budget(8.0, 1e-5, 1e-10, order=order).mu_squared < budget.mu_squared
    with pytest.raises(BudgetExceededError, match="would bring epsilon to 8"):
        budget.check(budget.mu_squared, budget.mu_squared / 100)


@pytest.mark.parametrize("order", [1, 65, 2.5, "8"])
def test_orders_that_are_not_accounted_are_refused(order):
    """Only orders at which every release's divergence is known."""
    with pytest.raises(PlanError, match="order = "):
        Budget(1.0, 1e-5, order=order)
    with pytest.raises(PlanError, match="no room at Rényi order 2"):
        Budget(1.0, 1e-9, order=2)
