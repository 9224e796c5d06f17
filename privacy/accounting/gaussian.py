"""Closed forms for Gaussian mechanisms: Gaussian differential privacy, and Rényi at fixed orders.

Any adaptive composition of Gaussian mechanisms whose ``mu = sensitivity / sigma`` satisfy ``sum mu**2 <= m`` is no
easier to tell apart than one Gaussian with ``mu**2 = m`` [DRS22, Cor. 3.3] ([ST22] for adaptively chosen mu). Its exact
trade-off is, with ``t = epsilon / mu``, ``u = t - mu/2``, ``v = t + mu/2`` [BW18, Thm 8]

    delta(epsilon) = Phi(-u) - exp(epsilon) Phi(-v) = phi(u) (M(u) - M(v)),      M(x) = Phi(-x) / phi(x),

because ``exp(epsilon) phi(v) = phi(u)``. The second form has no large exponent to cancel, so it holds for
``delta = 1e-300`` and for ``mu = 1e6`` alike.

Under secure aggregation these are claims of computational differential privacy [MPRV09]: they rest on the masks, and on
the noise generator being indistinguishable from uniform.
"""

import decimal
import math
from collections.abc import Callable
from typing import Final

import numpy as np

from privacy.errors import AccountingError

RDP_ORDERS: Final = (*range(2, 65), 128, 256, 512)  # integers only: exact formulas exist for all of them
SAMPLER_DISTANCE: Final = 2.0**-100  # total variation of one noise coordinate (privacy.sampling)

MIN_MU_SQUARED: Final = 1e-200  # a spend below it counts as this much
MAX_MU_SQUARED: Final = 1e24  # beyond it float64 cannot tell one standard deviation of the loss from the next

_MIN_EPSILON: Final = 1e-90  # of a budget; a smaller one would need mu**2 below the least that is told apart
_LOG_DELTA_SLACK: Final = 1e-11  # above the rounding error of log_delta over its whole range
_SERIES_MU: Final = 1e-3  # below it M(u) - M(v) cancels; the next term of the series is under mu**4 / 1920
_SQRT_HALF: Final = math.sqrt(0.5)
_SQRT_HALF_PI: Final = math.sqrt(math.pi / 2)
_LOG_SQRT_2PI: Final = math.log(2 * math.pi) / 2


def log_delta(t: float, mu: float) -> float:
    """Return log(delta) of a Gaussian mechanism at epsilon = t * mu.

    Args:
        t: epsilon / mu, not negative.
        mu: Sensitivity over standard deviation, positive.

    Guarantees:
        The error is below 1e-11 for mu from 1e-12 to 1e8 and delta from 1e-300 to 1 - 1e-12.
    """
    from scipy.special import erfcx, ndtr  # noqa: PLC0415 - 0.3 s to import

    half = mu / 2
    u, v = t - half, t + half
    if mu < _SERIES_MU:
        mills = _SQRT_HALF_PI * erfcx(t * _SQRT_HALF)
        first = t * mills - 1
        third = 2 * first + t * (mills + t * first)
        return float(
            -t * t / 2 - half * half / 2 + t * half - _LOG_SQRT_2PI + _log(-mu * (first + half**2 / 6 * third))
        )
    mills_v = _SQRT_HALF_PI * erfcx(v * _SQRT_HALF)
    if u > 0:
        return float(-u * u / 2 - _LOG_SQRT_2PI + _log(_SQRT_HALF_PI * erfcx(u * _SQRT_HALF) - mills_v))
    return float(_log(ndtr(-u) - math.exp(-u * u / 2 - _LOG_SQRT_2PI) * mills_v))


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf


def closed_form(mu_squared: float, delta: float, *, upward: bool = True) -> float:
    """Epsilon of a Gaussian mechanism.

    Args:
        mu_squared: Sum of squares of sensitivity / sigma over the composition; 0 for nothing released.
        delta: In (0, 1).
        upward: Round to the safe side; False gives a lower bound instead.

    Returns:
        The smallest epsilon >= 0 for which the mechanism is (epsilon, delta)-DP, to 11 digits.

    Raises:
        AccountingError: mu_squared is above `MAX_MU_SQUARED`.

    Guarantees:
        With ``upward`` the result is never below the exact value, without it never above.
    """
    from scipy.optimize import brentq  # noqa: PLC0415 - 0.2 s to import

    if mu_squared == 0:
        return 0.0
    if not mu_squared <= MAX_MU_SQUARED:  # NaN fails too
        raise AccountingError(f"mu**2 = {mu_squared:g} is above {MAX_MU_SQUARED:g}: no epsilon can be computed for it")
    if mu_squared < MIN_MU_SQUARED and not upward:
        return 0.0
    mu = math.sqrt(max(mu_squared, MIN_MU_SQUARED))
    target = math.log(delta) + (-_LOG_DELTA_SLACK if upward else _LOG_DELTA_SLACK)
    if log_delta(0.0, mu) <= target:
        return 0.0
    largest = mu / 2 + math.sqrt(-2 * min(target, 0.0)) + 1  # Chernoff: delta < exp(-u**2 / 2) / 2
    xtol, rtol = 1e-14, 1e-15
    t = float(brentq(lambda t: log_delta(t, mu) - target, 0.0, largest, xtol=xtol, rtol=rtol))
    error = 4 * (xtol + rtol * t)
    return mu * (t + error) if upward else max(0.0, mu * (t - error))


def rdp_epsilon(rdp: "np.ndarray[tuple[int], np.dtype[np.float64]]", delta: float) -> float:
    """Convert Rényi divergences at `RDP_ORDERS` to epsilon, by [CKS20, Prop. 12].

    Args:
        rdp: ``float64 (66,)``, the divergence at each order; inf where unknown.
        delta: In (0, 1).
    """
    orders = np.array(RDP_ORDERS, np.float64)
    epsilons = rdp + np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    return max(0.0, float(epsilons.min()))


def rdp_form(mu_squared: float, delta: float) -> float:
    """Epsilon of a Gaussian mechanism by the Rényi route; an upper bound, looser than `closed_form`."""
    if mu_squared == 0:
        return 0.0
    return rdp_epsilon(np.array(RDP_ORDERS, np.float64) * (mu_squared / 2), delta)


def as_text(epsilon: float, digits: int = 6, *, upward: bool = True) -> str:
    """Say a bound in words, which is where infinity has some: its first digits, and never on the wrong side of it.

    Args:
        epsilon: The bound.
        digits: How many.
        upward: It is an upper bound; else a lower one.
    """
    if not math.isfinite(epsilon):
        return "no bound"
    rounding = decimal.ROUND_CEILING if upward else decimal.ROUND_FLOOR
    rounded = decimal.Context(prec=digits, rounding=rounding).create_decimal_from_float(epsilon)
    return f"{float(rounded):.{digits}g}"


def with_sampler(route: Callable[[float], float], delta: float, sampler_delta: float) -> float:
    """Epsilon when the noise sampler's distance from the ideal law is paid out of delta.

    A release that is within total variation ``sampler_delta`` of an (epsilon, delta')-DP one is
    (epsilon, delta' + (1 + exp(epsilon)) sampler_delta)-DP, so epsilon solves a fixed-point equation.

    Args:
        route: Epsilon as a function of delta, not increasing.
        delta: In (0, 1), what the claim may cost altogether.
        sampler_delta: Total variation over all coordinates drawn: ``sites * dimension * rounds * 2**-100``.

    Returns:
        Epsilon, or inf where the sampler alone may cost delta.

    Guarantees:
        ``route(delta - (1 + exp(epsilon)) sampler_delta) <= epsilon`` for the result.
    """
    epsilon = route(delta)
    if sampler_delta == 0:
        return epsilon
    for _ in range(100):
        candidate = epsilon * (1 + 1e-12) + 1e-300
        if candidate > 700:  # exp(700) 2**-100 is far above 1
            return math.inf
        left = delta - (1 + math.exp(candidate)) * sampler_delta
        if left <= 0:
            return math.inf
        epsilon = route(left)
        if epsilon <= candidate:
            return candidate
    return math.inf


def largest_mu_squared(epsilon: float, delta: float) -> float:
    """Total mu**2 that a budget allows: the inverse of `closed_form`, on the safe side.

    Args:
        epsilon: Positive.
        delta: In (0, 1).

    Raises:
        AccountingError: epsilon is so small or so large that float64 has no answer.

    Guarantees:
        ``closed_form(result, delta) <= epsilon``.
    """
    from scipy.optimize import brentq  # noqa: PLC0415 - 0.2 s to import

    if not _MIN_EPSILON <= epsilon <= MAX_MU_SQUARED / 8:
        raise AccountingError(
            f"a budget of epsilon = {epsilon:g} at delta = {delta:g} is not in "
            f"[{_MIN_EPSILON:g}, {MAX_MU_SQUARED / 8:g}]: no noise can be computed for it"
        )
    target = math.log(delta) - _LOG_DELTA_SLACK
    root = math.sqrt(-2 * target)
    low = epsilon / (root + math.sqrt(root * root + 2 * epsilon))  # half of what Chernoff's bound allows
    high = 2 * (root + math.sqrt(2 * epsilon)) + 10

    def gap(log_mu: float) -> float:
        mu = math.exp(log_mu)
        return max(log_delta(epsilon / mu, mu), -1e6) - target

    if gap(math.log(low)) > 0 or gap(math.log(high)) < 0:
        raise AccountingError(f"no Gaussian noise was found for epsilon = {epsilon}, delta = {delta}")
    mu = math.exp(float(brentq(gap, math.log(low), math.log(high), xtol=1e-14, rtol=1e-14)))
    back_off = 1e-13
    while closed_form(mu * mu, delta) > epsilon:
        mu *= 1 - back_off
        back_off *= 2
    return mu * mu
