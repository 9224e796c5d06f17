import math

import numpy as np
import pytest

from privacy.noise import NoiseSource
from privacy.plan import Signal, epsilon_by_colluders, epsilon_by_rounds, signal


def test_signal_is_clip_over_noise_from_the_floor_to_all_sites(heart):
    """A row for each number of survivors; more survivors carry more noise, and the ratio is clip over its norm."""
    plan = heart()
    rows = signal(plan)
    assert [row.survivors for row in rows] == [3, 4]
    for row in rows:
        assert row.noise == pytest.approx(row.coordinate * math.sqrt(40), rel=1e-12)
        assert row.ratio == pytest.approx(plan.clip / row.noise, rel=1e-12)
    assert rows[1].coordinate == pytest.approx(rows[0].coordinate * math.sqrt(4 / 3), rel=1e-12)


def test_the_noise_told_is_the_noise_drawn(heart):
    """The decoded mean of zeros, with the noise of every survivor, has the standard deviation that the table says."""
    plan = heart(dimension=20_000, clip=3.0)
    source = NoiseSource.insecure_test(7)
    total = sum(
        source.share(plan.sigma_local, plan.length, run="r", round=0, attempt=0, site=site, purpose="update")
        for site in range(3)
    )
    mean = plan.codec().decode(total) / plan.divisor
    row = signal(plan)[0]
    assert np.std(mean) == pytest.approx(row.coordinate, rel=0.02)
    assert np.linalg.norm(mean) == pytest.approx(row.noise, rel=0.02)


def test_ratio_does_not_depend_on_the_clip_norm(heart):
    """Noise goes with the clip norm, so signal to noise is a matter of n, d, T and the budget."""
    assert signal(heart(clip=1.0))[0].ratio == pytest.approx(signal(heart(clip=0.01))[0].ratio, rel=1e-12)
    assert isinstance(signal(heart())[0], Signal)


@pytest.mark.parametrize(("rounds", "counts"), [(40, [*range(4, 41, 4), 80]), (3, [1, 2, 3, 6]), (1, [1, 2])])
def test_epsilon_by_rounds_grows_to_the_plan_and_beyond(heart, rounds, counts):
    """Tenths of the rounds, all of them at the planned epsilon, and twice as many; epsilon grows, by both routes."""
    plan = heart(rounds=rounds)
    table = dict(epsilon_by_rounds(plan))
    assert list(table) == counts
    assert table[rounds] == plan.accounted_epsilon()
    for route in ("closed_form", "rdp"):
        values = [bound.routes[route] for bound in table.values()]
        assert values == sorted(values)
        assert len(set(values)) == len(values)
    assert table[rounds].upper <= plan.epsilon < table[2 * rounds].upper


def test_epsilon_by_colluders_grows_with_every_one(heart):
    """From nobody to all but one honest survivor; the plan's own number has the planned epsilon."""
    plan = heart()
    table = dict(epsilon_by_colluders(plan))
    assert list(table) == [0, 1, 2]
    assert table[1] == plan.accounted_epsilon()
    uppers = [bound.upper for bound in table.values()]
    assert uppers[0] < uppers[1] <= plan.epsilon < uppers[2]
    # Half as many honest survivors have half the variance: mu**2 doubles.
    assert table[2].upper == pytest.approx(plan.accounted_epsilon(rounds=80).upper, rel=1e-9)


def test_tables_of_large_cohorts_stay_short(heart):
    """A thousand sites make at most thirteen rows, the ends and the plan's own among them."""
    plan = heart(sites=1000, dropouts=400, colluders=37, records_per_site=1, divisor=1000.0, delta=1e-6)
    survivors = [row.survivors for row in signal(plan)]
    colluders = [count for count, _ in epsilon_by_colluders(plan)]
    assert (survivors[0], survivors[-1], len(survivors)) == (600, 1000, 12)
    assert (colluders[0], colluders[-1], len(colluders)) == (0, 599, 13)
    assert 37 in colluders
