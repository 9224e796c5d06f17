import pytest

from privacy.accounting.gaussian import closed_form, rdp_form
from privacy.ledger.spend import Spend

RECORD = ("record", "add-remove")


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


def test_ledgers_of_one_data_set_add_up():
    """Squares by group, draws and privacy of two ledgers come together, and never to less than their sum."""
    one = Spend().plus(RECORD, 0.3, draws=5)
    other = Spend().plus(RECORD, 0.1, draws=7, private=False).plus(("client", "zero-out"), 1.0)
    both = one.merged(other)
    assert both.squares[RECORD] == pytest.approx(0.1, rel=1e-12)
    assert both.squares[RECORD] >= one.squares[RECORD] + other.squares[RECORD]
    assert (both.draws, both.private, both.group) == (12, False, ("record", "replace-one"))
    assert Spend().merged(one) == one
