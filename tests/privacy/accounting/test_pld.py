import math

import numpy as np
import pytest
from scipy.stats import norm

from privacy.accounting import pld
from privacy.accounting.gaussian import closed_form
from privacy.accounting.guard import Subsampled
from privacy.accounting.pld import (
    Losses,
    bounded_epsilon,
    connect_the_dots,
    directions,
    gaussian_bounds,
    one_step,
    pld_grid,
    pld_route,
    rounding_delta,
)
from privacy.accounting.routes import epsilon
from privacy.errors import AccountingError

MECHANISMS = [
    Subsampled(1.0, 0.1, 20, replace_one=False),
    Subsampled(0.6, 0.02, 50, replace_one=False),
    Subsampled(2.0, 0.9, 5, replace_one=False),
    Subsampled(3.0, 1.0, 10, replace_one=False),
    Subsampled(1.5, 0.2, 8, replace_one=True),
    Subsampled(2.0, 1.0, 3, replace_one=True),
]


def library_epsilon(mechanism, delta, *, pessimistic):
    """What dp-accounting says, built and composed by itself alone."""
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution

    relation = NeighboringRelation.REPLACE_ONE if mechanism.replace_one else NeighboringRelation.ADD_OR_REMOVE_ONE
    step = privacy_loss_distribution.from_gaussian_mechanism(
        mechanism.z,
        sampling_prob=mechanism.q,
        pessimistic_estimate=pessimistic,
        use_connect_dots=pessimistic,
        value_discretization_interval=1e-3,
        neighboring_relation=relation,
    )
    return step.self_compose(mechanism.steps).get_epsilon_for_delta(delta)


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=str)
@pytest.mark.parametrize("pessimistic", [True, False])
def test_bounds_agree_with_dp_accounting(mechanism, pessimistic):
    """On the same grid the library's own distribution gives the same epsilon, from above and from below."""
    ours = pld_route(mechanism, 1e-5, 1e-3, pessimistic=pessimistic)
    assert ours == pytest.approx(library_epsilon(mechanism, 1e-5, pessimistic=pessimistic), rel=2e-4)


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=str)
def test_one_step_has_the_curve_of_its_definition(mechanism):
    """At each direction and loss, from above delta(epsilon) is the integral of (P - exp(epsilon) Q)+, from below less."""
    z, q = mechanism.z, mechanism.q
    x, width = np.linspace(-15 * z - 2, 15 * z + 2, 400_001, retstep=True)
    absent, present, other = (norm.pdf(x, mean, z) for mean in (0, 1, -1))
    mixture, opposite = (1 - q) * absent + q * present, (1 - q) * absent + q * other
    laws = {"remove": (mixture, absent), "add": (absent, mixture), "replace": (mixture, opposite)}
    epsilons = np.array([-1.0, -0.3, -0.001, 0.0, 0.002, 0.25, 1.0])
    for direction in directions(mechanism):
        first, second = laws[direction]
        exact = [np.maximum(first - math.exp(each) * second, 0).sum() * width for each in epsilons]
        above = one_step(mechanism, 1e-3, direction, pessimistic=True).deltas(epsilons)
        below = one_step(mechanism, 1e-3, direction, pessimistic=False).deltas(epsilons)
        assert above == pytest.approx(exact, abs=1e-6)
        assert np.all(below <= np.array(exact) + 1e-8)
        assert below == pytest.approx(exact, abs=2e-3)


def test_both_directions_are_asked_when_subsampled():
    """Removing is not always the dearer one, so both are taken; a mechanism that mirrors itself needs one."""
    assert directions(Subsampled(1.0, 0.1, 1, replace_one=False)) == ("remove", "add")
    assert directions(Subsampled(1.0, 1.0, 1, replace_one=False)) == ("remove",)
    assert directions(Subsampled(1.0, 0.1, 1, replace_one=True)) == ("replace",)


def test_dots_are_joined_from_above():
    """The distribution through the dots has the curve's value at each dot and no less between them."""
    grid, mu = 0.1, 1.0
    dots = np.arange(-30, 61)

    def curve(epsilons):
        return norm.cdf(mu / 2 - epsilons / mu) - np.exp(epsilons) * norm.cdf(-mu / 2 - epsilons / mu)

    joined = connect_the_dots(grid, -30, curve(dots * grid))
    assert joined.deltas(dots * grid) == pytest.approx(curve(dots * grid), abs=1e-12)
    between = (dots[:-1] + 0.5) * grid
    assert np.all(joined.deltas(between) >= curve(between))
    assert np.any(joined.deltas(between) > curve(between) + 1e-5)
    assert joined.infinity + joined.masses.sum() == pytest.approx(1)


def test_epsilon_inverts_the_curve():
    """The smallest epsilon with delta(epsilon) <= delta, on a loss of three values and an unbounded one."""
    losses = Losses(0.5, -1, np.array([0.3, 0.0, 0.0, 0.4, 0.2]), 0.1, pessimistic=True)  # at -0.5, 1 and 1.5
    for delta in (0.11, 0.2, 0.3, 0.4):
        found = losses.epsilon(delta)
        assert losses.deltas(np.array([found]))[0] == pytest.approx(delta, rel=1e-8)
    assert losses.epsilon(0.099) == math.inf
    assert losses.epsilon(0.9) == 0
    assert losses._replace(infinity=0.0, masses=losses.masses / 0.9).epsilon(1e-300) == pytest.approx(1.5)


def test_losses_beyond_float64_are_unbounded_from_above_and_nothing_from_below():
    """A loss of 800 counts as infinite in an upper bound, and is left out of a lower one."""
    far = Losses(100.0, 1, np.array([0.5, 0.2, 0, 0, 0, 0, 0, 0.3]), 0.0, pessimistic=True)
    assert far.epsilon(0.2) == math.inf
    assert 100 < far.epsilon(0.4) < 200
    assert far._replace(pessimistic=False).epsilon(0.2) < 200


def test_a_composition_counts_what_it_cuts():
    """The unbounded mass of T releases is that of any one of them, and the masses of all add up to 1."""
    step = one_step(Subsampled(1.0, 0.3, 1, replace_one=False), 1e-3, "remove", pessimistic=True)._replace(
        infinity=0.01
    )
    composed = step.composed(10)
    assert composed.infinity == pytest.approx(1 - 0.99**10, rel=1e-10)
    assert composed.masses.sum() == pytest.approx(step.masses.sum() ** 10, rel=1e-9)
    assert step._replace(infinity=1.0).composed(3).infinity == 1


@pytest.mark.parametrize("mu", [1e-3, 0.1, 1.0, 5.0, 25.0])
@pytest.mark.parametrize("delta", [1e-12, 1e-6, 0.1])
def test_a_gaussian_is_between_its_two_grids(mu, delta):
    """The exact epsilon is between the bounds, which are within two grid steps."""
    grid = max(1e-4 * min(1.0, mu), (mu * mu + 22 * mu) / 50_000)
    above, below = gaussian_bounds(mu, delta, grid)
    assert below <= closed_form(mu * mu, delta) * (1 + 1e-9)
    assert closed_form(mu * mu, delta, upward=False) <= above * (1 + 1e-9)
    assert above - below <= 2 * grid + 1e-9


def test_answers_without_sampling_do_not_load_the_library():
    """At q = 1 nothing imports dp-accounting, whose second would be most of a cold start."""
    import subprocess
    import sys

    question = (
        "import sys; from privacy import epsilon; a = epsilon(noise_multiplier=1, steps=9, delta=1e-5);"
        "assert set(a.routes) == {'closed_form', 'rdp', 'pld'}; assert 'dp_accounting' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", question], check=True)


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
    monkeypatch.setattr(pld, "rounding_delta", lambda _steps: 0.0)
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


@pytest.mark.parametrize("masses", [[math.nan, 0.5], [math.inf, 0.5]])
def test_masses_that_are_no_numbers_are_an_error(masses):
    """NaN or infinity from the library's transform is not passed on as an epsilon."""
    with pytest.raises(AccountingError, match="no numbers"):
        bounded_epsilon(Losses(0.1, 0, np.array(masses), 0.0, pessimistic=True), 1e-5, 0.0)


def test_no_grid_where_a_rate_is_lost_in_rounding():
    """A rate within 1e-12 of 0 or 1 has no distribution; 1 itself has one."""
    for q, answered in ((1e-13, False), (1 - 1e-13, False), (1e-3, True), (1.0, True)):
        assert (pld_grid(Subsampled(5.0, q, 1, replace_one=False), 1e-5) is not None) == answered


def test_the_finer_grid_is_what_tightens_a_million_steps():
    """With the default grid alone the bound at q = 1e-4 and T = 10**6 would be 3 % above the tight interval."""
    question = {"noise_multiplier": 1.0, "sample_rate": 1e-4, "steps": 10**6, "delta": 1e-9}
    finer = epsilon(**question).upper
    coarse = pld_route(Subsampled(1.0, 1e-4, 10**6, replace_one=False), 1e-9, 1e-4)
    assert finer < 0.7237
    assert coarse > 0.75


def test_no_distribution_on_a_grid_that_says_nothing():
    """Where only a grid coarser than 0.1 would hold the composition, the other routes answer alone."""
    assert pld_grid(Subsampled(0.3, 0.5, 100_000, replace_one=False), 1e-5) is None
    answer = epsilon(noise_multiplier=0.3, sample_rate=0.5, steps=100_000, delta=1e-5)
    assert answer.routes.keys() == {"rdp", "unsampled"}
