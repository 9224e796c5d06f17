import dataclasses
from pathlib import Path

import pytest

from privacy.ledger import recompute
from privacy.ledger.chain import ChainError
from privacy.ledger.recompute import Claim, check_claims
from privacy.ledger.spend import Spend

GROUP = ("record", "add-remove")
PATH = Path("x")


def claim(mu, delta=1e-5, draws=1000, seq=3):
    """A claim that is right."""
    spend = Spend().plus(GROUP, mu, draws=draws)
    return Claim(seq, "epsilon", spend.routes(delta), spend, delta)


def wrong(right, route, factor):
    """A claim that is off by a factor."""
    return dataclasses.replace(right, told=right.told | {route: right.told[route] * factor})


@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-10, 1e-30])
@pytest.mark.parametrize("mu", [1e-12, 1e-4, 2e-3, 0.05, 1.0, 5.0, 30.0, 1e3])
def test_right_claims_pass_and_wrong_ones_do_not(mu, delta):
    """Over all magnitudes: what the accountant says passes, and a hair off is found, by either route and to either side."""
    right = claim(mu, delta)
    check_claims([right], PATH)
    for route in ("closed_form", "rdp"):
        if not 1e-3 < right.told[route] < 1e300:
            continue
        for factor in (1 - 1e-8, 1 + 1e-8):
            with pytest.raises(ChainError, match=f"x, line 4: epsilon by {route} is"):
                check_claims([wrong(right, route, factor)], PATH)


def test_usual_claims_are_settled_without_solving(monkeypatch):
    """For the noise and deltas that plans have, nothing is solved for; what is wrong or odd is."""
    usual = [claim(mu, delta) for mu in (2e-3, 0.01, 0.3, 1.0, 4.0) for delta in (1e-4, 1e-6, 1e-9)]
    solved = []
    monkeypatch.setattr(recompute, "_solve", lambda each, _path: solved.append(each))
    check_claims(usual * 400, PATH)
    assert solved == []
    odd = [wrong(usual[0], "rdp", 1 + 1e-8), wrong(usual[4], "closed_form", 1 - 1e-8), claim(1e-5)]
    check_claims([*usual, *odd], PATH)
    assert solved == odd


@pytest.mark.parametrize("told", [{}, {"rdp": 1.0}, {"closed_form": 0.0, "rdp": 0.0}, {"closed_form": float("inf")}])
def test_claims_without_a_value_are_wrong(told):
    """A route that is missing, nothing, or endless does not pass for a bound."""
    with pytest.raises(ChainError, match="line 4"):
        check_claims([dataclasses.replace(claim(0.5), told=told)], PATH)


def test_nothing_spent_is_zero():
    """Before any release epsilon is 0, and only 0."""
    nothing = Claim(0, "epsilon", {"closed_form": 0.0, "rdp": 0.0}, Spend(), 1e-5)
    check_claims([nothing], PATH)
    with pytest.raises(ChainError):
        check_claims([dataclasses.replace(nothing, told={"closed_form": 1e-6, "rdp": 0.0})], PATH)


def test_no_bound_is_told_where_there_is_none():
    """Where the noise sampler alone may cost delta, infinity is right and any number is wrong."""
    endless = claim(1.0, delta=1e-5, draws=10**26)
    assert endless.told == {"closed_form": float("inf"), "rdp": float("inf")}
    check_claims([endless], PATH)
    with pytest.raises(ChainError):
        check_claims([dataclasses.replace(endless, told={"closed_form": 5.0, "rdp": 6.0})], PATH)


def sampled(count=30, delta=1e-5):
    """A claim that is right, of sampled releases and a full one."""
    spend = Spend().plus(GROUP, 0.3, draws=1000)
    for _ in range(count):
        spend = spend.plus(GROUP, 0.8, rate=0.05, draws=1000)
    return Claim(3, "epsilon", spend.routes(delta), spend, delta)


def test_claims_of_sampled_releases_are_settled_without_solving(monkeypatch):
    """Right ones at once; a hair off by either route is found, and so is what full batches would come to."""
    right = sampled()
    full = Spend().plus(GROUP, right.spend.mu_squared() ** 0.5, draws=right.spend.draws).routes(1e-5)
    for route in ("closed_form", "rdp"):
        for factor in (1 - 1e-8, 1 + 1e-8):
            with pytest.raises(ChainError, match=f"epsilon by {route} is"):
                check_claims([right, claim(0.5), wrong(right, route, factor)], PATH)
    with pytest.raises(ChainError, match="epsilon by rdp is"):
        check_claims([dataclasses.replace(right, told=full)], PATH)
    monkeypatch.setattr(recompute, "_solve", lambda *_: pytest.fail("solved for"))
    check_claims([right, claim(0.5), sampled(5)] * 1000, PATH)
