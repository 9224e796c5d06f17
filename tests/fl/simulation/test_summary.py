import json
import math
from contextlib import ExitStack
from pathlib import Path

import pytest

from fl.experiment import prepare
from fl.files import finite
from fl.rounds import RoundRecord
from fl.simulation import open_ledgers
from fl.simulation.summary import summarize
from secagg.params import PHASES

REPORT = {
    "pooled": {"auc": 0.75, "accuracy": 0.5},
    "auc_site_mean": 0.7,
    "sites": {"east": {"auc": None, "accuracy": 1.0, "positives": 0, "negatives": 3}},
}


@pytest.fixture(scope="module")
def public(toy):
    """Federated averaging without privacy."""
    return prepare(toy(), "run-1")


@pytest.fixture(scope="module")
def private(toy):
    """Record-level privacy."""
    return prepare(toy(private=True), "run-1")


def record(number, **changes):
    """A committed round: 1 s and 10 bytes in each phase on each side."""
    fields = {
        "round": number,
        "attempt": 0,
        "survivors": ["east", "north"],
        "dropped": {},
        "seconds": {side: dict.fromkeys(PHASES, 1.0) for side in ("server", "client")},
        "bytes": {way: dict.fromkeys(PHASES, 10) for way in ("up", "down")},
        "sigma_eff": None,
        "epsilon": None,
        "transcript": "",
        "update_norm": 1.0,
        "loss": 0.5,
        "weight": 20,
    }
    return RoundRecord(**fields | changes)


def test_costs_and_silences_are_those_of_all_rounds(public):
    """Seconds and bytes add up by phase over both sides, and every silence has its round, site and phase."""
    history = [record(0, dropped={"west": "mask"}), record(1), record(2, dropped={"east": "unmask"})]
    summary = summarize(public, history, REPORT, {}, Path("runs/x"))
    assert summary["seconds"] == dict.fromkeys(PHASES, 6.0)
    assert summary["bytes"] == dict.fromkeys(PHASES, 60)
    assert summary["dropouts"] == [
        {"round": 0, "site": "west", "phase": "mask"},
        {"round": 2, "site": "east", "phase": "unmask"},
    ]
    assert (summary["rounds"], summary["run"], summary["mode"]) == (3, "runs/x", "federated")


def test_quality_is_the_reports(public):
    """Pooled metrics stand at the top, each site's below, and the one that runs are compared by says which way is better."""
    summary = summarize(public, [record(0)], REPORT, {}, Path("runs/x"))
    assert (summary["auc"], summary["accuracy"], summary["auc_site_mean"]) == (0.75, 0.5, 0.7)
    assert summary["sites"] == REPORT["sites"]
    assert summary["metric"] == {"name": "auc", "value": 0.75, "higher_is_better": True}


def test_without_privacy_nothing_is_promised(public):
    """No plan: no epsilon, no delta, not private."""
    summary = summarize(public, [record(0)], REPORT, {}, Path("runs/x"))
    assert summary["private"] is False
    assert summary["epsilon"] is summary["epsilon_planned"] is summary["delta"] is None
    assert summary["epsilon_lifetime"] == {}


def test_epsilon_is_the_last_rounds_best_bound(private, tmp_path):
    """The smallest of the proved bounds after the last round; what was planned, and each data set's over all its runs, beside it."""
    history = [
        record(0, epsilon={"closed_form": 0.1}),
        record(1, epsilon={"closed_form": 0.75, "rdp": 0.5, "pld": None}),
    ]
    plan = private.agreement.plan
    with ExitStack() as stack:
        ledgers = open_ledgers(private, tmp_path, stack)
        for name, ledger in ledgers.items():
            common = {"run": "run-1", "round": 0, "attempt": 0, "plan": plan, "private": name != "west"}
            ledger.reserve(data_set=private.train[name].fingerprint, **common)
        summary = summarize(private, history, REPORT, ledgers, tmp_path)
        expected = ledgers["east"].total(plan.delta).epsilon.upper
    assert summary["epsilon"] == 0.5
    assert (summary["delta"], summary["epsilon_planned"]) == (plan.delta, plan.accounted_epsilon().upper)
    assert summary["epsilon_lifetime"] == {"east": expected, "north": expected, "south": expected, "west": None}
    assert summary["private"] is True
    nothing_proved = [record(0, epsilon={"closed_form": None, "rdp": None})]
    assert summarize(private, nothing_proved, REPORT, {}, tmp_path)["epsilon"] is None


def test_a_test_seed_is_stamped(toy):
    """Under a test seed nothing is private, and the result says why."""
    summary = summarize(prepare(toy(private=True), "run-1", {}, 1), [record(0)], REPORT, {}, Path("x"))
    assert (summary["private"], summary["insecure_test_seed"]) == (False, True)


def test_a_metric_that_is_nan_is_null_and_flagged(public):
    """F14: what the result says of it is null and a flag, in JSON of the standard."""
    report = REPORT | {"pooled": {"auc": math.nan, "accuracy": 0.5}}
    text = json.dumps(finite(summarize(public, [record(0)], report, {}, Path("x"))), allow_nan=False)
    assert json.loads(text)["auc"] is None
    assert json.loads(text)["not_finite"] == ["auc", "metric.value"]
