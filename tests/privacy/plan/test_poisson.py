import json
import math
from pathlib import Path

import pytest

from privacy.accounting import epsilon
from privacy.accounting.gaussian import SAMPLER_DISTANCE, rdp_epsilon
from privacy.accounting.releases import Release, divergences
from privacy.budget import Budget
from privacy.errors import PlanError
from privacy.plan import Plan, epsilon_by_colluders, epsilon_by_rounds
from privacy.plan.poisson import MARGIN, order_budget

HEART = json.loads((Path(__file__).parents[2] / "heart_plan.json").read_text(encoding="utf-8"))
TENTH = Plan.solve(**HEART, sample_rate=0.1)


def test_every_record_in_every_round_is_the_plan_of_before(heart):
    """A sample rate of 1 changes neither JSON nor hash nor noise, however it is given."""
    plain = heart()
    assert plain.hash == "5c05664abd2ae8650c47cf26e4f9a0d6a571d22e8c9b5d7058c6d0fc065691ec"
    for one in (1, 1.0):
        again = heart(sample_rate=one)
        assert (again, again.hash, again.to_json()) == (plain, plain.hash, plain.to_json())
        assert "sample_rate" not in again.to_json()
        assert (again.sigma_local, again.budget()) == (plain.sigma_local, plain.budget())


def test_json_round_trip_keeps_the_hash(heart):
    """A sampled plan is read back equal, and the rate is in its hash."""
    plan = TENTH
    assert json.loads(plan.to_json())["sample_rate"] == 0.1
    again = Plan.from_json(plan.to_json())
    assert (again, again.hash) == (plan, plan.hash)
    assert Plan.from_json(plan.to_json().replace('"sample_rate":0.1', '"sample_rate":0.05')).hash != plan.hash
    with pytest.raises(PlanError, match=r"sample_rate = 1 in the plan is left out"):
        Plan.from_json(json.dumps(heart().to_fields() | {"sample_rate": 1}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"relation": "replace-one"}, "relation replace-one"),
        ({"silos": 2}, "silos = 2: each site flips a coin of its own"),
        ({"unit": "client", "relation": "zero-out", "records_per_site": 1}, "the signed cohort publishes"),  # P23
        ({"sample_rate": 1e-10}, r"below 2\*\*-32"),
        ({"sample_rate": 1.5}, "above 1"),
        ({"sample_rate": 0}, "sample_rate = 0 is not"),
        ({"sample_rate": -0.1}, "sample_rate"),
        ({"sample_rate": math.nan}, "sample_rate"),
        ({"sample_rate": True}, "sample_rate"),
        ({"sample_rate": "0.1"}, "sample_rate"),
    ],
)
def test_what_has_no_poisson_accounting_is_refused_by_name(heart, changes, message):
    """Other units and relations, several silos, and rates that mean nothing."""
    with pytest.raises(PlanError, match=message):
        heart(**({"sample_rate": 0.1} | changes))


@pytest.mark.parametrize("rate", [0.02, 0.5])
def test_the_noise_is_the_accountants_for_the_rate(heart, rate):
    """What is solved for keeps to the budget, is near it, and is what the accountant says of the plan's own numbers."""
    plan = heart(sample_rate=rate)
    bound = plan.accounted_epsilon()
    assert 0.995 < bound.upper <= 1.0
    asked = epsilon(noise_multiplier=plan.noise_multiplier, sample_rate=rate, steps=40, delta=1e-4)
    assert bound.routes["pld"] == pytest.approx(asked.routes["pld"], rel=1e-6)
    assert bound.routes["rdp"] == pytest.approx(asked.routes["rdp"], rel=1e-6)
    assert bound.lower <= bound.upper < bound.routes["rdp"] < bound.routes["closed_form"]
    assert plan.noise_multiplier < heart().noise_multiplier


def test_the_budget_and_the_rounds_follow_too(heart):
    """Any two of the three give the third, each on the safe side of the others."""
    plan = TENTH
    told = heart(sample_rate=0.1, epsilon=None, noise_multiplier=plan.noise_multiplier)
    assert told.epsilon == pytest.approx(1.0, rel=1e-3)
    assert told.accounted_epsilon().upper * (1 + MARGIN / 2) <= told.epsilon
    longest = heart(sample_rate=0.1, rounds=None, noise_multiplier=plan.noise_multiplier)
    assert longest.rounds == 40
    assert longest.accounted_epsilon(rounds=42).upper > 1.0
    many = heart(sample_rate=0.01, rounds=None, noise_multiplier=1.0)
    assert many.accounted_epsilon().upper <= 1.0 < many.accounted_epsilon(rounds=round(many.rounds * 1.01) + 1).upper
    with pytest.raises(PlanError, match=r"one round at noise_multiplier = 1 and sample_rate = 0\.9 spends epsilon"):
        heart(sample_rate=0.9, rounds=None, noise_multiplier=1.0)


def test_a_plan_over_its_budget_is_refused():
    """Noise that keeps to the budget at a tenth does not at a fifth, and the message has what it would spend."""
    fields = TENTH.to_fields()
    fields.pop("format")
    Plan(**fields)
    with pytest.raises(PlanError, match=r"spend epsilon = 2.*the budget is 1"):
        Plan(**fields | {"sample_rate": 0.2})
    with pytest.raises(PlanError, match="spend epsilon"):
        Plan(**fields | {"rounds": 41})


def test_the_noise_sampler_is_paid_for(heart):
    """Where so many coordinates are drawn that the sampler takes a part of delta, every route says more."""
    plan = heart(sample_rate=0.1, dimension=10**9, delta=1e-16, epsilon=4.0, noise_multiplier=2.0, rounds=None)
    assert plan.rounds * plan.draws * SAMPLER_DISTANCE > 0.001 * plan.delta
    curve = plan.rounds * divergences(plan.release)
    assert plan.accounted_epsilon().routes["rdp"] > rdp_epsilon(curve, plan.delta)


def test_a_run_may_make_its_rounds_and_what_its_budget_has_room_for():
    """No more than T where T takes the whole budget; where the budget is wide, as many as Rényi has room for."""
    tight = TENTH
    assert tight.most_releases == 40
    fields = tight.to_fields() | {"epsilon": 1.5}
    fields.pop("format")
    wide = Plan(**fields)
    assert 40 < wide.most_releases <= 160
    assert wide.accounted_epsilon(rounds=wide.most_releases).routes["rdp"] <= 1.5
    assert wide.accounted_epsilon(rounds=wide.most_releases + 2).routes["rdp"] > 1.5


def test_the_filter_of_a_sampled_plan_has_one_order():
    """Fixed by the plan, so before anything is released; where no order has room, the filter is the exact one."""
    plan = TENTH
    assert plan.budget().order is not None
    assert plan.budget() == order_budget(plan.release, Budget(1.0, 1e-4, plan.budget().sampler_delta))
    narrow = Budget(1e-3, 1e-12)
    assert order_budget(Release(1.0, 0.1), narrow) == narrow


def test_an_adaptive_clip_is_sampled_with_its_record(heart, adaptive):
    """The bit is a coordinate of the record's vector, so one coin takes both: one release of their joint sensitivity."""
    plan, alone = heart(sample_rate=0.1, adaptive=adaptive), TENTH
    assert plan.release.rate == 0.1
    assert plan.release.mu == pytest.approx(1 / plan.noise_multiplier, rel=1e-9)
    assert plan.sensitivity > plan.grid
    assert plan.accounted_epsilon().upper <= 1.0
    assert plan.noise_multiplier == pytest.approx(alone.noise_multiplier, rel=1e-3)


def test_the_page_says_who_takes_part_and_what_the_secret_is_worth(heart):
    """The coin, who knows it, that attempts count, and epsilon were it told; a plan of full batches says none of it."""
    plan = TENTH
    text = plan.explain()
    for part in ("with probability 0.1", "only its site knows", "neither cut nor filled up", "every attempt counted"):
        assert part in text
    assert "were it told, epsilon would be 13.3" in text
    assert "coin" not in heart().explain()
    loud = heart(sample_rate=0.01, epsilon=None, noise_multiplier=0.4)
    assert "were it told, epsilon would have no bound" in loud.explain()


def test_outlook_of_a_sampled_plan_grows():
    """Epsilon grows with rounds and colluders, and the plan's own row is its epsilon."""
    plan = TENTH
    rounds, colluders = dict(epsilon_by_rounds(plan)), dict(epsilon_by_colluders(plan))
    for table, own in ((rounds, 40), (colluders, 1)):
        uppers = [bound.upper for bound in table.values()]
        assert uppers == sorted(uppers)
        assert table[own].upper == plan.accounted_epsilon().upper
    assert rounds[80].upper > 1.0
