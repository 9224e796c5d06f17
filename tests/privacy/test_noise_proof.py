"""The proof of docs/privacy.md, "A discrete Gaussian accounted as a Gaussian", lemma by lemma in numbers.

Exact values come from `tests/vectors/dp_reference.json`: ``exact_one_dimensional`` is a double-precision convolution of mass
functions, ``discrete_gaussian_reduction`` is 30-digit arithmetic; both were made by programs other than this package.
"""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from mpmath import mp, mpf
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from privacy import PlanError, gaussian_epsilon
from privacy.noise import SMOOTHING_VARIANCE, sigma_effective

REFERENCE = json.loads((Path(__file__).parents[1] / "vectors" / "dp_reference.json").read_text(encoding="utf-8"))

# (summands, sigma of each, shift, delta, exact epsilon)
ROWS = [
    (row["n"], row["local_sigma"], row["shift"], row["delta"], row["exact_sum_of_discrete_gaussians"])
    for row in REFERENCE["exact_one_dimensional"]["rows"]
] + [
    (1, float(row["sigma"]), row["shift"], row["delta"], row["exact_discrete"])
    for row in REFERENCE["discrete_gaussian_reduction"]["rows"]
]


def eta(square):
    """Lemma 1's bound on the spread of a lattice sum at rho**2 = square."""
    return mpf("4.5") * mp.exp(-2 * mp.pi**2 * square)


def gaussian_delta(epsilon, shift, sigma):
    """Closed-form delta(epsilon) of the continuous Gaussian mechanism. [BW18], Theorem 8."""
    mu = shift / sigma
    return float(ndtr(mu / 2 - epsilon / mu) - math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu)))


def mass(sigma):
    """Mass function of the discrete Gaussian on ±13 sigma."""
    k = np.arange(-math.ceil(13 * sigma), math.ceil(13 * sigma) + 1)
    weight = np.exp(-0.5 * (k / sigma) ** 2)
    return weight / weight.sum()


def sum_mass(sigma, count):
    """Mass function of the sum of ``count`` independent discrete Gaussians."""
    single = mass(sigma)
    total = single
    for _ in range(count - 1):
        total = np.convolve(total, single)
    return total


def exact_delta(epsilon, shift, law):
    """Hockey-stick divergence of a law from itself moved by an integer; the law is symmetric, so once is enough."""
    pad = np.zeros(shift)
    return float(np.maximum(np.append(pad, law) - math.exp(epsilon) * np.append(law, pad), 0.0).sum())


def exact_epsilon(delta, shift, law):
    """The epsilon at which the exact profile passes delta."""
    return brentq(lambda epsilon: exact_delta(epsilon, shift, law) - delta, 0.0, 60.0, xtol=1e-13)


def test_every_row_of_the_reference_is_here():
    """Ten sums and four single laws, each with its own numbers."""
    assert (len(REFERENCE["exact_one_dimensional"]["rows"]), len(REFERENCE["discrete_gaussian_reduction"]["rows"])) == (
        10,
        4,
    )
    assert len(set(ROWS)) == 14


@pytest.mark.parametrize(("count", "sigma", "shift", "delta", "epsilon"), ROWS)
def test_an_exact_profile_lies_under_what_is_accounted(count, sigma, shift, delta, epsilon):
    """The exact epsilon is met by our own convolution, and is at most what the accountant says of variance - 9.

    Below sigma = 8 nothing is accounted; there the same variance still gives a bound, or has nothing left.
    """
    assert exact_epsilon(delta, shift, sum_mass(sigma, count)) == pytest.approx(epsilon, rel=2e-8)
    left = count * sigma**2 - SMOOTHING_VARIANCE
    if sigma < 8:
        with pytest.raises(PlanError, match="finer grid"):
            sigma_effective(sigma, survivors=count + 2, colluders=2)
    else:
        assert sigma_effective(sigma, survivors=count + 2, colluders=2) == math.sqrt(left)
    assert left <= 0 or epsilon < gaussian_epsilon(shift**2 / left, delta).upper


def test_the_naive_claim_under_reports():
    """A continuous Gaussian of the same variance is not a bound: these exact epsilons lie above it."""
    under = [
        epsilon > gaussian_epsilon(shift**2 / (count * sigma**2), delta).upper + 1e-8
        for count, sigma, shift, delta, epsilon in ROWS
    ]
    assert sum(under) == 8
    assert under[8]
    assert under[13]


@pytest.mark.parametrize("rho", ["1", "1.5", "2.2", "3", "5"])
def test_lemma_1_lattice_sums_are_flat(rho):
    """Sums over the integers stay within the bound for every offset, and fill nine tenths of it at some."""
    with mp.workdps(260):
        rho = mpf(rho)
        reach = range(-40 * int(mp.ceil(rho)), 40 * int(mp.ceil(rho)) + 1)
        flat = rho * mp.sqrt(2 * mp.pi)
        sums = [
            mp.fsum(mp.exp(-((k - mpf(place) / 8) ** 2) / (2 * rho**2)) for k in reach) / flat for place in range(8)
        ]
        small = mp.exp(-2 * mp.pi**2 * rho**2)
        assert all(abs(total - 1) <= mpf("2.1") * small for total in sums)
        spread = mp.log(max(sums) / min(sums))
        assert mpf("0.88") * eta(rho**2) < spread < eta(rho**2)


@pytest.mark.parametrize(("rho", "variance"), [("1", 55), ("1.5", 55), ("3", 55), ("3", 991)])
def test_lemma_2_a_rounded_gaussian_is_a_discrete_gaussian(rho, variance):
    """The law of z, integrated over y, is that of x + D(s) up to e^eta, for s**2 = s'**2 + rho**2 and for no other s.

    The trapezoidal rule at step 1/4 errs by eta**4, the weight of the fourth harmonic of 1/theta.
    """
    with mp.workdps(170):
        square, step, x = mpf(rho) ** 2, mpf(1) / 4, 3
        total = variance + square
        reach = 29 * int(mp.ceil(mp.sqrt(total)))
        lattice = range(-30 * int(mp.ceil(mp.sqrt(square))), 30 * int(mp.ceil(mp.sqrt(square))) + 2)
        theta = [mp.fsum(mp.exp(-((k - place * step) ** 2) / (2 * square)) for k in lattice) for place in range(4)]

        def log_ratio(z, assumed):
            law = mp.fsum(
                mp.exp(-((place * step - x) ** 2) / (2 * variance) - (z - place * step) ** 2 / (2 * square))
                / theta[place % 4]
                for place in range(4 * (x - reach), 4 * (x + reach) + 1)
            )
            law *= step / mp.sqrt(2 * mp.pi * variance)
            return mp.log(law * mp.sqrt(2 * mp.pi * assumed)) + (z - x) ** 2 / (2 * assumed)

        worst = max(abs(log_ratio(z, total)) for z in (x, x + 1, x - 7, x + 20))
        assert 0 < worst < eta(square)
        assert abs(log_ratio(x + 20, mpf(variance))) > 1e-3


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("8", "8"),
        ("8", "20"),
        ("10", "10"),
        ("8", "11.3137084989847603904"),  # a third share on top of two
        pytest.param("13.7", "20", marks=pytest.mark.sweep),
        pytest.param("20", "20", marks=pytest.mark.sweep),
    ],
)
def test_lemma_3_sums_of_discrete_gaussians_are_discrete_gaussians(first, second):
    """D(s1) + D(s2) is D(sqrt(s1**2 + s2**2)) to within 4.5 exp(-2 pi**2 s3**2) at every value, and no nearer than a tenth of it."""
    one, other = mpf(first) ** 2, mpf(second) ** 2
    third = one * other / (one + other)
    digits = int(2 * mp.pi**2 * third / mp.log(10)) + 30
    with mp.workdps(digits):
        one, other = mpf(first) ** 2, mpf(second) ** 2
        third = one * other / (one + other)
        reach = int(mp.sqrt(2 * digits * mp.log(10) * third)) + 2
        logs = []
        for x in range(12):  # beyond, only the place x s1^2 / s^2 modulo 1 repeats
            middle = int(mp.nint(x * one / (one + other)))
            total = mp.fsum(
                mp.exp(-mpf(j * j) / (2 * one) - mpf((x - j) ** 2) / (2 * other))
                for j in range(middle - reach, middle + reach + 1)
            )
            logs.append(mp.log(total) + mpf(x * x) / (2 * (one + other)))
        spread = max(logs) - min(logs)
        assert eta(third) / 10 < spread < eta(third)
        assert eta(third) < mpf(10) ** -270


@pytest.mark.parametrize("sigma", [8.0, 8.5, 10.0, 13.7, 20.0])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_reduction_holds_along_the_whole_profile(sigma, count):
    """At every epsilon, delta of the sum of discrete Gaussians is at most that of a Gaussian with variance - 9."""
    law = sum_mass(sigma, count)
    effective = sigma_effective(sigma, survivors=count + 1, colluders=1)
    for shift, epsilon in itertools.product((1, 3, round(sigma), round(4 * sigma)), np.linspace(0.0, 12.0, 60)):
        exact = exact_delta(float(epsilon), shift, law)
        # 1e-14 is the rounding of the sums above, whose terms are at most 1
        assert exact <= gaussian_delta(float(epsilon), shift, effective) + 1e-14


def test_the_profile_check_sees_too_small_a_correction():
    """The comparison above fails for the same variance without the 9, so it can tell them apart."""
    law = sum_mass(8.0, 1)
    excess = [
        exact_delta(float(epsilon), 8, law) - gaussian_delta(float(epsilon), 8, 8.0)
        for epsilon in np.linspace(0.0, 12.0, 60)
    ]
    assert max(excess) > 1e-6


def test_the_reduction_holds_for_vectors():
    """Two coordinates moved by (5, 11), the joint law of two sites: delta is below that of the L2 distance sqrt(146)."""
    law = sum_mass(8.0, 2)
    effective = sigma_effective(8.0, survivors=2, colluders=0)
    moved = [np.append(np.zeros(shift), law) for shift in (5, 11)]
    still = [np.append(law, np.zeros(shift)) for shift in (5, 11)]
    first, second = np.multiply.outer(*moved), np.multiply.outer(*still)
    for epsilon in np.linspace(0.0, 8.0, 20):
        exact = float(np.maximum(first - math.exp(epsilon) * second, 0.0).sum())
        assert exact <= gaussian_delta(float(epsilon), math.sqrt(146), effective) + 1e-14
        if epsilon < 4:  # a norm that forgets a coordinate is not enough
            assert exact > gaussian_delta(float(epsilon), 11, effective)


@pytest.mark.parametrize("coordinates", [1, 10, 100, 1000])
def test_the_reduction_holds_for_many_coordinates_and_rounds(coordinates):
    """All of d * T coordinates moved by one step: their sum is sufficient, so its exact law gives the exact profile."""
    law, single, power = np.ones(1), mass(8.0), coordinates
    while power:  # powers by squaring; what is cut is below 13 standard deviations of the whole
        if power % 2:
            law = np.convolve(law, single)
        single = np.convolve(single, single)
        power //= 2
        keep = math.ceil(13 * 8 * math.sqrt(coordinates)) + 200
        law, single = (part[max(0, len(part) // 2 - keep) : len(part) // 2 + keep + 1] for part in (law, single))
    total = np.arange(len(law)) - len(law) // 2
    effective = sigma_effective(8.0, survivors=1, colluders=0)
    for epsilon in np.linspace(0.0, 10.0, 30):
        # P is moved by one in each coordinate: at a sum s of what P adds, log P/Q = (2 s + d T) / (2 sigma**2)
        gain = -np.expm1(np.minimum(epsilon - (2 * total + coordinates) / 128, 0.0))
        exact = float(law @ gain)
        assert exact <= gaussian_delta(float(epsilon), math.sqrt(coordinates), effective) + 1e-13
        if coordinates == 1000 and epsilon > 1:  # a quarter more noise than there is: not a bound
            assert exact > gaussian_delta(float(epsilon), math.sqrt(coordinates), 10.0)


def test_nine_is_enough_at_any_size():
    """At d = 1e9 coordinates and 1e6 vectors the correction is below 1e-60 in epsilon; with rho = 0.9 it would not vanish."""
    d, vectors = 10**9, 10**6
    with mp.workdps(30):
        assert eta(SMOOTHING_VARIANCE) < mpf(10) ** -76
        assert 2 * d * vectors * (eta(SMOOTHING_VARIANCE) + 1000 * eta(32)) < mpf(10) ** -60
        assert 2 * d * vectors * eta(mpf("0.81")) > 1


def rounded(law, bits):
    """A law whose mass function is rounded to multiples of 2**-bits, the rest put at the middle."""
    rough = np.round(law * 2.0**bits) / 2.0**bits
    rough[len(law) // 2] += 1 - rough.sum()
    return rough


def test_a_sampler_that_is_off_costs_delta_as_accounted():
    """A rough sampler at distance tau stays within delta + (1 + e^epsilon) tau, and not within delta alone."""
    law = sum_mass(8.0, 1)
    rough = rounded(law, 12)
    tau = float(np.abs(rough - law).sum()) / 2
    assert 1e-4 < tau < 1e-2
    over = 0
    for epsilon, shift in itertools.product(np.linspace(0.0, 6.0, 40), (1, 8, 20)):
        ideal, real = exact_delta(float(epsilon), shift, law), exact_delta(float(epsilon), shift, rough)
        assert real <= ideal + (1 + math.exp(epsilon)) * tau
        over += real > ideal + 1e-6
    assert over > 10
