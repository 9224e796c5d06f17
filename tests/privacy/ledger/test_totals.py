import json
from pathlib import Path

import pytest

from privacy.accounting.gaussian import closed_form
from privacy.errors import LedgerError
from privacy.ledger import Ledger, total_of
from privacy.ledger.chain import ChainError
from privacy.ledger.totals import ledgers_in
from privacy.plan import Plan

FIELDS = json.loads((Path(__file__).parents[2] / "heart_plan.json").read_text(encoding="utf-8"))
PLAN = Plan.solve(**FIELDS)


def book(path, *, data_set="ab", run="run", rounds=1, plan=PLAN, commit=True, survivors=(0, 1, 2, 3)):
    """Append rounds to a ledger."""
    with Ledger(path) as ledger:
        for number in range(rounds):
            held = ledger.reserve(run=run, round=number, attempt=0, plan=plan, private=True, data_set=data_set)
            if commit:
                ledger.commit(held, survivors=survivors, transcript="ab")
    return path


def test_ledgers_of_one_data_set_add_up(tmp_path):
    """Two machines' ledgers of the same data: releases add up, reservations too; another data set stays apart."""
    first = book(tmp_path / "a.jsonl", rounds=2)
    second = book(tmp_path / "b.jsonl", run="other", commit=False)
    third = book(tmp_path / "c.jsonl", data_set="cd")
    totals = total_of([first, second, third])
    assert [(each.data_set, len(each.reports)) for each in totals] == [("ab", 2), ("cd", 1)]
    squares = 2 * PLAN.mu(4) ** 2 + PLAN.mu(3) ** 2
    assert totals[0].total.epsilon.upper == pytest.approx(closed_form(squares, 1e-4), rel=1e-9)
    assert totals[0].total.open == 1
    assert {run.run: run.rounds for run in totals[0].total.runs} == {"run": 2, "other": 0}
    assert totals[1].total.epsilon.upper == pytest.approx(closed_form(PLAN.mu(4) ** 2, 1e-4), rel=1e-9)


def test_one_run_in_two_ledgers_adds_up(tmp_path):
    """A run whose releases stand in two ledgers has the rounds of both."""
    second = book(book(tmp_path / "b.jsonl", run="before"), survivors=(0, 1, 2))
    totals = total_of([book(tmp_path / "a.jsonl"), second])
    run = next(each for each in totals[0].total.runs if each.run == "run")
    assert run.rounds == 2
    assert run.epsilon.upper == pytest.approx(closed_form(PLAN.mu(4) ** 2 + PLAN.mu(3) ** 2, 1e-4), rel=1e-9)


def test_delta_is_the_smallest_of_all(tmp_path):
    """Sums are at one delta: the smallest of all the plans, or the one asked."""
    first = book(tmp_path / "a.jsonl")
    second = book(tmp_path / "b.jsonl", data_set="cd", plan=Plan.solve(**FIELDS | {"delta": 1e-6}))
    assert [each.total.delta for each in total_of([first, second])] == [1e-6, 1e-6]
    assert [each.total.delta for each in total_of([first, second], delta=1e-5)] == [1e-5, 1e-5]


def test_a_copy_counts_once(tmp_path):
    """A backup of an earlier time, and a path named twice, add nothing; a copy that went on by itself is a fork."""
    path = book(tmp_path / "a.jsonl")
    backup = tmp_path / "backup.jsonl"
    backup.write_bytes(path.read_bytes())
    book(path, run="second")
    once = total_of([path])[0].total
    (both,) = total_of([backup, path, path])
    assert both.total == once
    assert both.copies == (backup,)
    assert len(both.reports) == 2
    book(backup, run="elsewhere")
    with pytest.raises(ChainError, match=r"backup\.jsonl, line 4: a fork|a\.jsonl, line 4: a fork"):
        total_of([path, backup])


def test_servers_ledgers_are_not_added(tmp_path):
    """A run's own ledger does not say whose data it is of, so two of them stay apart."""
    totals = total_of([book(tmp_path / "a.jsonl", data_set=None), book(tmp_path / "b.jsonl", data_set=None, run="x")])
    assert [each.data_set for each in totals] == [None, None]


def test_folders_stand_for_their_ledgers(tmp_path):
    """A folder of ledgers is all of them; a run folder has other JSON lines, and is its ledger alone."""
    run, sites, empty = (tmp_path / name for name in ("run", "sites", "empty"))
    for folder in (run, sites, empty):
        folder.mkdir()
    book(run / "ledger.jsonl", data_set=None)
    (run / "metrics.jsonl").write_text("{}\n")
    book(sites / "b.jsonl")
    book(sites / "a.jsonl", data_set="cd")
    assert ledgers_in([run, sites]) == [run / "ledger.jsonl", sites / "a.jsonl", sites / "b.jsonl"]
    assert len(total_of([run, sites])) == 3
    with pytest.raises(LedgerError, match="no ledger"):
        ledgers_in([empty])
    with pytest.raises(LedgerError, match=r"none\.jsonl"):
        total_of([tmp_path / "none.jsonl"])
