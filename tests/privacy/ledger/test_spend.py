import numpy as np
import pytest

from privacy.accounting.gaussian import RDP_ORDERS, closed_form, rdp_epsilon, rdp_form
from privacy.accounting.releases import Release, divergences, releases_epsilon
from privacy.errors import AccountingError
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


def test_sampled_releases_add_their_divergences():
    """Beside full batches: Rényi order by order, the closed form as if every record were in every release."""
    full, sampled = Release(0.3, 1.0), Release(0.8, 0.05)
    spend = Spend().plus(RECORD, 0.3)
    for _ in range(50):
        spend = spend.plus(RECORD, 0.8, rate=0.05)
    spend = spend.plus(RECORD, 0.3)
    exact = 2 * divergences(full) + 50 * divergences(sampled)
    assert spend.renyi() == pytest.approx(exact, rel=1e-12)
    assert (spend.renyi() >= exact * (1 - 1e-15)).all()
    routes = spend.routes(1e-5)
    assert routes["rdp"] == pytest.approx(rdp_epsilon(exact, 1e-5), rel=1e-9)
    assert routes["closed_form"] == pytest.approx(closed_form(2 * 0.09 + 50 * 0.64, 1e-5), rel=1e-9)
    assert (spend.releases, spend.worst) == (52, Release(0.8, 1.0))
    assert Spend().plus(RECORD, 0.3).renyi() is None


def test_the_order_of_full_and_sampled_releases_does_not_matter():
    """Whichever came first, the sums are the same to the last digits."""
    one = Spend().plus(RECORD, 0.8, rate=0.05).plus(RECORD, 0.3)
    other = Spend().plus(RECORD, 0.3).plus(RECORD, 0.8, rate=0.05)
    assert one.renyi() == pytest.approx(other.renyi(), rel=1e-14)


def test_replacing_a_sampled_reservation_never_falls_below_what_was_before():
    """The realised release takes the place of its reservation at every order, rounded up."""
    before = Spend().plus(RECORD, 0.5, rate=0.2).plus(RECORD, 0.1)
    after = before.plus(RECORD, 0.9, rate=0.2).plus(RECORD, 0.7, rate=0.2, instead_of=0.9)
    realised = divergences(Release(0.7, 0.2))
    assert (after.renyi() >= before.renyi() + realised * (1 - 1e-12)).all()
    assert after.renyi() == pytest.approx(before.renyi() + realised, rel=1e-9)
    assert after.releases == before.releases + 1


def test_a_sampled_release_under_replace_one_costs_its_pair():
    """Beside another relation it counts as a record that is replaced, by the laws of both, not as if it were in for certain."""
    mixed = Spend().plus(RECORD, 0.8, rate=0.05).plus(RECORD, 0.3).plus(("record", "replace-one"), 0.4)
    replaced = divergences(Release(0.8, 0.05), replaced=True)
    exact = replaced + divergences(Release(2 * 0.3, 1.0)) + divergences(Release(0.4, 1.0))
    assert mixed.renyi() == pytest.approx(exact, rel=1e-12)
    assert mixed.mu_squared() == pytest.approx(4 * (0.64 + 0.09) + 0.16, rel=1e-12)
    assert (mixed.renyi() < np.array(RDP_ORDERS) * mixed.mu_squared() / 2).all()


def test_the_bound_of_a_spend_has_the_loss_distribution_of_its_kinds():
    """Composed where the kinds are told and one relation holds; never without, and the check between routes stands."""
    spend = Spend().plus(RECORD, 0.3)
    for _ in range(20):
        spend = spend.plus(RECORD, 0.8, rate=0.05)
    kinds = {Release(0.8, 0.05): 20}
    bound = spend.bound(1e-5, kinds)
    expected = releases_epsilon(kinds | {Release(0.3, 1.0): 1}, 1e-5)
    assert bound.routes == pytest.approx(dict(expected.routes), rel=1e-9)
    assert bound.upper == bound.routes["pld"] > bound.lower > 0
    assert spend.bound(1e-5).routes.keys() == {"closed_form", "rdp"}
    assert "pld" not in spend.plus(("client", "zero-out"), 0.1).bound(1e-5, kinds).routes
    with pytest.raises(AccountingError, match="above the upper bound"):
        spend.bound(1e-5, {Release(0.8, 0.9): 200})


def test_sampled_ledgers_of_one_data_set_add_up():
    """Curves, counts and the worst release of two ledgers come together, also where only one has samples."""
    one = Spend().plus(RECORD, 0.8, rate=0.05).plus(RECORD, 0.3)
    other = Spend().plus(RECORD, 0.4)
    for both in (one.merged(other), other.merged(one)):
        assert both.renyi() == pytest.approx(one.plus(RECORD, 0.4).renyi(), rel=1e-12)
        assert (both.releases, both.worst) == (3, Release(0.8, 1.0))
    twice = one.merged(one)
    assert twice.renyi() == pytest.approx(2 * one.renyi(), rel=1e-12)
    assert one == Spend().plus(RECORD, 0.8, rate=0.05).plus(RECORD, 0.3)
    assert one != Spend().plus(RECORD, 0.8, rate=0.06).plus(RECORD, 0.3)
