import math

import pytest

from privacy.accounting.gaussian import SAMPLER_DISTANCE
from privacy.budget import Budget
from privacy.errors import PlanError
from privacy.plan import Plan
from privacy.plan.solving import MARGIN, solve_third

QUESTION = {"delta": 1e-4, "sites": 4, "draws": 160}
NOTHING = {"epsilon": None, "noise_multiplier": None, "rounds": None}


def third(**given):
    """Solve with the two that are given."""
    return solve_third(**(QUESTION | NOTHING | given))


@pytest.mark.parametrize("delta", [1e-12, 1e-5, 0.3])
@pytest.mark.parametrize("rounds", [1, 40, 100_000])
@pytest.mark.parametrize("epsilon", [0.01, 1.0, 20.0])
def test_each_of_the_three_leads_back_to_the_others(epsilon, rounds, delta):
    """P5: noise from budget, budget from noise, rounds from both, agree to 1e-6, each on the safe side."""
    _, noise, _ = third(epsilon=epsilon, rounds=rounds, delta=delta)
    again, _, _ = third(noise_multiplier=noise, rounds=rounds, delta=delta)
    assert epsilon * (1 - 1e-6) < again <= epsilon * (1 + 1e-8)
    # A hair more budget than the least: the very last round rests on the last digit.
    _, _, count = third(epsilon=again * (1 + 1e-7), noise_multiplier=noise, delta=delta)
    assert rounds <= count <= rounds * (1 + 1e-6)


@pytest.mark.parametrize("noise", [0.5, 1.0, 30.0, 1e4])
def test_the_solved_budget_covers_every_round_and_no_smaller_one_does(noise):
    """All rounds, with their margin, fit the budget for a noise; a budget smaller by 1e-6 refuses them."""
    epsilon, _, rounds = third(noise_multiplier=noise, rounds=10)
    sampler = 4 * 160 * 10 * SAMPLER_DISTANCE
    assert rounds * noise**-2 * (1 + MARGIN) <= Budget(epsilon, 1e-4, sampler).mu_squared
    assert rounds * noise**-2 > Budget(epsilon * (1 - 1e-6), 1e-4, sampler).mu_squared


def test_where_delta_pays_for_everything_the_budget_is_still_positive():
    """Noise so large that epsilon is 0 at this delta gets a tiny budget that covers it, not an error."""
    epsilon, _, _ = third(noise_multiplier=1e6, rounds=1)
    assert 0 < epsilon <= 1e-9
    assert Budget(epsilon, 1e-4).mu_squared >= 1e-12


def test_rounds_are_the_most():
    """The rounds that are found fit, and one more does not."""
    _, _, rounds = third(epsilon=1.0, noise_multiplier=20.15)
    base = {"epsilon": 1.0, "delta": 1e-4, "unit": "record", "relation": "add-remove", "sites": 4, "dropouts": 1}
    base |= {"colluders": 1, "clip": 1.0, "records_per_site": 303, "dimension": 40, "divisor": 720.0}
    assert Plan(**base, noise_multiplier=20.15, rounds=rounds).accounted_epsilon().upper <= 1
    with pytest.raises(PlanError, match=f"{rounds + 1} rounds"):
        Plan(**base, noise_multiplier=20.15, rounds=rounds + 1)


def test_rounds_are_the_most_where_the_sampler_takes_its_part():
    """Where the noise drawn in all rounds costs a good part of delta, still the most rounds are found."""
    question = {"epsilon": 20.0, "delta": 1e-9, "sites": 100, "draws": 3_000_000}
    _, _, rounds = solve_third(**(NOTHING | question | {"noise_multiplier": 20.0}))
    per_round = 100 * 3_000_000 * SAMPLER_DISTANCE

    def fits(count):
        return count * 20.0**-2 * (1 + MARGIN) <= Budget(20.0, 1e-9, count * per_round).mu_squared

    assert fits(rounds)
    assert not fits(rounds + 1)
    assert (1 + math.exp(20.0)) * rounds * per_round > 1e-10


def test_rounds_that_the_sampler_alone_forbids_are_not_the_answer():
    """So much noise is drawn that the rounds of delta alone would cost more than delta: fewer, by bisection."""
    question = {"epsilon": 40.0, "noise_multiplier": 20.0, "delta": 1e-6, "sites": 100, "draws": 30_000}
    _, _, rounds = solve_third(**(NOTHING | question))
    per_round = 100 * 30_000 * SAMPLER_DISTANCE
    assert 1 <= rounds < Budget(40.0, 1e-6).mu_squared * 400
    assert rounds / 400 <= Budget(40.0, 1e-6, rounds * per_round).mu_squared
    with pytest.raises(PlanError, match="sampler"):
        Budget(40.0, 1e-6, 2 * rounds * per_round)


def test_one_round_too_many_is_refused_with_its_epsilon():
    """A budget that not even one round keeps to: the error has its epsilon and the budget."""
    with pytest.raises(PlanError, match=r"one round at noise_multiplier = 1 spends epsilon = 3\.\d+ .* budget is 1"):
        third(epsilon=1.0, noise_multiplier=1.0)


def test_noise_whose_sampler_alone_costs_delta_has_no_budget():
    """At epsilon 75 the sampler's 2**-100 is worth more than any delta: refused, with the numbers."""
    with pytest.raises(PlanError, match=r"10 rounds at noise_multiplier = 0\.1 have no epsilon"):
        third(noise_multiplier=0.1, rounds=10)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"epsilon": 1.0},
        {"noise_multiplier": 1.0},
        {"rounds": 1},
        {"epsilon": 1.0, "noise_multiplier": 1.0, "rounds": 1},
    ],
)
def test_two_of_three_are_needed(given):
    """All three, one or none: the error says which were given."""
    with pytest.raises(PlanError, match=f"given: {', '.join(given) or 'none'}$"):
        third(**given)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0, -1, True, "1", 1e-200, 1e200])
def test_noise_that_means_nothing_is_refused(value):
    """A noise multiplier that is no number, or whose square float64 does not hold."""
    with pytest.raises(PlanError, match="noise_multiplier"):
        third(noise_multiplier=value, rounds=1)


@pytest.mark.parametrize("delta", [math.nan, 0, 1, 2, True, None])
def test_p3_delta_out_of_range_is_refused(delta):
    """P3: delta is in (0, 1)."""
    with pytest.raises(PlanError, match="delta"):
        third(epsilon=1.0, rounds=1, delta=delta)
