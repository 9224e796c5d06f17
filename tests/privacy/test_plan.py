import dataclasses
import json
import math

import pytest

from privacy.accounting.gaussian import closed_form
from privacy.errors import PlanError
from privacy.plan import Plan, PlanWarning

HEART = {
    "unit": "record",
    "relation": "add-remove",
    "sites": 4,
    "dropouts": 1,
    "colluders": 1,
    "clip": 1.0,
    "records_per_site": 303,
    "dimension": 40,
    "rounds": 40,
    "delta": 1e-4,
    "epsilon": 1.0,
    "divisor": 720.0,
}


def solve(**changes):
    """The heart plan, changed."""
    return Plan.solve(**(HEART | changes))


def test_heart_example_of_the_design():
    """32 bits give a grid of 2**20 and noise of 1.5e7 a site; 25 bits give 2**13 and 1.2e5."""
    wide, narrow = solve(), solve(bits=25)
    assert (wide.grid, narrow.grid) == (1 << 20, 1 << 13)
    assert wide.sigma_local == pytest.approx(1.5e7, rel=0.01)
    assert narrow.sigma_local == pytest.approx(1.1e5, rel=0.1)


@pytest.mark.parametrize("bits", range(20, 41))
def test_grid_is_the_largest_that_fits(bits):
    """The bound times n stays inside the ring, and a grid twice as fine would not, or is above 2**20."""
    plan = solve(bits=bits)
    room = 1 << (bits - 1)
    assert plan.sites * plan.bound < room
    assert plan.bound == plan.records_per_site * plan.grid + math.ceil(13 * plan.sigma_local)
    assert plan.grid == 1 << 20 or plan.sites * 2 * (plan.bound - 1) >= room - 8 * plan.sites
    assert plan.grid & (plan.grid - 1) == 0


def test_noise_reaches_the_target_at_the_floor():
    """sigma_eff at the floor is the noise multiplier times the sensitivity; more survivors make more, fewer are refused."""
    plan = solve()
    assert plan.sigma_star == plan.noise_multiplier * plan.sensitivity
    assert plan.sigma_effective(3) >= plan.sigma_star
    assert plan.mu(3) == pytest.approx(1 / plan.noise_multiplier, rel=1e-12)
    assert plan.mu(4) < plan.mu(3)
    assert plan.sigma_local == pytest.approx(math.sqrt((plan.sigma_star**2 + 9) / 2), rel=1e-12)


@pytest.mark.parametrize("survivors", [0, 2, 5])
def test_p17_noise_below_the_floor_is_refused(survivors):
    """P17: with more dropouts than planned for there is no noise to account."""
    with pytest.raises(PlanError, match="3 to 4"):
        solve().mu(survivors)


def test_p16_sensitivity_is_derived():
    """P16: sensitivity cannot be set; replace-one doubles it, and the same budget then needs twice the noise."""
    with pytest.raises(TypeError, match="sensitivity"):
        Plan(**HEART, noise_multiplier=21.0, sensitivity=1)
    once, twice = solve(), solve(relation="replace-one")
    assert once.sensitivity == once.grid
    assert twice.sensitivity == 2 * twice.grid
    assert twice.noise_multiplier == once.noise_multiplier
    assert twice.sigma_star / twice.grid == pytest.approx(2 * once.sigma_star / once.grid, rel=1e-12)


def test_solve_keeps_to_the_budget():
    """P5: the planned epsilon is at most the budget, within 1e-6 of it, and below Rényi's."""
    planned = solve().accounted_epsilon()
    assert 1 - 1e-6 < planned.upper <= 1
    assert planned.routes["closed_form"] < planned.routes["rdp"]


def test_planned_epsilon_pays_for_the_sampler():
    """Every coordinate that every site draws in every round takes its (1 + exp(epsilon)) 2**-100 out of delta."""
    plan = solve(epsilon=40.0, rounds=10, dimension=1_000_000)
    spent = plan.rounds * plan.mu(3) ** 2
    planned = plan.accounted_epsilon()
    assert planned.upper > closed_form(spent, plan.delta) * (1 + 1e-5)
    left = plan.delta - (1 + math.exp(planned.upper)) * 10 * 4 * 1_000_000 * 2.0**-100
    assert planned.upper == pytest.approx(closed_form(spent, left), rel=1e-9)


def test_all_planned_rounds_fit_the_filter():
    """Booked one by one, rounding up, the last of 10 000 rounds still passes, and one more does not."""
    from privacy.budget import add_upward
    from privacy.errors import BudgetExceededError

    plan = solve(rounds=10_000)
    budget, spend, spent = plan.budget(), plan.mu(3) ** 2, 0.0
    for _ in range(plan.rounds):
        budget.check(spent, spend)
        spent = add_upward(spent, spend)
    with pytest.raises(BudgetExceededError):
        budget.check(spent, spend)


def test_noise_of_the_accountant_makes_a_plan():
    """What `noise_multiplier` answers is accepted by a plan of the same budget."""
    from privacy.accounting import noise_multiplier

    noise = noise_multiplier(epsilon=1.0, delta=1e-4, steps=40)
    assert Plan(**HEART, noise_multiplier=noise).accounted_epsilon().upper <= 1


def test_plan_over_its_budget_is_refused():
    """A plan whose rounds at the floor spend more than its epsilon is refused with both numbers."""
    with pytest.raises(PlanError, match=r"40 rounds .* spend epsilon = 1\.0\d+ .* budget is 1"):
        Plan(**HEART, noise_multiplier=solve().noise_multiplier * 0.99)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dropouts": 3}, "sites - dropouts - colluders < 1"),
        ({"unit": "client"}, "does not go with unit client"),
        ({"unit": "client", "relation": "zero-out"}, "records_per_site = 303"),
        ({"relation": "zero-out"}, "does not go with unit record"),
        ({"unit": "patient"}, "unit"),
        ({"bits": 11}, "no grid fits 11 bits"),
        ({"bits": 65}, "bits = 65"),
        ({"bits": 25, "dimension": 1 << 30}, "may pass the clip norm"),
        ({"epsilon": 100.0, "delta": 1e-30}, "sampler"),
    ],
)
def test_plans_that_cannot_be_carried_out_are_refused(changes, message):
    """Nobody honest, a relation of the other unit, no room, too coarse a grid: each with its numbers."""
    with pytest.raises(PlanError, match=message):
        solve(**changes)


def test_noise_below_the_proof_is_refused():
    """Noise so small that a site's share is below 8 steps, on the finest grid that fits, has no proof."""
    with pytest.raises(PlanError, match="sigma_local"):
        Plan(**(HEART | {"bits": 14, "records_per_site": 1, "epsilon": 1e9, "rounds": 1}), noise_multiplier=1e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0, -1, True, "1", None])
@pytest.mark.parametrize(
    "name", ["clip", "delta", "epsilon", "divisor", "noise_multiplier", "rounds", "bits", "sites", "dimension"]
)
def test_p2_p3_fields_that_mean_nothing_are_refused(name, value):
    """P2, P3: NaN, infinity, zero, negative numbers, booleans and texts are refused, and the field is named."""
    with pytest.raises(PlanError, match=name):
        Plan(**(HEART | {"noise_multiplier": 21.0} | {name: value}))
    if name != "noise_multiplier":
        with pytest.raises(PlanError, match=name):
            solve(**{name: value})


@pytest.mark.parametrize(("changes", "warns"), [({"delta": 1e-3}, True), ({"delta": 1e-4}, False)])
def test_p3_delta_of_one_in_the_records_warns(changes, warns, recwarn):
    """P3: a delta that allows to publish somebody is a warning that says how many there are."""
    solve(**changes)
    assert [str(w.message).count("1212 records") for w in recwarn if w.category is PlanWarning] == [1] * warns


def test_client_unit_counts_sites():
    """For the client unit the cohort is the number of sites, and zero-out is its relation."""
    plan = solve(unit="client", relation="zero-out", records_per_site=1)
    assert plan.sensitivity == plan.grid
    with pytest.warns(PlanWarning, match="1 / 4 clients"):
        solve(unit="client", relation="replace-one", records_per_site=1, delta=0.3)


def test_json_round_trip_keeps_the_hash():
    """A plan read back is equal and has the same hash; any field changes it."""
    plan = solve()
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.hash == plan.hash
    assert again.grid == plan.grid
    assert solve(divisor=721.0).hash != plan.hash
    assert Plan(**(HEART | {"clip": 1, "divisor": 720}), noise_multiplier=plan.noise_multiplier).hash == plan.hash


def test_hash_is_known():
    """The canonical text and its hash do not change between versions or machines."""
    plan = Plan(**HEART, noise_multiplier=32.0)
    assert plan.to_json() == (
        '{"bits":32,"clip":1,"colluders":1,"delta":0.0001,"dimension":40,"divisor":720,"dropouts":1,"epsilon":1,'
        '"format":"privacy-plan/1","noise_multiplier":32,"records_per_site":303,"relation":"add-remove","rounds":40,'
        '"sites":4,"unit":"record"}'
    )
    assert plan.hash == "d885b41ace5b0319a896212cf2e58a21607610dfd43b2fcbd482413797e3c888"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: plan | {"sensitivity": 1}, "unknown keys in the plan: sensitivity"),
        (
            lambda plan: plan | {"sample_rate": 0.1},
            "unknown keys in the plan: sample_rate",
        ),  # P23: the cohort is signed
        (lambda plan: {k: v for k, v in plan.items() if k != "bits"}, "missing keys in the plan: bits"),
        (lambda plan: plan | {"format": "privacy-plan/2"}, "privacy-plan/1"),
        (lambda plan: [plan], "not an object"),
        (lambda plan: plan | {"rounds": 40.5}, "rounds"),
        (lambda plan: plan | {"clip": "1"}, "clip"),
    ],
)
def test_from_json_is_strict(change, message):
    """Unknown, missing and mistyped keys are refused by name."""
    with pytest.raises(PlanError, match=message):
        Plan.from_json(json.dumps(change(json.loads(solve().to_json()))))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"bits":32', '"bits":32,"bits":31', "'bits' is given twice"),
        ('"clip":1', '"clip":NaN', "NaN"),
        ("{", "", "not JSON"),
        ("{", "[" * 200_000, "nested too deeply"),
        ('"clip":1', '"clip":1' + 400 * "0", "clip"),
    ],
)
def test_from_json_refuses_bad_text(old, new, message):
    """A key given twice, NaN, and text that is no JSON."""
    with pytest.raises(PlanError, match=message):
        Plan.from_json(solve().to_json().replace(old, new, 1))


def test_plan_is_frozen():
    """A plan cannot be changed after it was hashed."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        solve().epsilon = 2.0


@pytest.mark.parametrize("relation", ["add-remove", "replace-one"])
def test_explain_says_what_is_promised_and_what_is_not(relation):
    """Unit, relation, delta, trust model, both routes, and what is not covered stand on one page."""
    text = solve(relation=relation).explain()
    for part in (
        "one record",
        "delta = 0.0001",
        "server and 1 colluding",
        "Rényi",
        "Not covered",
        "Computational",
        "3 of 4",
    ):
        assert part in text
    assert ("replaced" in text) == (relation == "replace-one")
    assert len(text.splitlines()) < 30
