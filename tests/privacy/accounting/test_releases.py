import json
import math
from pathlib import Path

import numpy as np
import pytest

from privacy.accounting import epsilon, gaussian_epsilon, releases
from privacy.accounting.gaussian import RDP_ORDERS, rdp_epsilon
from privacy.accounting.releases import Release, best_order, counted, divergences, order_room, releases_epsilon
from privacy.accounting.subsampled import rdp_replace_one
from privacy.errors import AccountingError

REFERENCE = json.loads((Path(__file__).parents[2] / "vectors" / "dp_reference.json").read_text(encoding="utf-8"))
ROWS = [row for row in REFERENCE["epsilon_table"] if row["q"] < 1 and row["T"] <= 100_000]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["label"])
def test_one_kind_is_the_accountants_answer(row):
    """Equal releases come to what several other programs say: Rényi to nine digits, the PLD within the tight interval."""
    bound = releases_epsilon({Release(1 / row["sigma"], row["q"]): row["T"]}, row["delta"])
    expected = row["suggested_test"]
    assert bound.routes["rdp"] == pytest.approx(expected["rdp_must_equal"], rel=expected["rdp_rel_tol"])
    low, high = expected["pld_upper_bound_must_be_in"]
    assert low <= bound.upper <= min(high, 1.01 * row["true_epsilon_interval"][1])
    assert bound.lower <= row["true_epsilon_interval"][1]
    same = epsilon(noise_multiplier=row["sigma"], sample_rate=row["q"], steps=row["T"], delta=row["delta"])
    assert bound.routes["pld"] == pytest.approx(same.routes["pld"], rel=1e-12)
    assert bound.routes["closed_form"] == pytest.approx(same.routes["unsampled"], rel=1e-9)


def test_several_kinds_agree_with_another_program():
    """Two rates and a full batch: within 1 % of dp-accounting's own composition, and above its optimistic one."""
    from dp_accounting.pld import privacy_loss_distribution as library

    kinds = {Release(0.8, 0.05): 60, Release(0.5, 0.3): 20, Release(0.4, 1.0): 1}
    told = {}
    for pessimistic in (True, False):
        parts = [
            library.from_gaussian_mechanism(
                1 / kind.mu,
                sampling_prob=kind.rate,
                pessimistic_estimate=pessimistic,
                value_discretization_interval=1e-4,
            ).self_compose(count)
            for kind, count in kinds.items()
        ]
        told[pessimistic] = parts[0].compose(parts[1]).compose(parts[2]).get_epsilon_for_delta(1e-5)
    bound = releases_epsilon(kinds, 1e-5)
    assert told[False] <= bound.routes["pld"] <= told[True] * 1.01
    assert bound.lower <= told[True]
    assert bound.lower >= told[False] * 0.99
    assert bound.upper == bound.routes["pld"] < bound.routes["rdp"] < bound.routes["closed_form"]


def test_full_batches_alone_are_gaussians():
    """At rate 1 nothing is gained and nothing lost: the closed form of all mu**2, and Rényi of it."""
    bound = releases_epsilon({Release(0.3, 1.0): 4, Release(0.1, 1.0): 9}, 1e-5, sampler_delta=1e-20)
    exact = gaussian_epsilon(4 * 0.09 + 9 * 0.01, 1e-5, sampler_delta=1e-20)
    for route in ("closed_form", "rdp"):
        assert bound.routes[route] == pytest.approx(exact.routes[route], rel=1e-9)
    assert bound.routes["pld"] == pytest.approx(exact.upper, abs=1e-3)


@pytest.mark.parametrize("replaced", [False, True])
def test_divergences_grow_with_mu_and_rate_and_stay_below_the_full_release(replaced):
    """A bound at a larger mu and rate covers what is smaller in either, at every order; a full batch covers everything."""
    costs = [divergences(Release(mu, rate), replaced=replaced) for mu in (0.2, 1.0, 3.0) for rate in (0.01, 0.3, 1.0)]
    grid = np.array(costs).reshape(3, 3, len(RDP_ORDERS))
    slack = 3e-12  # of an integral
    assert (np.diff(grid, axis=0) >= -slack).all()
    assert (np.diff(grid, axis=1) >= -slack).all()
    full = np.array(RDP_ORDERS) * (9.0 * (4 if replaced else 1) / 2)
    assert np.array_equal(grid[2, 2], full)
    assert (grid[0, 0] > 0).all()


def test_a_replaced_record_costs_more_than_one_that_is_added():
    """The divergence of the replaced pair, where it can be integrated, and that of the full release where it cannot."""
    release = Release(0.7, 0.2)
    assert (divergences(release, replaced=True) > divergences(release)).all()
    assert divergences(release, replaced=True)[5] == pytest.approx(
        rdp_replace_one(RDP_ORDERS[5], 1 / 0.7, 0.2), rel=1e-12
    )
    loud = Release(200.0, 0.9)
    assert math.isinf(rdp_replace_one(512, 1 / 200.0, 0.9))
    assert divergences(loud, replaced=True)[-1] == 512 * 400.0**2 / 2


def test_kept_divergences_cannot_be_changed():
    """They are computed once for all ledgers, so whoever has them may only read."""
    with pytest.raises(ValueError, match="read-only"):
        divergences(Release(0.5, 0.1))[0] = 0.0


@pytest.mark.parametrize("release", [Release(1.0, 0.01), Release(0.2, 0.5), Release(0.05, 1.0)])
def test_the_best_order_lets_most_releases_through(release):
    """What the order has room for stays within the budget by Rényi, no other order has room for more, one more passes it."""
    order = best_order(release, 2.0, 1e-5)
    rooms = {each: order_room(each, 2.0, 1e-5) for each in RDP_ORDERS}
    curve = dict(zip(RDP_ORDERS, divergences(release), strict=True))
    count = {each: max(0.0, room) / curve[each] for each, room in rooms.items()}
    assert count[order] == max(count.values())
    fitting = math.floor(count[order])
    assert rdp_epsilon(fitting * divergences(release), 1e-5) <= 2.0
    assert rdp_epsilon((fitting + 2) * divergences(release), 1e-5) > 2.0
    assert counted(release, order) == pytest.approx(2 * curve[order] / order, rel=1e-15)


def test_no_order_is_best_where_none_has_room():
    """So small an epsilon at so small a delta is out of reach for Rényi at the orders that are accounted."""
    assert best_order(Release(1.0, 0.01), 1e-3, 1e-12) is None
    assert best_order(Release(1.0, 0.01), 1.0, 1e-5) is not None


def test_what_counts_is_mu_squared_for_gaussians():
    """A filter at any order counts a full batch as the exact filter does."""
    assert all(counted(Release(0.3, 1.0), order) == pytest.approx(0.09, rel=1e-12) for order in RDP_ORDERS)


def test_too_many_kinds_are_left_to_the_other_routes():
    """Beyond eight kinds nothing is composed; the bound is then Rényi's, and larger."""
    few = {Release(0.5 + at * 1e-6, 0.1): 2 for at in range(8)}
    many = few | {Release(0.6, 0.1): 1}
    assert "pld" in releases_epsilon(few, 1e-5).routes
    bound = releases_epsilon(many, 1e-5)
    assert (bound.upper, bound.lower) == (bound.routes["rdp"], 0.0)
    assert bound.routes.keys() == {"closed_form", "rdp"}


def test_the_sampler_is_paid_out_of_delta_on_every_route():
    """With a tenth of delta for the sampler each route says more, and none says anything where it takes all."""
    kinds = {Release(1.0, 0.1): 20}
    plain, paying = releases_epsilon(kinds, 1e-5), releases_epsilon(kinds, 1e-5, sampler_delta=1e-8)
    assert all(paying.routes[route] > plain.routes[route] for route in plain.routes)
    assert math.isinf(releases_epsilon(kinds, 1e-5, sampler_delta=1e-5).upper)


def test_routes_that_contradict_raise(monkeypatch):
    """A lower bound above any upper one means that one of them is wrong: no answer."""
    monkeypatch.setattr(releases, "_pld", lambda *_: (3.0, 2.9))
    with pytest.raises(AccountingError, match="by route closed_form"):
        releases_epsilon({Release(0.2, 0.1): 3}, 1e-5)
