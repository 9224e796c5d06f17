import dataclasses
import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from privacy.accounting.gaussian import closed_form
from privacy.adaptive import AdaptiveClip, AdaptiveCodec
from privacy.codec import GridCodec
from privacy.errors import PlanError
from privacy.plan import Plan, PlanWarning

HEART = json.loads((Path(__file__).parents[2] / "heart_plan.json").read_text(encoding="utf-8"))
ADAPTIVE = AdaptiveClip(quantile=0.5, learning_rate=0.2, bit_noise=36.0, expected=720.0, min_clip=0.01, max_clip=100.0)


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
            lambda plan: plan | {"client_rate": 0.1},
            "unknown keys in the plan: client_rate",
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


@pytest.mark.parametrize("relation", ["add-remove", "replace-one"])
@pytest.mark.parametrize("silos", [1, 2, 4])
def test_silos_multiply_the_sensitivity(relation, silos):
    """A person at k sites changes the sum by k contributions, and the same budget needs k times the noise of a record."""
    once, plan = solve(relation=relation), solve(relation=relation, silos=silos, bits=48)
    assert plan.sensitivity / plan.grid == silos * once.sensitivity / once.grid
    assert plan.noise_multiplier == once.noise_multiplier
    assert plan.sigma_star / plan.grid == pytest.approx(silos * once.sigma_star / once.grid, rel=1e-12)
    assert plan.mu(3) == pytest.approx(once.mu(3), rel=1e-12)
    assert plan.total_clip == silos * plan.clip


def test_silos_are_the_sensitivity_of_real_sums():
    """One person's records at two sites, both at the clip norm, move the sum by nearly the sensitivity, never more."""
    plan = solve(silos=2, dimension=3)
    codec = plan.codec()
    record = codec.encode_records(np.array([[3.0, 4.0, 0.0]]), np.array([True]))[0]
    moved = sum(int(each) ** 2 for each in 2 * record)
    assert 0.999 < moved / plan.sensitivity**2 <= 1
    assert moved > plan.grid**2  # what k = 1 would have promised


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"silos": 5}, "silos = 5.*4 sites"),
        ({"silos": 0}, "silos = 0"),
        ({"silos": 2.0}, r"silos = 2\.0"),
        ({"silos": True}, "silos = True"),
        ({"silos": 2, "unit": "client", "relation": "zero-out", "records_per_site": 1}, "silos = 2: a client"),
        ({"adaptive": {"quantile": 0.5}}, "not an AdaptiveClip"),
        ({"adaptive": ADAPTIVE, "clip": 1000.0}, r"clip = 1000\.0 is outside"),
        ({"adaptive": dataclasses.replace(ADAPTIVE, bit_noise=10.0)}, r"bit_noise = 10 .* 10\.07"),
        ({"adaptive": dataclasses.replace(ADAPTIVE, expected=1300.0)}, "expected = 1300 is above the 1212 records"),
        ({"adaptive": ADAPTIVE, "silos": 4}, r"bit_noise = 36 .* 40\.29"),
    ],
)
def test_contribution_bounds_and_adaptive_clips_that_do_not_fit_are_refused(changes, message):
    """More silos than sites, silos of clients, a first clip norm out of range, no noise left for the update."""
    with pytest.raises(PlanError, match=message):
        solve(**changes)


@pytest.mark.parametrize("total", [1.0, 5.0, 0.1, 1e-300])
@pytest.mark.parametrize("silos", [1, 2, 3, 4])
def test_a_bound_on_the_whole_contribution_is_a_smaller_clip(total, silos):
    """Clipping to C / k at k sites keeps a person's whole within C in exact arithmetic, and loses less than 1e-15 of it."""
    plan = Plan.solve(**{name: value for name, value in HEART.items() if name != "clip"}, total_clip=total, silos=silos)
    assert Fraction(plan.clip) * silos <= Fraction(total)
    assert plan.clip * silos == pytest.approx(total, rel=1e-15)
    assert plan == solve(clip=plan.clip, silos=silos)  # a reparameterisation, no other mechanism


@pytest.mark.parametrize("both", [True, False])
def test_one_clip_norm_is_given(both):
    """Norms of a contribution and of the whole together, or neither, are refused."""
    norms = {"clip": 1.0, "total_clip": 1.0} if both else {}
    with pytest.raises(PlanError, match="clip and total_clip"):
        Plan.solve(**{name: value for name, value in HEART.items() if name != "clip"}, **norms)


def test_budget_for_a_noise():
    """A noise multiplier in place of the budget gives the least epsilon: the plan is accepted, and nothing smaller is."""
    given = {name: value for name, value in HEART.items() if name != "epsilon"} | {"noise_multiplier": 21.0}
    plan = Plan.solve(**given)
    assert plan.noise_multiplier == 21
    assert plan.epsilon * (1 - 1e-6) < plan.accounted_epsilon().upper <= plan.epsilon
    with pytest.raises(PlanError, match="the budget is"):
        Plan(**given, epsilon=plan.epsilon * (1 - 1e-6))


def test_rounds_for_a_budget_and_a_noise():
    """Budget and noise give the most rounds."""
    given = {name: value for name, value in HEART.items() if name != "rounds"} | {"noise_multiplier": 21.0}
    plan = Plan.solve(**given)
    assert plan.rounds == 43
    with pytest.raises(PlanError, match="44 rounds"):
        Plan(**given, rounds=44)


@pytest.mark.parametrize("given", [{"noise_multiplier": 21.0}, {"epsilon": None}])
def test_all_three_or_too_few_are_refused(given):
    """P16: budget, noise and rounds cannot all be set; nor can they be left out."""
    with pytest.raises(PlanError, match="two of epsilon, noise_multiplier, rounds"):
        solve(**given)


@pytest.mark.parametrize("relation", ["add-remove", "replace-one"])
@pytest.mark.parametrize("silos", [1, 2])
@pytest.mark.parametrize("bits", [25, 32, 64])
def test_adaptive_plan_accounts_for_bit_and_update(relation, silos, bits):
    """Update and bit, as two Gaussian releases with the noise each really gets, spend exactly the plan's mu**2."""
    adaptive = dataclasses.replace(ADAPTIVE, bit_noise=100.0)
    plan = solve(adaptive=adaptive, relation=relation, silos=silos, bits=bits)
    sigma, times = plan.sigma_effective(3), silos * (2 if relation == "replace-one" else 1)
    update, bit = times * plan.grid / sigma, times * 0.5 / (sigma / (2 * plan.bit))
    step = 2 / plan.grid  # the sensitivity is a whole number of steps
    assert plan.mu(3) ** 2 * (1 - step) < update**2 + bit**2 <= plan.mu(3) ** 2 * (1 + 1e-12)
    assert plan.mu(3) ** 2 == pytest.approx(plan.noise_multiplier**-2, rel=1e-9)
    # The paper's formula, from the plan's own numbers.
    z, counted = plan.noise_multiplier, plan.sigma_star / (2 * plan.bit) / times
    assert plan.sigma_star / (times * plan.grid) == pytest.approx((z**-2 - (2 * counted) ** -2) ** -0.5, rel=2 * step)
    assert plan.sigma_star / (2 * plan.bit) <= 100.0 * (1 + step)
    assert plan.sites * plan.bound < 1 << (bits - 1)
    assert plan.accounted_epsilon().upper <= plan.epsilon


def test_adaptive_sensitivity_is_the_next_whole_step():
    """The sensitivity is never below the root of G**2 + B**2, and less than one step above it, in whole numbers."""
    plan = solve(adaptive=ADAPTIVE, silos=3, bits=48, epsilon=4.0)
    assert type(plan.sensitivity) is int
    steps, rest = divmod(plan.sensitivity, 3)
    assert rest == 0
    assert (steps - 1) ** 2 < plan.grid**2 + plan.bit**2 <= steps**2
    assert solve().sensitivity == solve().grid


def test_adaptive_plan_has_one_more_coordinate():
    """The bit is drawn for, and sent, like any other coordinate; the solver's sampler part counts it."""
    plain, plan = solve(), solve(adaptive=ADAPTIVE)
    assert (plain.length, plain.bit, plain.draws) == (40, 0, 160)
    assert (plan.length, plan.draws) == (41, 164)
    assert plan.bound > plan.records_per_site * max(plan.grid, plan.bit)
    assert plan.grid <= plain.grid


@pytest.mark.parametrize("bits", range(24, 41))
def test_a_bit_longer_than_the_vector_has_room_too(bits):
    """Where the count is wanted nearly as exact as the budget allows, the bit's steps are what must fit the ring."""
    plan = solve(adaptive=dataclasses.replace(ADAPTIVE, bit_noise=10.5), bits=bits)
    assert plan.bit > 3 * plan.grid
    assert plan.bound == plan.records_per_site * plan.bit + math.ceil(13 * plan.sigma_local)
    assert plan.sites * plan.bound < 1 << (bits - 1)
    everyone = plan.codec().encode_records(np.zeros((303, 40)), np.ones(303, bool)).sum(axis=0)
    assert np.abs(everyone).max() == 303 * plan.bit


def test_the_sampler_of_the_bit_is_paid_for_when_solving():
    """At a budget where the sampler costs a part of delta, with one coordinate and its bit, the solved plan is accepted."""
    plan = solve(adaptive=ADAPTIVE, dimension=1, epsilon=52.0, rounds=10)
    assert 52 * (1 - 1e-2) < plan.accounted_epsilon().upper <= 52
    assert plan.noise_multiplier > solve(dimension=1, epsilon=52.0, rounds=10).noise_multiplier


def test_codec_is_that_of_the_round():
    """A plan gives the codec of a round: its own clip norm, or any in the range where it adapts."""
    plain, plan = solve(), solve(adaptive=ADAPTIVE)
    assert plain.codec() == plain.codec(1.0) == GridCodec(1.0, plain.grid, 40)
    assert plan.codec(7.5) == AdaptiveCodec(GridCodec(7.5, plan.grid, 40), plan.bit)
    for bad, made in ((2.0, plain), (101.0, plan), (math.nan, plan)):
        with pytest.raises(PlanError, match="clip"):
            made.codec(bad)


def test_accounted_epsilon_of_other_rounds_and_colluders():
    """More rounds or colluders cost more; no rounds and nobody honest are refused."""
    plan = solve()
    assert plan.accounted_epsilon(rounds=20).upper < plan.accounted_epsilon().upper
    assert plan.accounted_epsilon(colluders=2).upper > plan.accounted_epsilon(colluders=0).upper
    for bad in ({"rounds": 0}, {"colluders": 3}, {"colluders": -1}):
        with pytest.raises(PlanError):
            plan.accounted_epsilon(**bad)


@pytest.mark.parametrize(
    "changes", [{"silos": 2}, {"adaptive": ADAPTIVE}, {"silos": 2, "adaptive": ADAPTIVE, "epsilon": 4.0}]
)
def test_new_fields_survive_json_and_change_the_hash(changes):
    """A plan with silos or an adaptive clip is read back equal, with the same hash, which is another plan's."""
    plan, plain = solve(**changes), solve()
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert (again.hash, again.grid, again.bit, again.sigma_local) == (plan.hash, plan.grid, plan.bit, plan.sigma_local)
    assert plan.hash != plain.hash
    assert "silos" not in plain.to_json()
    assert "adaptive" not in plain.to_json()
    assert hash(plan) == hash(again)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"silos": 1}, "silos = 1 in the plan is left out"),
        ({"silos": 1.0}, r"silos = 1\.0 in the plan is left out"),
        ({"silos": True}, "silos = True in the plan is left out"),
        ({"silos": None}, "silos = None"),
        ({"silos": "2"}, "silos = '2'"),
        ({"silos": 2.5}, r"silos = 2\.5"),
        ({"silos": [2]}, "silos"),
        ({"adaptive": None}, "adaptive = None in the plan is left out"),
        ({"adaptive": []}, r"adaptive = \[\] is not an object"),
        ({"adaptive": ADAPTIVE.to_fields() | {"decay": 1}}, r"unknown keys in the plan: adaptive\.decay"),
        ({"adaptive": {"quantile": 0.5}}, r"missing keys in the plan: adaptive\.bit_noise"),
        ({"adaptive": ADAPTIVE.to_fields() | {"quantile": "0.5"}}, r"adaptive\.quantile = '0\.5'"),
        ({"adaptive": ADAPTIVE.to_fields() | {"max_clip": True}}, r"adaptive\.max_clip = True"),
        ({"bit": 1}, "unknown keys in the plan: bit"),
    ],
)
def test_new_keys_are_read_strictly(change, message):
    """A default written out, another type, an unknown or a missing key inside: refused by name."""
    with pytest.raises(PlanError, match=message):
        Plan.from_json(json.dumps(solve().to_fields() | change))


def test_a_ledger_books_a_plan_with_silos_and_adaptive_clip(tmp_path):
    """Reserved, committed, replayed and recomputed as any other: the plan is in the ledger, bit and silos included."""
    from privacy.ledger import Ledger, read_entries, verify

    plan, path = solve(adaptive=ADAPTIVE, silos=2, epsilon=4.0), tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        held = ledger.reserve(run="r", round=0, attempt=0, plan=plan, private=True, data_set="ab")
        entry = ledger.commit(held, survivors=(0, 1, 2, 3), transcript="")
    assert entry.mu == plan.mu(4)
    body = read_entries(path)[0].body
    assert (body["silos"], body["adaptive"]) == (2, ADAPTIVE.to_fields())
    assert Plan.from_json(json.dumps(body)).hash == plan.hash
    spent = closed_form(plan.mu(4) ** 2, plan.delta)
    assert verify(path).total.epsilon.upper == pytest.approx(spent, rel=1e-9)
