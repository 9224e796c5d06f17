import json
import math
from pathlib import Path

import mpmath
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting.gaussian import closed_form, largest_mu_squared, log_delta, rdp_form, with_sampler

REFERENCE = json.loads((Path(__file__).parents[2] / "vectors" / "dp_reference.json").read_text())
UNSAMPLED = [row for row in REFERENCE["epsilon_table"] if row["q"] == 1]


def exact_log_delta(t: float, mu: float) -> mpmath.mpf:
    """Balle and Wang's formula as printed, in 60 digits."""
    with mpmath.workdps(60):
        t, mu = mpmath.mpf(t), mpmath.mpf(mu)
        return mpmath.log(mpmath.ncdf(-t + mu / 2) - mpmath.exp(t * mu) * mpmath.ncdf(-t - mu / 2))


@given(
    log_mu=st.floats(-12, 8),
    place=st.floats(0, 1),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_log_delta_agrees_with_sixty_digits(log_mu, place):
    """The error stays below 1e-11 from mu = 1e-12 to 1e8 and delta from 1e-300 to almost 1."""
    mu = 10**log_mu
    lowest = max(0.0, mu / 2 - 7)
    t = lowest + place * (mu / 2 + 36 - lowest)
    exact = exact_log_delta(t, mu)
    if -690 < exact < -1e-12:
        assert abs(float(log_delta(t, mu) - exact)) < 1e-11


@pytest.mark.parametrize("row", UNSAMPLED, ids=lambda row: row["label"])
def test_closed_form_brackets_the_exact_value(row):
    """Rounded up it is never below fifty-digit arithmetic, rounded down never above, and both are within 1e-11."""
    mu_squared = row["T"] / row["sigma"] ** 2
    upper, lower = (closed_form(mu_squared, row["delta"], upward=way) for way in (True, False))
    assert lower <= row["exact_gdp"] <= upper
    assert upper - lower < 1e-11 * row["exact_gdp"]


@pytest.mark.parametrize("row", UNSAMPLED, ids=lambda row: row["label"])
def test_rdp_form_agrees_with_the_reference(row):
    """The Rényi route at integer orders is what two other programs gave."""
    assert rdp_form(row["T"] / row["sigma"] ** 2, row["delta"]) == pytest.approx(
        row["suggested_test"]["rdp_must_equal"], rel=row["suggested_test"]["rdp_rel_tol"]
    )


def test_closed_form_holds_at_the_ends():
    """A delta of 1e-20, noise of a thousandth, and nothing released have their exact answers."""
    assert closed_form(1.0, 1e-20) == pytest.approx(9.510936240574381, rel=1e-11)
    assert closed_form(1e6, 1e-5) == pytest.approx(504263.8929, rel=1e-9)
    assert closed_form(0.0, 1e-5) == 0
    assert closed_form(1e-6, 1e-2) == 0  # delta covers all of it


@pytest.mark.parametrize("row", REFERENCE["analytic_gaussian_sigma"]["rows"], ids=lambda row: f"eps{row['epsilon']}")
def test_inverse_agrees_with_fifty_digits(row):
    """The noise for a budget is the exact one, rounded to more noise and not to less."""
    sigma = 1 / math.sqrt(largest_mu_squared(row["epsilon"], row["delta"]))
    assert row["exact_mpmath"] <= sigma <= row["exact_mpmath"] * (1 + 1e-11)


@given(epsilon=st.floats(1e-6, 1e4), log_delta=st.floats(-690, -0.1))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_inverse_lands_on_the_safe_side(epsilon, log_delta):
    """Whatever the budget, spending all that it allows stays within it, and a little more does not."""
    delta = math.exp(log_delta)
    allowed = largest_mu_squared(epsilon, delta)
    assert closed_form(allowed, delta) <= epsilon
    assert closed_form(allowed * (1 + 1e-4) + 1e-9, delta) > epsilon * (1 - 1e-9)


def test_sampler_is_paid_out_of_delta():
    """The result satisfies its equation, is more than without a sampler, and is inf where the sampler costs delta."""

    def route(delta):
        return closed_form(1.0, delta)

    epsilon = with_sampler(route, 1e-5, 1e-9)
    assert epsilon > route(1e-5)
    assert route(1e-5 - (1 + math.exp(epsilon)) * 1e-9) <= epsilon
    assert epsilon == pytest.approx(route(1e-5 - (1 + math.exp(epsilon)) * 1e-9), rel=1e-10)
    assert with_sampler(route, 1e-5, 1e-6) == math.inf
    assert with_sampler(lambda delta: closed_form(1e6, delta), 1e-5, 2.0**-100) == math.inf


def test_sampler_that_is_negligible_changes_nothing():
    """Forty rounds of four sites and a thousand coordinates move epsilon by less than 1e-11."""
    draws = 40 * 4 * 1000 * 2.0**-100
    assert with_sampler(lambda delta: closed_form(1.0, delta), 1e-5, draws) == pytest.approx(
        closed_form(1.0, 1e-5), rel=1e-11
    )
