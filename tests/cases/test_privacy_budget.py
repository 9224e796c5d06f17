"""The rows about budgets: a floor that sites keep, spends that always count, crashes that forget nothing."""

import itertools
import json
import math
import signal
import subprocess
import sys

import numpy as np
import pytest

from privacy import Budget, BudgetExceededError, Ledger, PlanError, gaussian_epsilon, verify
from privacy.budget import add_upward
from secagg.engines.inprocess import InProcessEngine
from secagg.errors import BelowThresholdError
from secagg.params import Block
from secagg.protocols.pairwise import ClientSession
from secagg.session import run_round
from secagg.testing import parties, silent_from


@pytest.mark.case("P17")
@pytest.mark.parametrize("silent", [[3], [2, 3]])
def test_shares_are_withheld_below_the_floor(plan_of, params_of, reserve, tmp_path, silent):
    """A protocol with more slack than the plan: at the plan's floor the sum opens, below it every site withholds its share."""
    plan = plan_of(sites=6, dropouts=1, dimension=4)
    params = params_of(
        6, [Block("update", length=4, bits=plan.bits, bound=plan.bound)], dropouts=2, adversary="curious"
    )
    inputs, (identities, server, roster), held = (
        {client: {"update": np.arange(4)} for client in params.cohort},
        parties(params.cohort, "classical"),
        {},
    )

    def handler(client):
        ledger = Ledger(tmp_path / f"{client}.jsonl")

        def release():
            held[client] = reserve(ledger, 0, plan)

        def accept(survivors):
            plan.sigma_effective(len(survivors))  # raises below the floor

        session = ClientSession(
            params, identities[client], roster, inputs[client],
            on_release=release, on_survivors=accept,
        )  # fmt: skip
        refused = []

        def handle(phase, frame):
            try:
                return session.start() if phase == "advertise" else session.receive(frame)
            except PlanError as error:
                refused.append(str(error))
                return None

        return silent_from("mask" if client in silent else None, handle), ledger, refused

    sites = {client: handler(client) for client in params.cohort}
    engine = InProcessEngine({client: handle for client, (handle, _, _) in sites.items()})
    if len(silent) == 1:
        outcome = run_round(engine, params, server, roster)
        assert outcome.survivors == (0, 1, 2, 4, 5)
        entry = sites[0][1].commit(held[0], survivors=outcome.survivors, transcript="")
        assert entry.sigma_eff == plan.sigma_effective(5) < plan.sigma_effective(6)
    else:
        with pytest.raises(BelowThresholdError):
            run_round(engine, params, server, roster)
        for client in (0, 1, 4, 5):
            assert sites[client][2] == ["4 survivors: the plan is for 5 to 6"]
            with pytest.raises(PlanError, match="4 survivors"):
                sites[client][1].commit(held[client], survivors=(0, 1, 4, 5), transcript="")
            assert sites[client][1].total().open == 1
    for _, ledger, _ in sites.values():
        ledger.close()


@pytest.mark.case("P19")
@pytest.mark.parametrize("tiny", [5e-324, 1e-300, 1e-100, 1e-30, 1e-18])
def test_nothing_is_too_small_to_count(tiny):
    """Once a budget is used up no release passes; before that each counts, although rounding alone would swallow it."""
    budget = Budget(1.0, 1e-5)
    spent = budget.mu_squared
    for _ in range(3):
        with pytest.raises(BudgetExceededError, match="the budget is 1"):
            budget.check(spent, tiny)
    for _ in range(4):
        spent = math.nextafter(spent, 0)
    for _ in range(4):
        budget.check(spent, tiny)
        spent = add_upward(spent, tiny)
    with pytest.raises(BudgetExceededError):
        budget.check(spent, tiny)
    assert gaussian_epsilon(spent, 1e-5).upper <= 1.0


@pytest.mark.case("P19")
def test_a_data_set_that_is_used_up(plan_of, reserve, tmp_path):
    """After the lifetime budget, plans with ever more noise are refused by ledger and reason, and nothing is written."""
    file, plan = tmp_path / "ledger.jsonl", plan_of(rounds=1)
    lifetime = Budget(plan.accounted_epsilon().upper, plan.delta)
    with Ledger(file) as ledger:
        held = reserve(ledger, 0, plan, data_set="ab", budget=lifetime)
        ledger.commit(held, survivors=(0, 1, 2), transcript="ab")
        before = file.read_bytes()
        for noise_multiplier in (3.0, 100.0, 1e3, 1e4):
            quiet = plan_of(epsilon=None, rounds=1, noise_multiplier=noise_multiplier)
            for number in range(3):
                with pytest.raises(
                    BudgetExceededError, match=r"ledger\.jsonl: data set ab over all its runs: .*epsilon"
                ):
                    reserve(ledger, number, quiet, run="quiet", data_set="ab", budget=lifetime)
        with pytest.raises(BudgetExceededError, match=r"ledger\.jsonl: run 'run' under its plan: .*epsilon"):
            reserve(ledger, 1, plan, data_set="ab")
        assert file.read_bytes() == before
        assert ledger.total().epsilon.upper <= lifetime.epsilon * (1 + 1e-12)


@pytest.mark.case("P19")
def test_many_tiny_releases_add_up(plan_of, reserve, tmp_path):
    """Releases far below the last digit of what is spent end when the budget does, and not one later."""
    quiet = plan_of(epsilon=None, rounds=1, noise_multiplier=1e3, dropouts=0)
    lifetime = Budget(gaussian_epsilon(20.5 * quiet.mu(4) ** 2, quiet.delta).upper, quiet.delta)
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        for number in range(20):
            reserve(ledger, 0, quiet, run=f"run {number}", data_set="ab", budget=lifetime)
        with pytest.raises(BudgetExceededError, match="over all its runs"):
            reserve(ledger, 0, quiet, run="run 20", data_set="ab", budget=lifetime)
        assert ledger.total().open == 20
        assert ledger.total().epsilon.upper <= lifetime.epsilon


CRASH = """
import os, signal, sys
from pathlib import Path
from privacy import Ledger, Plan
plan = Plan.from_json(Path(sys.argv[2]).read_bytes())
ledger = Ledger(sys.argv[1])
for number in range(2):
    held = ledger.reserve(run="run", round=number, attempt=0, plan=plan, private=True, data_set="ab")
    if number == 0:
        ledger.commit(held, survivors=(0, 1, 2, 3), transcript="ab")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.case("P22")
def test_a_crash_between_reserve_and_commit(plan_of, reserve, tmp_path, typed):
    """A process is killed between the two: the release counts at the plan's floor, in every total, and against the budget."""
    file, plan = tmp_path / "ledger.jsonl", plan_of(rounds=2)
    (tmp_path / "plan.json").write_text(plan.to_json())
    result = subprocess.run([sys.executable, "-c", CRASH, file, tmp_path / "plan.json"], check=False)
    assert result.returncode == -signal.SIGKILL
    expected = gaussian_epsilon(plan.mu(4) ** 2 + plan.mu(3) ** 2, plan.delta).upper
    code, out, _ = typed(["ledger", "total", file, "--json"])
    assert (code, json.loads(out)["open"]) == (0, 1)
    assert json.loads(out)["epsilon"] == pytest.approx(expected, rel=1e-9)
    with Ledger(file) as ledger:
        assert (ledger.total().open, ledger.total().epsilon.upper) == (1, pytest.approx(expected, rel=1e-9))
        with pytest.raises(BudgetExceededError, match="under its plan"):
            reserve(ledger, 1, plan, data_set="ab", attempt=1)


@pytest.mark.case("P22")
def test_every_attempt_that_was_not_committed_counts(plan_of, reserve, tmp_path):
    """A retry is a release of its own: crash after crash, the spend grows, and the plan's rounds are used up by attempts alone."""
    file, plan, seen = tmp_path / "ledger.jsonl", plan_of(rounds=4), [0.0]
    for attempt in range(4):
        with Ledger(file) as ledger:  # what follows is never committed
            assert ledger.total().open == attempt
            reserve(ledger, 0, plan, attempt=attempt)
            seen.append(ledger.total().epsilon.upper)
    assert all(first < second for first, second in itertools.pairwise(seen))
    assert seen[-1] == pytest.approx(plan.accounted_epsilon().upper, rel=1e-9)
    with Ledger(file) as ledger, pytest.raises(BudgetExceededError):
        reserve(ledger, 0, plan, attempt=4)


@pytest.mark.case("P22")
@pytest.mark.parametrize("kept", [1, 2, 9, 100, -1])
def test_a_reservation_that_was_half_written(plan_of, reserve, tmp_path, kept):
    """The disk stopped within the line of a reservation: what is left of it counts, one byte included."""
    file, plan = tmp_path / "ledger.jsonl", plan_of()
    with Ledger(file) as ledger:
        ledger.commit(reserve(ledger, 0, plan), survivors=(0, 1, 2, 3), transcript="ab")
        before = file.read_bytes()
        reserve(ledger, 1, plan)
        whole = ledger.total().epsilon.upper
    line = file.read_bytes()[len(before) :]
    file.write_bytes(before + line[:kept])
    with Ledger(file) as ledger:
        assert ledger.total().epsilon.upper == pytest.approx(whole, rel=1e-12)
    assert verify(file).total.epsilon.upper == pytest.approx(whole, rel=1e-12)
