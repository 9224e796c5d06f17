import json
import math
from pathlib import Path

import mpmath
import numpy as np
import pytest

from privacy.accounting import subsampled
from privacy.accounting.gaussian import closed_form
from privacy.accounting.subsampled import Subsampled, pld_grid, pld_route, rdp_route, rounding_delta
from privacy.errors import AccountingError

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
    divergence = subsampled._rdp_add_remove(2, 1.0, 1e-12)
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
    divergence = subsampled._rdp_replace_one(order, z, q)
    assert exact <= divergence <= exact * (1 + 1e-9) + 2e-12


def test_replace_one_divergence_is_larger_than_add_remove():
    """A wrong relation would be seen: at q near 1 replace-one costs four times, and never less than add-remove."""
    near_one = subsampled._rdp_replace_one(2, 3.0, 1 - 1e-9) / subsampled._rdp_add_remove(2, 3.0, 1 - 1e-9)
    assert near_one == pytest.approx(4, rel=1e-6)
    for q in (0.01, 0.3, 0.9):
        assert subsampled._rdp_replace_one(4, 1.5, q) > subsampled._rdp_add_remove(4, 1.5, q)


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


def test_rounding_in_the_transform_does_not_reach_the_upper_bound(monkeypatch):
    """Composed thousands of times, the library's own bound falls below the exact value somewhere; with slack never."""
    cases = [
        (Subsampled(sigma, 1.0, steps, replace_one=False), delta)
        for sigma, steps in [(100.0, 10_000), (50.0, 10_000), (64.0, 4096), (20.0, 2000)]
        for delta in (1e-11, 2e-12, 1e-12)
        if delta > rounding_delta(steps)
    ]

    def falls_below():
        return [
            pld_route(mechanism, delta, 1e-4) < closed_form(mechanism.steps / mechanism.z**2, delta, upward=False)
            for mechanism, delta in cases
        ]

    assert not any(falls_below())
    monkeypatch.setattr(subsampled, "rounding_delta", lambda _steps: 0.0)
    assert any(falls_below())


def test_grid_is_finer_where_many_steps_would_blur_it():
    """A million steps get a grid of about 2e-5, a hundred the default."""
    assert pld_grid(Subsampled(1.0, 1e-4, 1_000_000, replace_one=False), 1e-9) < 3e-5
    assert pld_grid(Subsampled(1.0, 0.1, 100, replace_one=False), 1e-5) == 1e-4


@pytest.mark.parametrize("replace_one", [False, True])
def test_grid_keeps_the_size_bounded(replace_one):
    """However small the noise, one step has at most 200 000 cells, or there is no PLD at all."""
    for z in (1e-3, 0.02, 0.05, 0.1, 0.5, 5.0):
        mechanism = Subsampled(z, 0.1, 10, replace_one)
        grid = pld_grid(mechanism, 1e-5)
        if grid is None:
            assert z < 0.1
            continue
        shift = 2 if replace_one else 1
        assert 2 * math.log1p(0.1 * math.expm1(shift * (10.2 / z + 1 / z**2))) / grid <= 200_001


def test_no_grid_for_a_delta_below_the_rounding():
    """A delta that the transform's rounding could cover is not asked of the PLD."""
    mechanism = Subsampled(1.0, 0.1, 100_000, replace_one=False)
    assert pld_grid(mechanism, 3 * rounding_delta(100_000)) is not None
    assert pld_grid(mechanism, 1.5 * rounding_delta(100_000)) is None


def test_nan_from_the_library_is_an_error(monkeypatch):
    """A privacy loss distribution that answers NaN is not passed on."""
    from dp_accounting.pld import privacy_loss_distribution

    class Broken:
        def get_epsilon_for_delta(self, _delta):
            return math.nan

    monkeypatch.setattr(privacy_loss_distribution, "from_gaussian_mechanism", lambda *_, **__: Broken())
    with pytest.raises(AccountingError, match="NaN"):
        pld_route(Subsampled(1.0, 0.5, 1, replace_one=False), 1e-5, 1e-4)
