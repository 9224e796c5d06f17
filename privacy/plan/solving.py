"""Budget, noise and rounds: any two give the third, on the safe side.

T rounds of ``mu = 1 / noise_multiplier`` spend ``T mu**2``, and a budget allows so much of it (privacy.budget). The part
of delta that the noise sampler may cost is the plan's own: what n T rounds draw.
"""

import math
from functools import partial
from typing import Final

from privacy.accounting.gaussian import SAMPLER_DISTANCE, as_text, closed_form, with_sampler
from privacy.budget import Budget
from privacy.errors import PlanError
from privacy.plan import poisson
from privacy.reading import check_count, check_real

MARGIN: Final = 1e-9  # rounding of T summed spends; the last planned round must still fit

_LEAST_EPSILON: Final = 1e-9  # where delta alone pays for everything


def solve_third(
    *,
    epsilon: object,
    noise_multiplier: object,
    rounds: object,
    delta: object,
    sites: int,
    draws: int,
    sample_rate: object = 1.0,
) -> tuple[float, float, int]:
    """Return (epsilon, noise_multiplier, rounds) from the two that are not None.

    Args:
        epsilon: Budget of one run.
        noise_multiplier: Noise at the floor over the sensitivity.
        rounds: T.
        delta: In (0, 1).
        sites: n.
        draws: Noise coordinates that all sites draw in one round.
        sample_rate: Of each record's coin.

    Raises:
        PlanError: not two of the three are given, one is out of range, or no third exists; with the numbers.
        AccountingError: the numbers are so large or small that float64 has no answer.

    Guarantees:
        The rounds at that noise stay within (epsilon, delta), and a plan of the three is accepted.
        The noise and the budget are the least to 1e-6, the rounds the most; below a sample rate of 1 the noise to 1e-3, and
        the rounds to a thousandth.
    """
    given = {"epsilon": epsilon, "noise_multiplier": noise_multiplier, "rounds": rounds}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 2:
        raise PlanError(
            f"two of {', '.join(given)} make a plan, and the third follows; given: {', '.join(named) or 'none'}"
        )
    probability = check_real("delta", delta)
    if probability >= 1:
        raise PlanError(f"delta = {delta} is not below 1")
    rate = check_real("sample_rate", sample_rate)
    if rate > 1:
        raise PlanError(f"sample_rate = {rate} is above 1")
    poisson.check_rate(rate)
    # Of each round. Only a filter over chosen releases sets more aside than the rounds draw.
    sampler = (sites if rate == 1 else 1) * draws * SAMPLER_DISTANCE
    if rounds is not None:
        check_count("rounds", rounds, 1)
    if noise_multiplier is None:
        target = check_real("epsilon", epsilon)
        return target, _least_noise(target, rounds, probability, sampler, rate), rounds  # type: ignore[arg-type,return-value]
    noise = check_real("noise_multiplier", noise_multiplier)
    if not 1e-150 < noise < 1e150:  # squares stay floats
        raise PlanError(f"noise_multiplier = {noise:g} is not in (1e-150, 1e150)")
    if epsilon is None:
        if rate < 1:
            least = poisson.least_epsilon(noise, rounds, probability, sampler, rate=rate, least=_LEAST_EPSILON)  # type: ignore[arg-type]
            return least, noise, rounds  # type: ignore[return-value]
        return _least_epsilon(noise, rounds, probability, sampler), noise, rounds  # type: ignore[arg-type,return-value]
    target = check_real("epsilon", epsilon)
    if rate < 1:
        return target, noise, poisson.most_rounds(target, noise, probability, sampler, rate=rate)
    return target, noise, _most_rounds(target, noise, probability, sampler)


def _least_noise(epsilon: float, rounds: int, delta: float, sampler: float, rate: float) -> float:
    budget = Budget(epsilon, delta, rounds * sampler)
    noise = math.sqrt(rounds / budget.mu_squared) * (1 + MARGIN)
    if rate == 1:
        return noise
    return poisson.least_noise(epsilon, rounds, delta, sampler, rate=rate, start=noise)


def _least_epsilon(noise: float, rounds: int, delta: float, sampler: float) -> float:
    spend = rounds / noise**2 * (1 + MARGIN)
    epsilon = max(with_sampler(partial(closed_form, spend), delta, rounds * sampler), _LEAST_EPSILON)
    if not math.isfinite(epsilon):
        raise PlanError(
            f"{rounds} rounds at noise_multiplier = {noise:g} have no epsilon at delta = {delta:g}: the noise sampler alone "
            "may cost more"
        )
    nudge = 1e-13  # the two directions of the closed form differ by its own error
    while Budget(epsilon, delta, rounds * sampler).mu_squared < spend:
        epsilon *= 1 + nudge
        nudge *= 2
    return epsilon


def _most_rounds(epsilon: float, noise: float, delta: float, sampler: float) -> int:
    each = (1 + MARGIN) / noise**2
    rounds = math.floor(Budget(epsilon, delta, sampler).mu_squared / each)
    if rounds < 1:
        once = with_sampler(partial(closed_form, each), delta, sampler)
        raise PlanError(
            f"one round at noise_multiplier = {noise:g} spends epsilon = {as_text(once)} at delta = {delta:g}; the budget is "
            f"{epsilon:g}"
        )
    check_count("rounds", rounds, 1)
    if _fit(rounds, each, epsilon, delta, sampler):
        return rounds
    fitting, too_many = 1, rounds  # more rounds draw more noise, and its sampler takes more of delta
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        if _fit(middle, each, epsilon, delta, sampler):
            fitting = middle
        else:
            too_many = middle
    return fitting


def _fit(rounds: int, each: float, epsilon: float, delta: float, sampler: float) -> bool:
    try:
        return rounds * each <= Budget(epsilon, delta, rounds * sampler).mu_squared
    except PlanError:  # the sampler alone
        return False
