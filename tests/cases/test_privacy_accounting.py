"""The rows that ask an accountant: what an answer must be, and which question has none."""

import dataclasses
import itertools
import json
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from privacy import (
    AccountingError,
    Budget,
    Ledger,
    PlanError,
    PlanWarning,
    epsilon,
    gaussian_epsilon,
    noise_multiplier,
)
from privacy.accounting import block_epsilon

ONE_STEP = {"noise_multiplier": 1.0, "steps": 1, "delta": 1e-5}
NO_NUMBERS = [math.nan, math.inf, -math.inf, -1.0, 0.0, True, None, "1"]


def gaussian_delta(level, mu):
    """The exact delta of one Gaussian mechanism at an epsilon, from the normal distribution alone."""
    tail = lambda x: math.erfc(x / math.sqrt(2)) / 2  # noqa: E731 - as in the formula
    return tail(level / mu - mu / 2) - math.exp(level) * tail(level / mu + mu / 2)


def replaced_delta(level, z, q):
    """The exact delta of one step in which a record that is drawn with probability q was replaced, by integration."""
    x, step = np.linspace(-12 * z - 1, 12 * z + 1, 200_001, retstep=True)
    law = lambda at: np.exp(-((x - at) ** 2) / (2 * z * z)) / (z * math.sqrt(2 * math.pi))  # noqa: E731 - as above
    first, second = ((1 - q) * law(0) + q * law(at) for at in (1, -1))
    return float(np.maximum(first - math.exp(level) * second, 0).sum() * step)


@pytest.mark.case("P1")
def test_replace_one_is_twice_as_far():
    """Replace-one at one unit of noise is 9.997: no route says less, and the exact profile is at delta there."""
    bound = epsilon(**ONE_STEP, relation="replace-one")
    assert bound.upper == pytest.approx(9.9972561464343, rel=1e-9)
    assert min(bound.routes.values()) >= 9.997
    assert set(bound.routes) >= {"closed_form", "rdp"}
    assert gaussian_delta(bound.upper, 2.0) == pytest.approx(1e-5, rel=1e-6)
    assert gaussian_delta(4.728507067217623, 2.0) > 1e-2


@pytest.mark.case("P1")
@pytest.mark.parametrize("q", [0.9, 0.3, 0.05])
def test_replace_one_of_a_sample(q):
    """Subsampled, every route of replace-one covers the exact profile, which half of the way would not."""
    bound = epsilon(**ONE_STEP, sample_rate=q, relation="replace-one")
    assert replaced_delta(bound.upper, 1.0, q) <= 1e-5
    assert all(replaced_delta(value, 1.0, q) <= 1e-5 for value in bound.routes.values())
    assert replaced_delta(epsilon(**ONE_STEP, sample_rate=q).upper, 1.0, q) > 1e-5


@pytest.mark.case("P1")
def test_replace_one_in_plan_and_shell(typed, plan_of):
    """The command says 9.997 too, and a plan for replace-one takes twice the noise of one for add-remove."""
    code, out, _ = typed("epsilon --noise-multiplier 1 --delta 1e-5 --relation replace-one --json")
    assert (code, json.loads(out)["epsilon"]) == (0, pytest.approx(9.9972561464343, rel=1e-9))
    leaves, replaced = plan_of(bits=40), plan_of(bits=40, relation="replace-one")
    assert replaced.grid == leaves.grid
    assert replaced.sigma_star == pytest.approx(2 * leaves.sigma_star, rel=1e-9)


@pytest.mark.case("P2")
@pytest.mark.parametrize("value", NO_NUMBERS)
def test_what_is_no_amount_of_noise(value):
    """NaN, infinity, nothing and what is no number are refused by name by every function that takes noise."""
    for ask in (
        lambda: epsilon(noise_multiplier=value, steps=1, delta=1e-5),
        lambda: epsilon(noise_multiplier=value, steps=1, delta=1e-5, sample_rate=0.1),
        lambda: block_epsilon(noise_multiplier=value, local_steps=1, client_rate=0.5, rounds=1, delta=1e-5),
    ):
        with pytest.raises(AccountingError, match="noise_multiplier"):
            ask()
    if value != 0.0:
        with pytest.raises(AccountingError, match="mu_squared"):
            gaussian_epsilon(value, 1e-5)


@pytest.mark.case("P2")
def test_one_release_of_nan_after_a_hundred_rounds(tmp_path, plan_of, typed):
    """A hundred rounds are in the books, then one with NaN for noise: refused, not booked, and the total stays what it was."""
    plan = plan_of(rounds=101)
    broken, file, seen = plan_of(rounds=101), tmp_path / "ledger.jsonl", []
    object.__setattr__(broken, "sigma_local", math.nan)
    booked = {"run": "run", "attempt": 0, "private": True, "data_set": None}
    with Ledger(file) as ledger:
        for number in range(100):
            held = ledger.reserve(round=number, plan=plan, **booked)
            ledger.commit(held, survivors=(0, 1, 2), transcript="")
            seen.append(ledger.total().epsilon.upper)
        before = file.read_bytes()
        with pytest.raises(PlanError, match="nan"):
            ledger.reserve(round=100, plan=broken, **booked)
        assert file.read_bytes() == before
        assert ledger.total().epsilon.upper == seen[-1]
    assert all(first < second for first, second in itertools.pairwise(seen))
    with pytest.raises(PlanError, match="noise_multiplier"):
        dataclasses.replace(plan, noise_multiplier=math.nan)
    with pytest.raises(PlanError, match="nan"):
        plan.budget().check(math.nan, 1e-3)
    *lines, last = before.splitlines(keepends=True)
    file.write_bytes(b"".join(lines) + re.sub(rb'"mu":[^,]+', b'"mu":NaN', last))
    code, out, err = typed(["ledger", "total", file])
    assert (code, out) == (2, "")
    assert f"{file}, line 201" in err
    code, out, err = typed("epsilon --noise-multiplier nan --delta 1e-5 --steps 101")
    assert (code, out) == (1, "")
    assert "noise_multiplier = nan" in err


@pytest.mark.case("P2")
@pytest.mark.parametrize("q", [1.0, 0.1])
def test_more_steps_never_cost_less(q):
    """Epsilon never falls with another step, at any rate."""
    bounds = [
        epsilon(noise_multiplier=2.0, sample_rate=q, steps=steps, delta=1e-5).upper for steps in (1, 2, 3, 10, 30)
    ]
    assert all(first < second for first, second in itertools.pairwise(bounds))


@pytest.mark.case("P3")
@pytest.mark.parametrize("delta", [2.0, 1.0, *NO_NUMBERS])
def test_what_is_no_delta(tmp_path, plan_of, delta):
    """Two, one, NaN, nothing and what is no number are refused by name wherever delta goes in."""
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        ledger.reserve(run="run", round=0, attempt=0, plan=plan_of(), private=True, data_set=None)
        for ask in (
            lambda: epsilon(noise_multiplier=1.0, steps=1, delta=delta),
            lambda: epsilon(noise_multiplier=1.0, steps=1, delta=delta, sample_rate=0.1),
            lambda: gaussian_epsilon(1.0, delta),
            lambda: noise_multiplier(epsilon=1.0, steps=1, delta=delta),
            lambda: block_epsilon(noise_multiplier=1.0, local_steps=2, client_rate=0.5, rounds=1, delta=delta),
            lambda: Budget(1.0, delta),
            lambda: dataclasses.replace(plan_of(), delta=delta),
            lambda: ledger.total(delta if delta is not None else math.nan),
        ):
            with pytest.raises((AccountingError, PlanError), match="delta"):
                ask()


@pytest.mark.case("P3")
@pytest.mark.parametrize("word", ["2", "1", "nan", "inf", "0", "-1"])
def test_what_is_no_delta_in_the_shell(typed, tmp_path, plan_of, word):
    """Every command that takes delta refuses it by name and prints no number."""
    file = tmp_path / "ledger.jsonl"
    with Ledger(file) as ledger:
        ledger.reserve(run="run", round=0, attempt=0, plan=plan_of(), private=True, data_set=None)
    plan = "plan --unit client --sites 9 --dimension 9 --clip 1 --divisor 9 --rounds 9 --epsilon 1"
    for command in ("epsilon --noise-multiplier 1", "noise --epsilon 1", plan, f"ledger total {file}"):
        code, out, err = typed([*command.split(), f"--delta={word}"])
        assert (code, out) == (1, "")
        assert "delta" in err


@pytest.mark.case("P3")
@pytest.mark.parametrize(("delta", "warned"), [(1 / 1212, True), (0.01, True), (0.999 / 1212, False), (1e-6, False)])
def test_a_delta_that_allows_to_publish_somebody(plan_of, typed, recwarn, delta, warned):
    """From one in the number of records on there is a warning with both numbers, in Python, in words and in JSON."""
    plan = plan_of(delta=delta)
    notes = [str(each.message) for each in recwarn.list if issubclass(each.category, PlanWarning)]
    assert [f"delta = {delta:g} is not below 1 / 1212 records" in note for note in notes] == [True] * warned
    words = "plan --unit record --sites 4 --dropouts 1 --colluders 1 --clip 1 --records-per-site 303 --dimension 40"
    code, out, err = typed(f"{words} --rounds 40 --epsilon 1 --divisor 720 --json --delta {delta!r}")
    answer = json.loads(out)
    assert (code, answer["hash"]) == (0, plan.hash)
    assert answer["warnings"] == notes
    assert err == "".join(f"privacy: warning: {note}\n" for note in notes)


POOR = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
from privacy.cli import main
codes = [main(each.split()) for each in sys.argv[1:]]
sys.exit(max(codes))
"""


@pytest.mark.case("P4")
def test_next_to_no_noise_takes_next_to_no_memory():
    """A thousandth of noise is answered in 3 GiB of address space: exactly at rate 1, and from above where it is sampled."""
    tiny = "epsilon --noise-multiplier 1e-3 --delta 1e-5 --json"
    asked = [
        tiny,
        f"{tiny} --sample-rate 0.01",
        f"{tiny} --sample-rate 0.01 --steps 1000",
        f"{tiny} --relation replace-one",
        f"{tiny} --sample-rate 0.5 --client-rate 0.5 --local-steps 10 --steps 10",
        "noise --epsilon 504278 --delta 1e-5 --json",
    ]
    result = subprocess.run(
        [sys.executable, "-c", POOR, *asked],
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    exact, sampled, longer, replaced, block, noise = map(json.loads, result.stdout.splitlines())
    assert exact["epsilon"] == pytest.approx(504263.89292065408, rel=1e-9)
    assert 5e5 < sampled["epsilon"] <= exact["epsilon"]
    assert 5e8 < longer["epsilon"] <= 5.002e8
    assert replaced["epsilon"] == pytest.approx(2008528.78265263786, rel=1e-9)
    assert math.isfinite(block["epsilon"])
    assert noise["noise_multiplier"] == pytest.approx(1e-3, rel=1e-3)
