"""The noise that ends up in a sum and in the mean, through plan, shares, ring and codec.

Each check gives a p-value at which the right noise passes and a planted fault fails. Keys are fixed, so the outcome is too.
"""

import math

import numpy as np
import pytest
from scipy import stats

from privacy.codec import GridCodec
from privacy.noise import NoiseSource, sigma_effective
from privacy.plan import Plan

pytestmark = pytest.mark.statistical

ALPHA = 1e-6
DIMENSION = 200_000
SITES, DROPOUTS, COLLUDERS = 6, 2, 1
DIVISOR = 300.0


@pytest.fixture(scope="module")
def plan():
    """Six sites, two of whom may be missing and one of whom colludes; a clip norm of 1.5."""
    return Plan(
        unit="record",
        relation="add-remove",
        sites=SITES,
        dropouts=DROPOUTS,
        colluders=COLLUDERS,
        clip=1.5,
        records_per_site=100,
        dimension=DIMENSION,
        noise_multiplier=2.0,
        rounds=1,
        delta=1e-5,
        epsilon=10.0,
        divisor=DIVISOR,
    )


@pytest.fixture(scope="module")
def shares(plan):
    """Every site's share ``(SITES, DIMENSION)``, each from a source of its own."""
    return np.stack(
        [
            NoiseSource(lambda length, site=site: bytes([site]) * length).share(
                plan.sigma_local, DIMENSION, run="run", round=0, attempt=0, site=site, purpose="update"
            )
            for site in range(SITES)
        ]
    )


def scale_p(x, sigma):
    """Mean square against sigma**2; the kurtosis of a normal law is 3."""
    z = (np.mean((x / sigma) ** 2) - 1) / math.sqrt(2 / x.size)
    return float(2 * stats.norm.sf(abs(z)))


def test_the_fewest_honest_survivors_reach_the_noise_of_the_plan(plan, shares):
    """At the floor the honest noise has variance sigma_star**2 + 9; planned for all sites, or with a share less, it has not (P17)."""
    honest = shares[: SITES - DROPOUTS - COLLUDERS].sum(axis=0)
    promised = math.hypot(plan.sigma_star, 3)
    assert scale_p(honest, promised) > ALPHA
    assert scale_p(honest * math.sqrt((SITES - DROPOUTS - COLLUDERS) / SITES), promised) < ALPHA
    assert scale_p(honest - shares[0], promised) < ALPHA


@pytest.mark.parametrize("survivors", range(SITES - DROPOUTS, SITES + 1))
def test_the_realised_noise_is_that_of_the_survivors(plan, shares, survivors):
    """sigma_effective of the signed survivors is what their sum has, less the colluders' part and the 9."""
    honest = shares[COLLUDERS:survivors].sum(axis=0)
    realised = plan.sigma_effective(survivors)
    assert realised == sigma_effective(plan.sigma_local, survivors=survivors, colluders=COLLUDERS)
    assert scale_p(honest, math.hypot(realised, 3)) > ALPHA
    assert (
        scale_p(honest, math.hypot(realised, 3) * math.sqrt((survivors - COLLUDERS + 1) / (survivors - COLLUDERS)))
        < ALPHA
    )


def test_noise_is_added_to_the_sum_and_then_divided(plan, shares):
    """The mean's noise is z C / divisor and more, through the ring; noise of the sum's size divided once too often is rejected (P7)."""
    codec = GridCodec(plan.clip, plan.grid, DIMENSION)
    update = codec.encode_update(np.full(DIMENSION, 1e-3))
    ring = 1 << plan.bits
    total = np.zeros(DIMENSION, dtype=np.int64)
    for share in shares[: SITES - DROPOUTS]:
        total = (total + update + share) % ring
    signed = np.where(total >= ring // 2, total - ring, total)
    mean = codec.decode(signed) / plan.divisor
    noise = mean - codec.decode((SITES - DROPOUTS) * update) / plan.divisor
    everybody = math.sqrt((SITES - DROPOUTS) / (SITES - DROPOUTS - COLLUDERS))  # the colluder's noise is there too
    expected = plan.noise_multiplier * plan.clip / plan.divisor * everybody
    assert scale_p(noise, expected) > ALPHA
    assert scale_p(noise / SITES, expected) < ALPHA
    assert scale_p(noise / math.sqrt(SITES), expected) < ALPHA
