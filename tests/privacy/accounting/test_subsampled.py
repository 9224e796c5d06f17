import json
import math
from pathlib import Path

import mpmath
import numpy as np
import pytest

from privacy.accounting import subsampled
from privacy.accounting.guard import Subsampled
from privacy.accounting.subsampled import rdp_route

REFERENCE = json.loads((Path(__file__).parents[2] / "vectors" / "dp_reference.json").read_text())
ROWS = [row for row in REFERENCE["epsilon_table"] if row["q"] < 1]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["label"])
def test_rdp_agrees_with_two_other_programs(row):
    """Integer orders give the value of dp-accounting and of fifty-digit arithmetic to 1e-9."""
    epsilon = rdp_route(Subsampled(row["sigma"], row["q"], row["T"], replace_one=False), row["delta"])
    expected = row["suggested_test"]
    assert epsilon == pytest.approx(expected["rdp_must_equal"], rel=expected["rdp_rel_tol"])
    assert epsilon == pytest.approx(row["mpmath_rdp_int_orders"], rel=1e-12)


def test_rdp_of_a_tiny_sampling_rate_is_positive():
    """Where dp-accounting's divergence rounds to a negative number, and epsilon to 0, nothing cancels here."""
    divergence = subsampled.rdp_add_remove(2, 1.0, 1e-12)
    assert divergence == pytest.approx(1e-24 * (math.e - 1), rel=1e-10)


@pytest.mark.parametrize(("order", "z", "q"), [(2, 1.0, 0.1), (3, 0.7, 0.5), (16, 2.0, 0.01), (64, 5.0, 0.3)])
def test_replace_one_divergence_agrees_with_quadrature(order, z, q):
    """The trapezoidal rule agrees with adaptive quadrature in thirty digits, and errs upwards."""
    with mpmath.workdps(30):

        def density(x, mean):
            return mpmath.npdf(x, mean, z)

        def integrand(x):
            p = (1 - q) * density(x, 0) + q * density(x, 1)
            other = (1 - q) * density(x, 0) + q * density(x, -1)
            return p**order * other ** (1 - order)

        points = np.linspace(-1 - 12 * z, order + 12 * z, 40).tolist()
        exact = float(mpmath.log(mpmath.quad(integrand, points)) / (order - 1))
    divergence = subsampled.rdp_replace_one(order, z, q)
    assert exact <= divergence <= exact * (1 + 1e-9) + 2e-12


def test_replace_one_divergence_is_larger_than_add_remove():
    """A wrong relation would be seen: at q near 1 replace-one costs four times, and never less than add-remove."""
    near_one = subsampled.rdp_replace_one(2, 3.0, 1 - 1e-9) / subsampled.rdp_add_remove(2, 3.0, 1 - 1e-9)
    assert near_one == pytest.approx(4, rel=1e-6)
    for q in (0.01, 0.3, 0.9):
        assert subsampled.rdp_replace_one(4, 1.5, q) > subsampled.rdp_add_remove(4, 1.5, q)


@pytest.mark.parametrize("q", [0.05, 0.5])
def test_half_lines_dominate_other_records_under_replace_one(q):
    """No pair of records in two dimensions is told apart better than +1 and -1 on a line, at any level."""
    side = np.linspace(-9, 9, 361)
    x, y = np.meshgrid(side, side)
    cell = (side[1] - side[0]) ** 2

    def mixture(record):
        at_zero = np.exp(-(x**2 + y**2) / 2)
        return ((1 - q) * at_zero + q * np.exp(-((x - record[0]) ** 2 + (y - record[1]) ** 2) / 2)) / (2 * np.pi)

    def divergence(first, second, level):
        return float(np.maximum(mixture(first) - level * mixture(second), 0).sum() * cell)

    for level in (0.5, 1.0, 1.5, 3.0):
        worst = divergence((1, 0), (-1, 0), level)
        for other in ((0, 1), (0.6, 0.8), (0, 0), (-0.6, 0.8), (-0.5, 0)):
            assert divergence((1, 0), other, level) <= worst + 1e-9
    assert divergence((1, 0), (-1, 0), 1.0) > 1.5 * divergence((1, 0), (0, 0), 1.0)


@pytest.mark.parametrize("probability", [1e-6, 0.2, 0.9])
def test_a_coin_before_a_gaussian_is_the_subsampled_gaussian(probability):
    """The moment of a mixture, from the moments of its parts, agrees with fifty-digit sums and does not cancel."""
    order, z = 9, 1.7
    moments = [mpmath.mpf(k * (k - 1)) / (2 * mpmath.mpf(z) ** 2) for k in range(order + 1)]
    with mpmath.workdps(50):
        p = mpmath.mpf(probability)
        exact = mpmath.log(
            sum(
                mpmath.binomial(order, k) * (1 - p) ** (order - k) * p**k * mpmath.exp(moments[k])
                for k in range(order + 1)
            )
        )
    mixed = subsampled.mixed_log_moment(order, probability, np.array(moments[2:], np.float64))
    assert mixed == pytest.approx(float(exact), rel=1e-11)
    assert mixed == subsampled.rdp_add_remove(order, z, probability) * (order - 1)


def test_moments_that_round_to_one_add_nothing():
    """Divergences below the last digit of float64 give 0, not a warning or NaN."""
    assert subsampled.mixed_log_moment(3, 0.5, np.zeros(2)) == 0
