"""The error budget of docs/privacy.md, "The sampler's distance from D(sigma)", line by line, against 70-digit arithmetic.

A table's law is exact: integers over 2**128. The ideal law is computed here by another route than the sampler's, one
exponential for each magnitude. Distances are total variation.
"""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from mpmath import mp, mpf

from privacy.accounting.gaussian import SAMPLER_DISTANCE
from privacy.sampling import TAIL_SIGMAS, DiscreteGaussian

CLAIMED = mpf(2) ** -100
PROVED = mpf(2) ** -110
EDGE = math.nextafter(1024.0, 2000)  # the first sigma with two levels
JUMP = 2.25 * 21.5**2  # K goes from 21 to 22: the least sigma1 of all


@pytest.fixture(autouse=True)
def digits():
    """Seventy digits: far below 2**-128, and 2**-100 of it."""
    with mp.workdps(70):
        yield


def entries(table):
    """The 128-bit cumulative entries of a table as Python integers."""
    return [(int(high) << 64) | int(low) for high, low in zip(table.high, table.low, strict=True)]


def masses(cumulative, bits=128):
    """The folded law of cumulative entries in units of 2**-bits: mass of each magnitude."""
    return [after - before for before, after in itertools.pairwise([0, *cumulative, 1 << bits])]


def real(value):
    """A rational as a multiprecision float."""
    return mpf(value.numerator) / value.denominator


def variances(sigma):
    """Exact variance of each level, from the documented split alone."""
    variance = Fraction(sigma) ** 2
    if sigma <= 1024:
        return [(1, variance)]
    scale = round(math.sqrt(sigma / 2.25))
    lower = (Fraction(9, 4) * scale) ** 2
    return [(scale, (variance - lower) / scale**2), (1, lower)]


def outside(tail, variance):
    """Mass of D(sqrt(variance)) beyond ±tail: the first terms by name, the rest by a geometric series above them."""
    last = tail + 1 + math.isqrt(int(variance))
    first = mp.fsum(mp.exp(-mpf(k * k) / (2 * variance)) for k in range(tail + 1, last))
    rest = mp.exp(-mpf(last * last) / (2 * variance)) / (1 - mp.exp(-mpf(last) / variance))
    return 2 * (first + rest) / mp.sqrt(2 * mp.pi * variance)


def table_distance(mass, variance, bits=128):
    """Distance of a folded table's law from the folded D(sqrt(variance)), tail included.

    Poisson summation gives the normaliser: the correction 2 exp(-2 pi**2 variance) is below 1e-500.
    """
    unit = mpf(2) ** bits / mp.sqrt(2 * mp.pi * variance)
    ideal = [mp.exp(-mpf(k * k) / (2 * variance)) * (unit if k == 0 else 2 * unit) for k in range(len(mass))]
    inside = mp.fsum(abs(have - want) for have, want in zip(mass, ideal, strict=True)) / mpf(2) ** bits
    return (inside + outside(len(mass) - 1, variance)) / 2


def smoothing_distance(ratio, variance1):
    """Distance of K X1 + X0 from D(sigma) at sigma0 = ratio K: half the relative spread of the lattice sum."""
    square = 1 / (1 / mpf(ratio) ** 2 + 1 / variance1)
    decay = mp.exp(-2 * mp.pi**2 * square)
    # Jacobi's theta falls from y = 0 to y = 1/2, so its spread is the difference between those two.
    high = 1 + 2 * mp.fsum(decay ** (m * m) for m in range(1, 6))
    low = 1 + 2 * mp.fsum((-1) ** m * decay ** (m * m) for m in range(1, 6))
    return (high / low - 1) / 2


def budget(sigma):
    """The lines of the error budget, measured: tables, clamp, lattice sum."""
    levels = DiscreteGaussian(sigma)._levels
    split = variances(sigma)
    assert [scale for scale, _ in levels] == [scale for scale, _ in split]
    tables = [
        table_distance(masses(entries(table)), real(variance))
        for (_, table), (_, variance) in zip(levels, split, strict=True)
    ]
    for distance, (_, table) in zip(tables, levels, strict=True):
        assert 0 < distance < len(table.high) * mpf(2) ** -129 + mpf(2) ** -124
    if len(split) == 1:
        return sum(tables)
    clamp = outside(math.floor(TAIL_SIGMAS * Fraction(sigma)), mpf(sigma) ** 2) if sigma < 1e5 else mpf(2) ** -124
    lattice = smoothing_distance("2.25", real(split[0][1]))
    assert lattice < mpf(2) ** -133
    assert clamp <= mpf(2) ** -124
    return sum(tables) + clamp + lattice


@pytest.mark.parametrize(
    "sigma",
    [
        8.0,
        math.nextafter(8.0, 9),
        math.nextafter(105 / 13, 9),
        10.4,
        20.0,
        33.3,
        1000.0,
        1024.0,
        EDGE,
        JUMP,
        1500.7,
        1e5,
    ],
)
def test_a_sample_is_within_2_to_the_minus_110_of_the_law(sigma):
    """Tables, clamp and lattice sum together, each below its line of the budget, stay below 2**-110."""
    assert budget(sigma) < PROVED < CLAIMED


@pytest.mark.parametrize("sigma", [8.0, 20.0])
def test_entries_are_rounded_to_nearest(sigma):
    """Each entry is the distribution function on the table's own support to half a unit of 2**-128, and not to a quarter."""
    ((_, table),) = DiscreteGaussian(sigma)._levels
    weights = [
        mp.exp(-mpf(k * k) / (2 * mpf(sigma) ** 2)) * (1 if k == 0 else 2) for k in range(math.floor(13 * sigma) + 1)
    ]
    total = mp.fsum(weights) / mpf(2) ** 128
    off = [abs(entry - mp.fsum(weights[: k + 1]) / total) for k, entry in enumerate(entries(table))]
    assert mpf("0.25") < max(off) < mpf("0.5") + mpf(10) ** -20


@pytest.mark.sweep
@pytest.mark.parametrize("sigma", [1.5e7, 1e8, math.nextafter(1e8, 0), *np.exp(np.linspace(2.08, 18.42, 30)).tolist()])
def test_a_sample_is_within_2_to_the_minus_110_of_the_law_at_every_scale(sigma):
    """The same from 8 to 1e8, the largest tables included."""
    assert budget(sigma) < PROVED


def test_the_accountant_pays_for_what_is_claimed():
    """What accounting takes out of delta for a coordinate is the distance that is claimed here."""
    assert SAMPLER_DISTANCE == CLAIMED


def test_the_distance_sees_the_last_digit_of_sigma():
    """The table of the neighbouring float is farther than 2**-100 (P11): sigma is used to its last digit."""
    ((_, table),) = DiscreteGaussian(math.nextafter(10.4, 11))._levels
    assert table_distance(masses(entries(table)), mpf(10.4) ** 2) > mpf(2) ** -60


def test_the_distance_sees_one_halved_word_a_short_tail_and_a_moved_entry():
    """Entries of 64 bits, a tail of 11 sigma, and one entry that is off by 2**-99: each is farther than 2**-100."""
    ((_, table),) = DiscreteGaussian(20.0)._levels
    cumulative, variance = entries(table), mpf(400)
    assert table_distance(masses(cumulative), variance) < PROVED
    assert table_distance(masses([entry >> 64 for entry in cumulative], bits=64), variance, bits=64) > CLAIMED
    short = cumulative[: 11 * 20]
    assert table_distance(masses(short), variance) > CLAIMED
    cumulative[7] += 1 << 29
    assert table_distance(masses(cumulative), variance) > CLAIMED


@pytest.mark.parametrize(
    ("ratio", "sigma1", "holds"),
    [("2.2", 18, True), ("2.25", 47, True), ("1.5", 18, False), ("1.8", 47, False), ("2.2", 1, False)],
)
def test_the_conditions_on_the_levels_are_what_makes_them_exact(ratio, sigma1, holds):
    """K X1 + X0 follows D(sigma) to 2**-133 at sigma0 = 2.2 K and sigma1 = 18, and not to 2**-100 at less."""
    scale = 10
    sigma0 = mpf(ratio) * scale
    variance = scale**2 * mpf(sigma1) ** 2 + sigma0**2
    ratios = []
    for x in range(scale):
        terms = [
            mp.exp(-mpf(j * j) / (2 * mpf(sigma1) ** 2) - (x - scale * j) ** 2 / (2 * sigma0**2))
            for j in range(-20 * sigma1, 20 * sigma1 + 1)
        ]
        ratios.append(mp.fsum(terms) / mp.exp(-mpf(x * x) / (2 * variance)))
    spread = (max(ratios) / min(ratios) - 1) / 2
    assert spread <= smoothing_distance(ratio, mpf(sigma1) ** 2) * mpf("1.0001")
    assert (spread < mpf(2) ** -133) is holds
    assert (spread < CLAIMED) is holds


@pytest.mark.parametrize("sigma", [EDGE, JUMP, math.nextafter(JUMP, 2000), 2000.0, 12345.6, 1e6, 1.5e7, 1e8])
def test_every_two_level_split_meets_the_conditions(sigma):
    """sigma0 >= 2.2 K, sigma1 > 45, and the variances add up exactly."""
    (scale, variance1), (_, variance0) = variances(sigma)
    assert DiscreteGaussian(sigma)._levels[0][0] == scale
    assert variance0 >= (Fraction(11, 5) * scale) ** 2
    assert variance1 > 45**2
    assert scale**2 * variance1 + variance0 == Fraction(sigma) ** 2


def whole_law_distance(sigma):
    """Distance of the exact convolution of two tables, every x up to 13 sigma, from D(sigma); the clamp included."""
    (scale, first), (one, second) = DiscreteGaussian(sigma)._levels
    assert one == 1
    # Twice the mass of x = ±magnitude, to stay in integers; padded so that no index leaves the list.
    mass1, mass0 = ([2 * mass[0], *mass[1:]] for mass in (masses(entries(first)), masses(entries(second))))
    reach = len(mass0) // scale + 1
    mass1 += [0] * (13 * int(sigma) // scale + 2 * reach + 2)
    mass0 += [0] * scale * (reach + 2)
    unit, normaliser = mpf(2) ** -258, mp.sqrt(2 * mp.pi) * mpf(sigma)
    distances, covered = [], 0
    tail = math.floor(13 * sigma)
    for x in range(tail + 1):
        near = x // scale
        total = sum(mass1[abs(j)] * mass0[abs(x - scale * j)] for j in range(near - reach, near + reach + 1))
        weight = 1 if x == 0 else 2
        covered += weight * total
        if x == tail:  # the clamp puts all that lies beyond here
            total += ((1 << 258) - covered) // 2
        distances.append(weight * abs(total * unit - mp.exp(-mpf(x * x) / (2 * mpf(sigma) ** 2)) / normaliser))
    return (mp.fsum(distances) + outside(tail, mpf(sigma) ** 2)) / 2


@pytest.mark.parametrize("sigma", [EDGE, JUMP, 1500.7])
def test_the_whole_law_of_two_levels_is_within_2_to_the_minus_110(sigma):
    """No sum of bounds: the exact law of K X1 + X0, clamped, is compared with D(sigma) value by value."""
    assert whole_law_distance(sigma) < PROVED


@pytest.mark.sweep
@pytest.mark.parametrize("sigma", [1024.5, 3333.3, 5000.5, 40_000.0])
def test_the_whole_law_of_two_levels_at_larger_scales(sigma):
    """The same with half a million values."""
    assert whole_law_distance(sigma) < PROVED


@pytest.mark.parametrize(
    "sigma", [1e6, pytest.param(1.5e7, marks=pytest.mark.sweep), pytest.param(1e8, marks=pytest.mark.sweep)]
)
def test_single_values_of_the_largest_laws(sigma):
    """At chosen x from 0 to 12 sigma, P(x) of the exact convolution agrees with D(sigma) to the rounding of the tables."""
    (scale, first), (_, second) = DiscreteGaussian(sigma)._levels
    mass1, mass0 = masses(entries(first)), masses(entries(second))
    reach = len(mass0) // scale + 1
    at = [round(multiple * sigma) for multiple in (0, 1e-5, 0.5, 1, 3, 6, 12)]
    for x in [*at, 1, scale - 1, scale, scale + 1]:
        near = x // scale
        total = mpf(0)
        for j in range(near - reach, near + reach + 1):
            one, other = abs(j), abs(x - scale * j)
            if other < len(mass0):
                total += mpf(mass1[one] * (2 if one == 0 else 1) * mass0[other] * (2 if other == 0 else 1))
        measured = total * mpf(2) ** -258
        expected = mp.exp(-mpf(x * x) / (2 * mpf(sigma) ** 2)) / (mp.sqrt(2 * mp.pi) * mpf(sigma))
        # Each of the 2 reach + 1 products is off by a unit of one table times a mass of the other.
        assert abs(measured - expected) < (2 * reach + 1) * mpf(2) ** -127 / scale + expected * mpf(2) ** -110


def test_the_largest_tables_are_exact_at_sampled_places():
    """At sigma = 1e8 each level's entries agree with the Jacobi theta value to one unit of 2**-128."""
    for (_, table), (_, variance) in zip(DiscreteGaussian(1e8)._levels, variances(1e8), strict=True):
        value, mass = real(variance), masses(entries(table))
        for k in (0, 1, 2, 1000, 15000, 60000, 120000):
            expected = mp.exp(-mpf(k * k) / (2 * value)) * (1 if k == 0 else 2) / mp.sqrt(2 * mp.pi * value)
            assert abs(mass[k] - expected * mpf(2) ** 128) < 1 + expected * mpf(2) ** 8
