"""The rows that solve for noise, or ask for more than an accountant may grant: rates, sensitivities, coins."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest

from fl import build_config
from fl.errors import ConfigError
from privacy import AccountingError, AdaptiveClip, Plan, PlanError, epsilon, gaussian_epsilon, noise_multiplier
from privacy.accounting import block_epsilon

# steps, sampling rate, relation, and what else
QUESTIONS = [
    (1, 1.0, "add-remove", {}),
    (40, 1.0, "replace-one", {}),
    (1000, 1.0, "add-remove", {"silos": 3}),
    (30, 1.0, "zero-out", {"unit": "client"}),
    (1, 0.1, "add-remove", {}),
    (3, 0.05, "add-remove", {}),
    (5, 0.3, "replace-one", {}),
    (20, 0.1, "zero-out", {"sampling": "fixed"}),
]


@pytest.mark.case("P5")
@pytest.mark.parametrize("target", [0.05, 1.0])
@pytest.mark.parametrize(("steps", "rate", "relation", "rest"), QUESTIONS)
def test_noise_never_lands_above_its_target(target, steps, rate, relation, rest):
    """The noise for a budget keeps to it, whatever the question; and with a hundredth less it would not."""
    asked = {"delta": 1e-5, "steps": steps, "sample_rate": rate, "relation": relation} | rest
    noise = noise_multiplier(epsilon=target, **asked)
    bound = epsilon(noise_multiplier=noise, **asked)
    assert 0.97 * target < bound.upper <= target
    assert epsilon(noise_multiplier=noise * 0.99, **asked).upper > target


@pytest.mark.case("P5")
@pytest.mark.parametrize("target", [0.01, 0.1, 0.5, 1.0, 2.0, 3.3, 10.0, 30.0])
def test_a_plan_never_lands_above_its_budget(plan_of, target):
    """A plan that is solved for a budget spends no more than it, and all but a millionth of it."""
    for rounds in (1, 7, 40):
        plan = plan_of(epsilon=target, rounds=rounds, bits=64)
        assert target * (1 - 1e-6) < plan.accounted_epsilon().upper <= target
        left = plan_of(epsilon=None, rounds=rounds, noise_multiplier=plan.noise_multiplier)
        assert left.accounted_epsilon().upper <= left.epsilon <= target * (1 + 1e-6)


@pytest.mark.case("P5")
@pytest.mark.parametrize("terms", ["--steps 7", "--steps 3 --sample-rate 0.05", "--steps 3 --relation replace-one"])
@pytest.mark.parametrize("target", ["0.3", "1"])
def test_the_printed_noise_keeps_to_the_budget(typed, terms, target):
    """Whoever types the noise that was printed, with its last digit rounded, stays within the budget."""
    code, out, _ = typed(f"noise --epsilon {target} --delta 1e-5 {terms}")
    assert code == 0
    printed = re.search(r"noise multiplier ([0-9.]+):", out).group(1)
    code, out, _ = typed(f"epsilon --noise-multiplier {printed} --delta 1e-5 {terms} --json")
    assert code == 0
    assert 0.97 * float(target) < json.loads(out)["epsilon"] <= float(target)


@pytest.mark.case("P8")
@pytest.mark.parametrize("relation", ["zero-out", "replace-one"])
@pytest.mark.parametrize(("z", "q", "steps"), [(1.0, 0.01, 100), (2.0, 0.25, 8), (0.8, 0.05, 200)])
def test_shuffled_batches_are_in_every_step(typed, relation, z, q, steps):
    """Fixed or shuffled batches are accounted at rate 1, by every route and in the shell; coins would have said far less."""
    asked = {"noise_multiplier": z, "steps": steps, "delta": 1e-5, "relation": relation}
    fixed, whole = epsilon(**asked, sample_rate=q, sampling="fixed"), epsilon(**asked)
    assert fixed.routes == whole.routes
    assert fixed.upper == whole.upper > 2.5 * epsilon(**asked, sample_rate=q).upper
    words = f"epsilon --noise-multiplier {z} --steps {steps} --delta 1e-5 --relation {relation} --sample-rate {q}"
    code, out, _ = typed(f"{words} --sampling fixed")
    assert (code, "every record counts in every step" in out, "Poisson" in out) == (0, True, False)
    assert json.loads(typed(f"{words} --sampling fixed --json")[1])["epsilon"] == whole.upper


@pytest.mark.case("P8")
@pytest.mark.parametrize("relation", [None, "add-remove"])
def test_a_record_does_not_leave_a_batch_of_a_fixed_size(relation):
    """For such batches add-remove means nothing, for another record takes the place: refused, asked for or by default."""
    with pytest.raises(AccountingError, match="fixed"):
        epsilon(noise_multiplier=1.0, sample_rate=0.1, steps=10, delta=1e-5, sampling="fixed", relation=relation)
    with pytest.raises(AccountingError, match="fixed"):
        noise_multiplier(epsilon=1.0, sample_rate=0.1, steps=10, delta=1e-5, sampling="fixed", relation=relation)


@pytest.mark.case("P8")
@pytest.mark.parametrize("word", ["shuffle", "shuffled", "Poisson", "", None, True])
def test_other_samplers_are_refused(word):
    """There is no third way to draw a batch, and none that is taken for coins."""
    with pytest.raises(AccountingError, match="sampling"):
        epsilon(noise_multiplier=1.0, sample_rate=0.1, steps=10, delta=1e-5, sampling=word)


EXPERIMENT = {
    "name": "toy",
    "rounds": 2,
    "data": {"bundled": "heart"},
    "algorithm": {"name": "dp_fedsgd"},
    "privacy": {"epsilon": 2.0, "delta": 1e-4, "records_per_site": 303, "divisor": 720},
}


def with_key(plan, name, value):
    """The JSON of a plan with one key more."""
    return json.dumps(plan.to_fields() | {name: value})


@pytest.mark.case("P8", "P16", "P23")
@pytest.mark.parametrize("name", ["batch_size", "sampling", "sensitivity", "client_rate", "local_steps", "sigma_local"])
def test_a_plan_has_no_place_for_it(plan_of, typed, name, tmp_path):
    """No rate, batch, coin or sensitivity can be put into a plan, in Python, JSON, shell or experiment: each is named."""
    plan, file = plan_of(), tmp_path / "plan.json"
    with pytest.raises(TypeError, match=name):
        plan_of(**{name: 0.1})
    with pytest.raises((TypeError, ValueError), match=name):
        dataclasses.replace(plan, **{name: 0.1})
    with pytest.raises(PlanError, match=f"unknown keys in the plan: {name}"):
        Plan.from_json(with_key(plan, name, 0.1))
    file.write_text(with_key(plan, name, 0.1))
    code, out, err = typed(["plan", "--from", file])
    assert (code, out) == (1, "")
    assert f"unknown keys in the plan: {name}" in err
    option = f"--{name.replace('_', '-')}"
    code, _, err = typed(f"plan {option} 0.1")
    assert (code, f"No such option: {option}" in err or f"No such option '{option}'" in err) == (1, True)
    for section in ("privacy", "algorithm"):
        build_config(EXPERIMENT)
        with pytest.raises(ConfigError, match=rf"{section}\.{name}: no such key"):
            build_config(EXPERIMENT | {section: EXPERIMENT[section] | {name: 0.1}})


@pytest.mark.case("P16")
@pytest.mark.parametrize(
    "change", [{"clip": 0.01}, {"clip": 1e6}, {"relation": "replace-one"}, {"silos": 3}, {"bits": 24}]
)
def test_the_sensitivity_follows(plan_of, change):
    """It is the clip norm in grid steps, times two for replace-one and times the silos, and cannot be set afterwards."""
    plan = plan_of(**change)
    contributions = change.get("silos", 1) * (2 if "relation" in change else 1)
    assert plan.sensitivity == contributions * plan.grid
    assert plan.mu(3) == pytest.approx(1 / plan.noise_multiplier, rel=1e-9)
    assert plan.accounted_epsilon().upper == pytest.approx(
        gaussian_epsilon(40 * (contributions * plan.grid) ** 2 / plan.sigma_effective(3) ** 2, plan.delta).upper,
        rel=1e-9,
    )
    with pytest.raises(AttributeError):
        plan.sensitivity = 1
    with pytest.raises(TypeError, match="sensitivity"):
        epsilon(noise_multiplier=1.0, steps=1, delta=1e-5, sensitivity=1e-8)


@pytest.mark.case("P16")
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("size", [1e-9, 1.0, 1e30])
def test_no_record_moves_the_sum_further(plan_of, adaptive, size):
    """Whatever a record holds, its integers are no longer than the sensitivity that was derived, an adaptive clip's bit included."""
    rule = AdaptiveClip(quantile=0.5, learning_rate=0.2, bit_noise=40.0, expected=1000.0, min_clip=1e-3, max_clip=1e3)
    plan = plan_of(adaptive=rule if adaptive else None)
    rows = np.random.default_rng(0).normal(size=(200, 40)).astype(np.float32) * np.float32(size)
    codec = plan.codec()
    for row in codec.encode_records(rows, np.ones(200, bool)).tolist():
        assert sum(x * x for x in row) <= plan.sensitivity**2
    assert plan.sensitivity == math.isqrt(plan.grid**2 + plan.bit**2 - 1) + 1
    assert (plan.bit > 0) is adaptive


# (sigma, rate of records, local steps, rate of clients, rounds), epsilon, and what the product of the rates would give
BLOCKS = [
    ((0.7, 0.01, 100, 0.1, 10), 0.7078156473187017, 0.6089572494482232),
    ((0.7, 0.05, 20, 0.2, 20), 4.3345495541807, 3.352189668574729),
    ((1.0, 0.1, 100, 0.2, 10), 8.522201615114279, 3.899092097744799),
]


@pytest.mark.case("P23")
@pytest.mark.parametrize(("block", "right", "wrong"), BLOCKS)
def test_a_clients_coin_counts_once_a_round(typed, block, right, wrong):
    """A client's coin before a block of local steps: 8.52 and not 3.90, from above and below, in Python and in the shell."""
    z, q, local, c, rounds = block
    bound = block_epsilon(
        noise_multiplier=z, sample_rate=q, local_steps=local, client_rate=c, rounds=rounds, delta=1e-5
    )
    assert bound.upper == pytest.approx(right, rel=0.01)
    assert min(bound.routes.values()) >= bound.lower > 1.05 * wrong
    product = epsilon(noise_multiplier=z, sample_rate=q * c, steps=local * rounds, delta=1e-5).upper
    assert product == pytest.approx(wrong, rel=0.03)
    words = f"--noise-multiplier {z} --sample-rate {q} --local-steps {local} --client-rate {c} --steps {rounds}"
    answer = json.loads(typed(f"epsilon {words} --delta 1e-5 --json")[1])
    assert answer["epsilon"] == bound.upper < answer["epsilon_if_seen"]


@pytest.mark.case("P23")
def test_no_client_is_accounted_with_a_coin(typed):
    """For the client unit a rate is refused, for the signed cohort publishes the coin."""
    with pytest.raises(AccountingError, match="signed cohort publishes"):
        epsilon(noise_multiplier=1.0, sample_rate=0.2, steps=10, delta=1e-5, unit="client")
    code, out, err = typed("epsilon --noise-multiplier 1 --sample-rate 0.2 --steps 10 --delta 1e-5 --unit client")
    assert (code, out) == (1, "")
    assert "signed cohort publishes" in err
