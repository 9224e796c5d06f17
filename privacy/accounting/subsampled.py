"""Numerics of the Poisson-subsampled Gaussian: Rényi divergences at integer orders, and which pair of laws is the worst.

Notation: z noise over clip norm, q sampling probability, T steps, N(m) the normal law of mean m and deviation z. One
step is dominated by the pair [ZDW22]

* add-remove and zero-out: ``(1-q) N(0) + q N(1)`` against ``N(0)``, in both orders;
* replace-one: ``P = (1-q) N(0) + q N(1)`` against ``Q = (1-q) N(0) + q N(-1)``. For records x, x' of norm at most 1
  and any set S with ``N(0)(S) = m``, Neyman-Pearson bounds ``N(x)(S)`` above and ``N(x')(S)`` below by the values that
  N(1) and N(-1) give the half-line of ``N(0)``-measure m; so no S tells x from x' better than a half-line tells P
  from Q.

The Rényi divergences are computed here, because dp-accounting 0.6 reports epsilon = 0 for a divergence that rounding
made negative, and ignores the relation (4.73 for 9.997).

Sources: [MTZ19] for integer orders, [CKS20] for their conversion.
"""

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from privacy.accounting.gaussian import RDP_ORDERS, rdp_epsilon
from privacy.accounting.guard import Subsampled

_MAX_NODES: Final = 50_000
_INTEGRAL_ERROR: Final = 1e-12  # above the rounding of one integral, relative


def rdp_route(mechanism: Subsampled, delta: float) -> float:
    """Epsilon by the Rényi route; inf where the noise is too small to integrate.

    Guarantees:
        An upper bound; at add-remove, equal to 50-digit arithmetic at `RDP_ORDERS` to 1e-9.
    """
    step = rdp_replace_one if mechanism.replace_one else rdp_add_remove
    divergences = [step(order, mechanism.z, mechanism.q) for order in RDP_ORDERS]
    return rdp_epsilon(mechanism.steps * np.array(divergences, np.float64), delta)


def rdp_add_remove(order: int, z: float, q: float) -> float:
    """Rényi divergence of one step, q < 1, by [MTZ19, Sec. 3.3]; the order of the two laws does not matter there."""
    k = np.arange(2, order + 1, dtype=np.float64)
    return mixed_log_moment(order, q, k * (k - 1) / (2 * z * z)) / (order - 1)


def mixed_log_moment(order: int, probability: float, log_moments: npt.NDArray[np.float64]) -> float:
    """``log E_Q[(1 - p + p P/Q)**order]``, the moment of a coin of probability p before P, otherwise Q.

    A binomial sum whose terms 0 and 1 are taken off the leading 1. What is left has positive terms only, so nothing
    cancels however small p is.

    Args:
        order: An integer, 2 or more.
        probability: p, in (0, 1).
        log_moments: ``float64 (order - 1,)``: ``log E_Q[(P/Q)**k]`` for k = 2 to order.
    """
    from scipy.special import gammaln, logsumexp  # noqa: PLC0415 - 0.3 s to import

    k = np.arange(2, order + 1, dtype=np.float64)
    binomial = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    weight = binomial + (order - k) * math.log1p(-probability) + k * math.log(probability)
    with np.errstate(divide="ignore"):  # a moment that rounds to 1 adds nothing
        moment = logsumexp(weight + log_moments + np.log(-np.expm1(-log_moments)))
    return float(np.logaddexp(0.0, moment))


def rdp_replace_one(order: int, z: float, q: float) -> float:
    """Rényi divergence of the dominating pair by the trapezoidal rule, which converges geometrically here.

    The integrand P**order Q**(1 - order) is analytic in a strip; the step keeps the error below exp(-40).
    """
    from scipy.special import logsumexp  # noqa: PLC0415 - 0.3 s to import

    step = 0.45 * z * z / math.sqrt(order / 4 + z * z)
    low, high = -1 - 12 * z, order + 12 * z
    if (high - low) / step > _MAX_NODES:
        return math.inf
    x: npt.NDArray[np.float64] = np.arange(low, high, step)
    at_zero = math.log1p(-q) - x**2 / (2 * z * z)
    log_p = np.logaddexp(at_zero, math.log(q) - (x - 1) ** 2 / (2 * z * z))
    log_q = np.logaddexp(at_zero, math.log(q) - (x + 1) ** 2 / (2 * z * z))
    log_moment = logsumexp(order * log_p + (1 - order) * log_q) + math.log(step / (z * math.sqrt(2 * math.pi)))
    return (max(0.0, float(log_moment)) + _INTEGRAL_ERROR) / (order - 1)
