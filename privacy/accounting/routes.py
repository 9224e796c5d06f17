"""Two independent routes to every epsilon, behind a guard that refuses what has no sound answer.

* Every record in every step (``sample_rate = 1``): the closed form and Rényi (privacy.accounting.gaussian), with a privacy loss
  distribution (PLD) as a cross-check.
* Poisson-subsampled: a pessimistic PLD and Rényi at integer orders (privacy.accounting.subsampled); the optimistic PLD bounds
  epsilon from below. The unsampled closed form is a third upper bound, for what a PLD cannot hold in memory.

Upper bounds have no fixed order (a PLD's grid is loose for many steps), so the smallest finite one is reported. Routes
that contradict each other raise: one of them is wrong, and nobody can say which.

Under secure aggregation these are claims of computational differential privacy [MPRV09]: they rest on the masks.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Final, Literal, get_args

import numpy as np

from privacy.accounting.gaussian import (
    MAX_MU_SQUARED,
    MIN_MU_SQUARED,
    closed_form,
    largest_mu_squared,
    rdp_form,
    with_sampler,
)
from privacy.accounting.subsampled import Subsampled, pld_grid, pld_route, rdp_route
from privacy.errors import AccountingError

Relation = Literal["add-remove", "zero-out", "replace-one"]

_MARGIN: Final = 1e-9  # so that a filter which sums the steps one by one, rounding up, lets the last one pass
_CHECK_CELLS: Final = 50_000  # the closed form's cross-check may be on a coarse grid, and takes 0.5 s
_CHECK_MAX_MU: Final = 25.0  # the PLD's losses overflow beyond
_CHECK_MIN_DELTA: Final = 1e-12  # the PLD's tails are cut at 1e-15


@dataclass(frozen=True)
class EpsilonBound:
    """Epsilon between two proved bounds, for computational differential privacy.

    Attributes:
        upper: The smallest finite upper bound; inf where none is proved (the noise sampler alone may cost delta).
        lower: No accountant can say less: the closed form, or the optimistic PLD when subsampled (0 without one).
        routes: Every upper bound by name: ``closed_form``, ``rdp``, ``pld``, ``unsampled``.
    """

    upper: float
    lower: float
    routes: Mapping[str, float]


def epsilon(
    *, noise_multiplier: float, sample_rate: float = 1.0, steps: int, delta: float, relation: Relation = "add-remove"
) -> EpsilonBound:
    """Epsilon of the Gaussian mechanism, composed over steps.

    Args:
        noise_multiplier: Standard deviation of the noise in the sum, over the clip norm. The clip norm, not the
            sensitivity: ``relation`` says how often one unit's change counts.
        sample_rate: Probability of each record's own secret coin in each step (Poisson sampling); 1 for all records.
            Shuffled or fixed-size batches are not Poisson: account them at 1.
        steps: Number of releases.
        delta: In (0, 1).
        relation: ``add-remove``, ``zero-out`` (the same bounds), or ``replace-one`` (twice the clip norm).

    Raises:
        AccountingError: an input is not finite, out of range or of the wrong type, or two routes contradict.

    Guarantees:
        ``lower`` <= the true epsilon <= ``upper`` = the smallest finite route.
        A noise multiplier however small is answered in bounded memory.
    """
    mechanism = _mechanism(noise_multiplier, sample_rate, steps, relation)
    delta = _delta(delta)
    routes = _upper_bounds(mechanism, delta)
    if mechanism.q == 1:
        optimistic = _cross_check(mechanism, delta, routes)
        _consistent(optimistic, routes)
        return _consistent(closed_form(_mu_squared(mechanism), delta, upward=False), routes)
    grid = pld_grid(mechanism, delta)
    return _consistent(0.0 if grid is None else pld_route(mechanism, delta, grid, pessimistic=False), routes)


def gaussian_epsilon(mu_squared: float, delta: float, *, sampler_delta: float = 0.0) -> EpsilonBound:
    """Epsilon of any adaptive composition of Gaussian mechanisms, equal or not.

    Args:
        mu_squared: Sum over the releases of (sensitivity / standard deviation)**2; 0 when nothing was released.
        delta: In (0, 1), the sampler's part included.
        sampler_delta: Total variation distance of all the noise drawn from its ideal law: coordinates times 2**-100.
            ``(1 + exp(epsilon)) sampler_delta`` is paid out of delta.

    Returns:
        The bound, with routes ``closed_form`` and ``rdp``; ``upper`` is inf where the sampler alone may cost delta.

    Raises:
        AccountingError: an input is not finite or out of range, or the routes contradict.

    Guarantees:
        Exact for Gaussians: ``lower`` and the closed form differ by the sampler's part and 1e-10.
        Never decreases in mu_squared or sampler_delta.
    """
    mu_squared = _not_negative("mu_squared", mu_squared)
    sampler_delta = _not_negative("sampler_delta", sampler_delta)
    delta = _delta(delta)
    routes = {
        "closed_form": with_sampler(partial(closed_form, mu_squared), delta, sampler_delta),
        "rdp": with_sampler(partial(rdp_form, mu_squared), delta, sampler_delta),
    }
    _closed_form_is_lowest(routes)
    return _consistent(closed_form(mu_squared, delta, upward=False), routes)


def noise_multiplier(
    *, epsilon: float, delta: float, steps: int, sample_rate: float = 1.0, relation: Relation = "add-remove"
) -> float:
    """Noise multiplier for a budget, on the safe side.

    Args:
        epsilon: The target, positive.
        delta: In (0, 1).
        steps: Number of releases.
        sample_rate: As for `epsilon`.
        relation: As for `epsilon`.

    Returns:
        The smallest noise multiplier found whose epsilon does not pass the target: to 9 digits at sample_rate 1, to 4
        when subsampled.

    Raises:
        AccountingError: an input is out of range, or no noise reaches the target.

    Guarantees:
        The `epsilon` of the result is never above the target.
        A smaller target, a smaller delta, more steps or a larger sample rate never give less noise, to those digits.
    """
    target = _positive("epsilon", epsilon)
    mechanism = _mechanism(1.0, sample_rate, steps, relation)
    delta = _delta(delta)
    # Without sampling the answer is exact; with it, the same noise is a safe place to start from.
    z = math.sqrt(_mu_squared(mechanism) / largest_mu_squared(target, delta)) * (1 + _MARGIN)
    nudge = 1e-15
    while closed_form(_mu_squared(mechanism._replace(z=z)), delta) > target:
        z *= 1 + nudge
        nudge *= 2
    if mechanism.q == 1:
        return z
    z = _smallest(lambda z: rdp_route(mechanism._replace(z=z), delta), target, z, tolerance=0.02)
    return _smallest(lambda z: min(_upper_bounds(mechanism._replace(z=z), delta).values()), target, z, tolerance=1e-4)


def _smallest(upper: Callable[[float], float], target: float, good: float, *, tolerance: float) -> float:
    """Smallest z with ``upper(z) <= target``, found by going down from one that has it; the result was tried."""
    from scipy.optimize import brentq  # noqa: PLC0415 - 0.2 s to import

    def gap(log_z: float) -> float:
        return min(upper(math.exp(log_z)) / target, 1e3) - 1

    high = math.log(good)
    if gap(high) > 0:  # another route set the starting point
        return good
    step = 16 * tolerance
    low = high - step
    while gap(low) <= 0:
        step = min(2 * step, 0.5)
        high, low = low, low - step
    z = math.exp(float(brentq(gap, low, high, xtol=tolerance / 4)) + tolerance / 4)
    while upper(z) > target:  # the grid changes with z, so the curve has tiny steps
        z *= 1 + tolerance / 4
    return min(z, good)


def _upper_bounds(mechanism: Subsampled, delta: float) -> dict[str, float]:
    mu_squared = _mu_squared(mechanism)
    if mechanism.q == 1:
        routes = {"closed_form": closed_form(mu_squared, delta), "rdp": rdp_form(mu_squared, delta)}
        _closed_form_is_lowest(routes)
        return routes
    routes = {"rdp": rdp_route(mechanism, delta), "unsampled": closed_form(mu_squared, delta)}
    grid = pld_grid(mechanism, delta)
    if grid is not None:
        routes["pld"] = pld_route(mechanism, delta, grid)
    return routes


def _cross_check(mechanism: Subsampled, delta: float, routes: dict[str, float]) -> float:
    """Add the PLD of the unsampled mechanism to the routes where it is cheap; return the optimistic one, or 0.

    The T steps are one Gaussian of sqrt(T) times the sensitivity, so nothing is composed and the grid is the only error.
    """
    mu = math.sqrt(_mu_squared(mechanism))
    if mu > _CHECK_MAX_MU or delta < _CHECK_MIN_DELTA:
        return 0.0
    one = Subsampled(1 / mu, 1.0, 1, replace_one=False)
    grid = max(1e-4, (mu * mu + 22 * mu) / _CHECK_CELLS)
    pld = routes["pld"] = pld_route(one, delta, grid)
    if not abs(pld - routes["closed_form"]) <= grid + 1e-6:
        raise AccountingError(f"the closed form ({routes['closed_form']}) and the PLD ({pld}, grid {grid}) contradict")
    return pld_route(one, delta, grid, pessimistic=False)


def _closed_form_is_lowest(routes: Mapping[str, float]) -> None:
    if routes["closed_form"] > routes["rdp"]:
        raise AccountingError(f"the closed form ({routes['closed_form']}) is above Rényi ({routes['rdp']})")


def _consistent(lower: float, routes: Mapping[str, float]) -> EpsilonBound:
    for name, upper in routes.items():
        if not lower <= upper:  # NaN fails too
            raise AccountingError(f"the lower bound {lower} is above the upper bound {upper} by route {name}")
    return EpsilonBound(min(routes.values()), lower, dict(routes))


def _mu_squared(mechanism: Subsampled) -> float:
    sensitivity = 2 if mechanism.replace_one else 1
    mu = sensitivity / mechanism.z
    result = mechanism.steps * mu * mu
    if not MIN_MU_SQUARED <= result <= MAX_MU_SQUARED:
        raise AccountingError(
            f"noise_multiplier = {mechanism.z} over {mechanism.steps} steps is beyond float64: mu**2 = {result:g} is not "
            f"in [{MIN_MU_SQUARED:g}, {MAX_MU_SQUARED:g}]"
        )
    return result


def _mechanism(noise_multiplier: object, sample_rate: object, steps: object, relation: object) -> Subsampled:
    z = _positive("noise_multiplier", noise_multiplier)
    q = _positive("sample_rate", sample_rate)
    if q > 1:
        raise AccountingError(f"sample_rate = {sample_rate} is not in (0, 1]")
    if not isinstance(steps, int | np.integer) or isinstance(steps, bool) or not 1 <= steps < 1 << 53:
        raise AccountingError(f"steps = {steps!r} is not an integer from 1 to 2**53")
    if relation not in get_args(Relation):
        raise AccountingError(f"relation = {relation!r} is none of {', '.join(get_args(Relation))}")
    return Subsampled(z, q, int(steps), relation == "replace-one")


def _delta(delta: object) -> float:
    value = _positive("delta", delta)
    if value >= 1:
        raise AccountingError(f"delta = {delta} is not in (0, 1)")
    return value


def _positive(name: str, value: object) -> float:
    number = _not_negative(name, value)
    if number == 0:
        raise AccountingError(f"{name} = {value} is not positive")
    return number


def _not_negative(name: str, value: object) -> float:
    # A bool is an int to Python; NaN fails every comparison, so the test is for what is right, not for what is wrong.
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise AccountingError(f"{name} = {value!r} is not a number")
    try:
        number = float(value)
    except OverflowError:  # an integer or fraction, which may be larger than any float
        number = math.inf
    if not 0 <= number < math.inf:
        raise AccountingError(f"{name} = {value} is negative or not finite")
    return number
