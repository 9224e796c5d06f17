from pathlib import Path

import pytest

from privacy.accounting.gaussian import closed_form, rdp_form
from privacy.ledger.chain import ChainError, decode, encode
from privacy.ledger.replay import Books, Spend, _Cohorts

RECORD = ("record", "add-remove")


def test_cohorts_that_differ_by_one_site_are_told():
    """Against every earlier set, by a site that left or came, once a set; never for equal sets or for two sites at once."""
    cohorts = _Cohorts()
    assert cohorts.add((0, 1, 2, 2**64 - 1), 0) == []
    assert cohorts.add((0, 1, 2, 2**64 - 1), 1) == []
    assert cohorts.add((0, 1), 2) == []
    assert cohorts.add((0, 1, 2), 3) == [(2, 2), (2**64 - 1, 0)]
    assert cohorts.add((2, 1, 0), 4) == []
    assert cohorts.add((0, 1, 2, 3, 4), 5) == []


def test_spend_sums_squares():
    """Only the squares of mu count, and draws and privacy are carried along."""
    spend = Spend().plus(RECORD, 3.0, draws=5).plus(RECORD, 4.0, draws=7, private=False)
    assert spend.mu_squared() == pytest.approx(25, rel=1e-15)
    assert spend.mu_squared() >= 25
    assert (spend.draws, spend.private, spend.group) == (12, False, RECORD)


def test_replacing_a_reservation_never_falls_below_what_was_before():
    """A realised release takes the place of its reservation; what other releases spent stays, to the last digit."""
    before = Spend().plus(RECORD, 0.1).plus(RECORD, 1e-9)
    for mu in (0.3, 1e-20):
        after = before.plus(RECORD, 0.5).plus(RECORD, mu, instead_of=0.5)
        assert after.mu_squared() > before.mu_squared()
        assert after.mu_squared() == pytest.approx(before.mu_squared() + mu * mu, rel=1e-12)


def test_unlike_groups_are_brought_to_replace_one_of_a_record():
    """Add-remove and zero-out count fourfold, replace-one once; one group alone is left as it is."""
    spend = Spend().plus(RECORD, 1.0)
    assert spend.mu_squared(("record", "replace-one")) == pytest.approx(4)
    mixed = spend.plus(("client", "zero-out"), 1.0).plus(("client", "replace-one"), 1.0)
    assert mixed.group == ("record", "replace-one")
    assert mixed.mu_squared() == pytest.approx(9)


def test_routes_are_the_accountants():
    """Both routes are closed form and Rényi of the sum, and the checked bound agrees."""
    spend = Spend().plus(RECORD, 1.0, draws=1000)
    routes = spend.routes(1e-5)
    assert routes["closed_form"] == pytest.approx(closed_form(1.0, 1e-5), rel=1e-9)
    assert routes["rdp"] == pytest.approx(rdp_form(1.0, 1e-5), rel=1e-9)
    assert spend.bound(1e-5).upper == pytest.approx(routes["closed_form"], rel=1e-12)


def test_recovered_entry_must_count_the_floor():
    """A recovery cannot be written by hand to count another amount."""
    values = {
        "seq": 0, "prev": "0" * 64, "kind": "recovered", "plan": None, "run": "", "mu": 0.5, "private": True,
        "epsilon": {}, "epsilon_total": {}, "draws": 0, "torn": "ew==", "versions": {},
    }  # fmt: skip
    with pytest.raises(ChainError, match="x, line 1: a recovered entry"):
        Books(Path("x")).book(decode(encode(values)[:-1]))
    with pytest.raises(ChainError, match="x, line 1: torn is not base64"):
        Books(Path("x")).book(decode(encode(values | {"mu": 0.0, "torn": "e"})[:-1]))
    Books(Path("x")).book(decode(encode(values | {"mu": 0.0})[:-1]))
