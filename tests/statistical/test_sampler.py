"""The law of the noise sampler, seen through its samples.

Each check gives a p-value. The sampler must pass at ALPHA, and a sampler with one planted fault must fail at ALPHA: a
check that lets its own wrong sampler through proves nothing. Keys are fixed, so the outcome is too.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from privacy import sampling
from privacy.noise import NoiseSource
from privacy.sampling import DiscreteGaussian

pytestmark = pytest.mark.statistical

ALPHA = 1e-6
COUNT = 1_000_000
SIGMAS = [8.0, 10.4, 1000.0, 5000.5, 1.5e7, 1e8]


def key(number):
    """A fixed 32-byte key."""
    return number.to_bytes(32, "big")


def draw(sigma, number=0):
    """A million samples under a fixed key."""
    return DiscreteGaussian(sigma).sample(key(number), COUNT)


def normal_p(z):
    """Two-sided p-value of a standard normal."""
    return float(2 * stats.norm.sf(abs(z)))


def scale_p(x, sigma):
    """Mean square against sigma**2; the kurtosis of the law is 3."""
    ratio = np.mean((x / sigma) ** 2)
    return normal_p((ratio - 1) / math.sqrt(2 / len(x)))


def mean_p(x, sigma):
    """Mean against zero."""
    return normal_p(np.mean(x / sigma) * math.sqrt(len(x)))


def lag_p(x, sigma, lag):
    """Correlation between positions ``lag`` apart."""
    unit = x / sigma
    return normal_p(unit[lag:] @ unit[:-lag] / math.sqrt(len(x) - lag))


def residue_p(x, modulus):
    """Residues are uniform to far below what a test can see when the modulus is small against sigma."""
    return float(stats.chisquare(np.bincount(x % modulus, minlength=modulus)).pvalue)


def tail_p(x, sigma, sigmas):
    """Number of samples beyond a multiple of sigma against the law's probability."""
    edge = math.floor(sigmas * sigma)
    probability = float(2 * stats.norm.sf((edge + 0.5) / sigma))  # the lattice sum is within 1 % of this
    return float(stats.binomtest(int(np.count_nonzero(np.abs(x) > edge)), len(x), probability).pvalue)


def zero_p(x, sigma):
    """Number of zeros against the mass function."""
    zeros = int(np.count_nonzero(x == 0))
    return float(stats.binomtest(zeros, len(x), 1 / (sigma * math.sqrt(2 * math.pi))).pvalue)


def fit_p(x, sigma):
    """Chi-square over every value (or about 400 bins) against the mass function."""
    width = max(1, math.floor(sigma / 40))
    edge = math.floor(4 * sigma / width) * width
    values = np.arange(-edge, edge + width * (edge > 0))
    weight = np.exp(-0.5 * (values / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
    inside = x[(x >= -edge) & (x < -edge + len(values) // width * width)]
    bins = len(values) // width
    observed = np.bincount((inside + edge) // width, minlength=bins)
    expected = weight[: bins * width].reshape(bins, width).sum(axis=1)
    observed = np.append(observed, len(x) - len(inside))
    return float(stats.chisquare(observed, np.append(expected, 1 - expected.sum()) * len(x)).pvalue)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_scale(sigma):
    """The variance is sigma**2; a scale 3 % off either way, or a sigma rounded to an integer (P11), is rejected."""
    assert scale_p(draw(sigma), sigma) > ALPHA
    assert scale_p(draw(sigma) * 1.03, sigma) < ALPHA
    assert scale_p(draw(sigma) * 0.97, sigma) < ALPHA
    assert scale_p(draw(10.0), 10.4) < ALPHA


@pytest.mark.parametrize("sigma", [8.0, 10.4, 1000.0, 1030.3, 5000.5])
def test_every_value_has_its_probability(sigma):
    """The counts of all values, or bins, fit the mass function on both sides of the level switch; 3 % off, they do not."""
    good = draw(sigma, 1)
    assert fit_p(good, sigma) > ALPHA
    assert fit_p(draw(sigma * 1.03, 1), sigma) < ALPHA


@pytest.mark.parametrize("sigma", [8.0, 10.4, 1000.0])
def test_zero_has_single_weight(sigma):
    """Zero is as likely as the mass function says; a folded table that counts it twice is rejected."""
    good = draw(sigma, 9)
    assert zero_p(good, sigma) > ALPHA
    double = np.where(np.random.default_rng(0).random(COUNT) < 0.4 / sigma, 0, good)
    assert zero_p(double, sigma) < ALPHA


@pytest.mark.parametrize("sigma", SIGMAS)
def test_mean_and_sign(sigma):
    """The law is symmetric; a sampler whose sign bit is one in 52 % of the draws is rejected."""
    good = draw(sigma, 2)
    assert mean_p(good, sigma) > ALPHA
    flipped = np.where(np.random.default_rng(0).random(COUNT) < 0.04, -np.abs(good), good)
    assert mean_p(flipped, sigma) < ALPHA


@pytest.mark.parametrize("sigma", [8.0, 5000.5])
@pytest.mark.parametrize("lag", [1, 2, 3, 8, 128, sampling._CHUNK, COUNT // 2])
def test_positions_are_uncorrelated(sigma, lag):
    """No correlation at short lags, block and chunk boundaries; an echo of 2 % at the lag is rejected."""
    good = draw(sigma, 3)
    assert lag_p(good, sigma, lag) > ALPHA
    echo = good.astype(np.float64)
    echo[lag:] += 0.02 * good[:-lag]
    assert lag_p(echo, sigma, lag) < ALPHA


@pytest.mark.parametrize("sigma", SIGMAS)
def test_parity(sigma):
    """Even and odd are equally likely; a sampler that moves 1 % of the odd values to even ones is rejected."""
    good = draw(sigma, 4)
    assert residue_p(good, 2) > ALPHA
    even = good + (good % 2) * (np.random.default_rng(0).random(COUNT) < 0.01)
    assert residue_p(even, 2) < ALPHA


@pytest.mark.parametrize("sigma", [1500.7, 5000.5, 1e6])
def test_residues_of_the_upper_level(sigma):
    """X mod K, which the lower level alone decides, is uniform; a lower level too narrow for K is rejected."""
    (scale, _), _ = DiscreteGaussian(sigma)._levels
    assert residue_p(draw(sigma, 5), scale) > ALPHA
    upper = np.rint(np.random.default_rng(0).normal(size=COUNT) * sigma / scale).astype(np.int64)
    narrow = upper * scale + np.rint(np.random.default_rng(1).normal(size=COUNT) * 0.4 * scale).astype(np.int64)
    assert residue_p(narrow, scale) < ALPHA


@pytest.mark.parametrize("sigma", SIGMAS)
def test_tails(sigma):
    """The mass beyond 3 and 4 sigma is right; a clamp at 4 sigma and a sum of twelve uniforms are rejected."""
    good = draw(sigma, 6)
    assert tail_p(good, sigma, 3) > ALPHA
    assert tail_p(good, sigma, 4) > ALPHA
    assert tail_p(np.clip(good, -4 * int(sigma), 4 * int(sigma)), sigma, 4) < ALPHA
    rough = np.zeros(COUNT)
    rng = np.random.default_rng(0)
    for _ in range(12):
        rough += rng.random(COUNT) - 0.5
    assert tail_p(np.rint(rough * sigma), sigma, 3) < ALPHA


def flip(x):
    """A sampler whose sign bit is one in 48 % of the draws."""
    return np.where(np.random.default_rng(0).random(COUNT) < 0.04, np.abs(x), x)


@pytest.mark.parametrize("sigma", [1030.3, 5000.5, 1e8])
@pytest.mark.parametrize("level", [0, 1])
def test_each_table_level(sigma, level):
    """Each level alone has its own scale, sign, independence and tail; each fault planted in it alone is rejected.

    A lower table whose sigma is 3 % off can hardly be seen in the sum, of whose variance it is 2.25 / sigma.
    """
    levels = DiscreteGaussian(sigma)._levels
    scale = levels[0][0]
    sigma0 = 2.25 * scale
    own = [math.sqrt(sigma**2 - sigma0**2) / scale, sigma0][level]

    def alone(table):
        out = np.zeros(COUNT, dtype=np.int64)
        sampling._add_level(out, 1, table, key(7), sampling._LANES_PER_LEVEL * level)
        return out

    good = alone(levels[level][1])
    assert scale_p(good, own) > ALPHA
    for fault in (0.97, 1.03):
        assert scale_p(alone(sampling._table(Fraction(own * fault) ** 2)), own) < ALPHA
    assert mean_p(good, own) > ALPHA
    assert mean_p(flip(good), own) < ALPHA
    assert residue_p(good, 2) > ALPHA
    assert residue_p(good - (good % 2) * (np.random.default_rng(0).random(COUNT) < 0.01), 2) < ALPHA
    assert lag_p(good, own, 1) > ALPHA
    assert lag_p(good[1:] + 0.02 * good[:-1], own, 1) < ALPHA
    assert tail_p(good, own, 4) > ALPHA
    assert tail_p(np.clip(good, -4 * int(own), 4 * int(own)), own, 4) < ALPHA


def bit_p(x):
    """Correlation of each word's top bit, seen as a magnitude above the median, with the sign drawn from that bit."""
    above = np.abs(x) > np.median(np.abs(x))
    bit = np.arange(len(x) // 64)
    return float(stats.fisher_exact(stats.contingency.crosstab(above[bit], x[64 * bit + 63] < 0).count).pvalue)


@pytest.mark.parametrize("sigma", [8.0, 1000.0])
def test_signs_and_magnitudes_share_no_keystream(monkeypatch, sigma):
    """Magnitude i says nothing of sign 64 i + 63, whose bit is the top one of word i when both read one lane (P9)."""
    assert bit_p(draw(sigma, 10)) > ALPHA
    monkeypatch.setattr(sampling, "_SIGN", sampling._HIGH)
    assert bit_p(draw(sigma, 10)) < ALPHA


def test_the_levels_are_independent():
    """The two levels do not correlate, in value or in magnitude; levels that share their lanes do."""
    (scale, first), (_, second) = DiscreteGaussian(1e6)._levels

    def level(table, lane):
        out = np.zeros(COUNT, dtype=np.int64)
        sampling._add_level(out, 1, table, key(8), lane)
        return out

    def p(x, y):
        return min(float(stats.pearsonr(x, y).pvalue), float(stats.pearsonr(np.abs(x), np.abs(y)).pvalue))

    upper = level(first, 0)
    assert scale > 1
    assert p(upper, level(second, sampling._LANES_PER_LEVEL)) > ALPHA
    assert p(upper, level(second, 0)) < ALPHA
    assert p(upper, level(second, 1)) > ALPHA  # another lane for the magnitude is enough to part them


@pytest.mark.parametrize(
    "change",
    [{"run": "other"}, {"round": 1}, {"attempt": 1}, {"site": 1}, {"purpose": "counts"}],
    ids=lambda change: next(iter(change)),
)
def test_shares_are_uncorrelated_when_any_part_of_the_label_differs(change):
    """Shares of two runs, rounds, attempts, sites or blocks do not correlate (P9); a share with itself does."""
    label = {"run": "run", "round": 0, "attempt": 0, "site": 0, "purpose": "update"}
    source = NoiseSource(lambda length: bytes(range(length)))
    first = source.share(50.0, COUNT, **label)
    second = source.share(50.0, COUNT, **(label | change))
    assert stats.pearsonr(first, second).pvalue > ALPHA
    mixed = second + first // 50
    assert stats.pearsonr(first, mixed).pvalue < ALPHA
