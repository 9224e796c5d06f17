"""Numerics of the Poisson-subsampled Gaussian: Rényi at integer orders, and privacy loss distributions.

Notation: z noise over clip norm, q sampling probability, T steps, N(m) the normal law of mean m and deviation z. One
step is dominated by the pair [ZDW22]

* add-remove and zero-out: ``(1-q) N(0) + q N(1)`` against ``N(0)``, in both orders;
* replace-one: ``P = (1-q) N(0) + q N(1)`` against ``Q = (1-q) N(0) + q N(-1)``. For records x, x' of norm at most 1
  and any set S with ``N(0)(S) = m``, Neyman-Pearson bounds ``N(x)(S)`` above and ``N(x')(S)`` below by the values that
  N(1) and N(-1) give the half-line of ``N(0)``-measure m; so no S tells x from x' better than a half-line tells P
  from Q.

The PLD is dp-accounting's. The Rényi divergences are computed here, because dp-accounting 0.6 reports epsilon = 0 for a
divergence that rounding made negative, and ignores the relation (4.73 for 9.997).

Sources: [MTZ19] for integer orders, [CKS20] for their conversion, [KJH20], [DGKKM22] for PLD.
"""

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from privacy.accounting.gaussian import RDP_ORDERS, rdp_epsilon
from privacy.errors import AccountingError

_DEFAULT_GRID: Final = 1e-4
_MAX_STEP_CELLS: Final = 200_000  # of one step's PLD: 2 s, for the library walks them in Python
_MAX_CELLS: Final = 6_000_000  # of a composed PLD: 10 s and some 500 MB
_EDGE: Final = 1e-12  # nearer to 0 or 1 the library takes logarithms of what rounding left of q
_MAX_STEPS: Final = 1_000_000  # of a PLD; beyond it the library also spends minutes on bookkeeping
_MAX_LOSS: Final = 600.0  # dp-accounting exponentiates the loss, and exp(709) overflows
_TAIL_SIGMAS: Final = 10.2  # where dp-accounting cuts one step's noise, at mass exp(-50)
_COMPOSED_TAIL: Final = 1e-15  # the mass that dp-accounting cuts from a composition
_MAX_NODES: Final = 50_000
_INTEGRAL_ERROR: Final = 1e-12  # above the rounding of one integral, relative


class Subsampled(NamedTuple):
    """T steps of a Gaussian mechanism on Poisson samples.

    Attributes:
        z: Standard deviation over clip norm.
        q: Sampling probability, in (0, 1]; `rdp_route` and `pld_grid` need q < 1.
        steps: T.
        replace_one: The relation; False for add-remove and zero-out.
    """

    z: float
    q: float
    steps: int
    replace_one: bool


def rdp_route(mechanism: Subsampled, delta: float) -> float:
    """Epsilon by the Rényi route; inf where the noise is too small to integrate.

    Guarantees:
        An upper bound; at add-remove, equal to 50-digit arithmetic at `RDP_ORDERS` to 1e-9.
    """
    step = _rdp_replace_one if mechanism.replace_one else _rdp_add_remove
    divergences = [step(order, mechanism.z, mechanism.q) for order in RDP_ORDERS]
    return rdp_epsilon(mechanism.steps * np.array(divergences, np.float64), delta)


def _rdp_add_remove(order: int, z: float, q: float) -> float:
    """Rényi divergence by [MTZ19, Sec. 3.3]: a binomial sum whose terms 0 and 1 are taken off the leading 1.

    What is left has positive terms only, so nothing cancels however small q is.
    """
    from scipy.special import gammaln, logsumexp  # noqa: PLC0415 - 0.3 s to import

    k = np.arange(2, order + 1, dtype=np.float64)
    binomial = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    weight = binomial + (order - k) * math.log1p(-q) + k * math.log(q)
    exponent = k * (k - 1) / (2 * z * z)
    moment = logsumexp(weight + exponent + np.log(-np.expm1(-exponent)))
    return float(np.logaddexp(0.0, moment)) / (order - 1)


def _rdp_replace_one(order: int, z: float, q: float) -> float:
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


def pld_grid(mechanism: Subsampled, delta: float) -> float | None:
    """Choose the grid of the PLD: 1e-4, finer where many steps would blur it, coarser where it would not fit.

    Connecting the dots adds at most ``grid**2 / 4`` to the variance of each step's loss [DGKKM22]; the grid is refined
    until that is small, beside the variance of the loss or in itself.

    Returns:
        The grid, or None where the PLD cannot answer: losses that overflow, a delta below its rounding error, q within
        1e-12 of 0 or 1, or more steps than that error was measured for.

    Guarantees:
        No more than 200 000 cells for one step and about 6 000 000 for the composition.
    """
    z, q, steps, replace_one = mechanism
    shift = 2 if replace_one else 1
    largest = shift * (_TAIL_SIGMAS / z + 1 / (z * z))
    if steps > _MAX_STEPS or not _EDGE <= q <= 1 - _EDGE or largest > _MAX_LOSS or rounding_delta(steps) > delta / 2:
        return None
    one_step = 2 * math.log1p(q * math.expm1(largest))
    composed = 2 * rdp_route(mechanism, _COMPOSED_TAIL) + one_step
    if not math.isfinite(composed):
        return None
    smallest = max(one_step / _MAX_STEP_CELLS, composed / _MAX_CELLS)
    deviation = shift * q * math.sqrt(math.expm1(1 / (z * z)))
    grid = _DEFAULT_GRID
    while math.sqrt(steps) * grid > 2e-3 and grid > 0.1 * deviation:
        grid /= 10
    return max(grid, smallest)


def rounding_delta(steps: int) -> float:
    """Bound on what float rounding may take from the delta of a composed PLD.

    A composition raises a Fourier transform to the power T, so each relative rounding error grows T times: measured,
    up to T * 2e-17 is lost at T = 4e3 to 1e6, where a "pessimistic" PLD then under-reports. Ten times that is set
    aside.
    """
    return (steps + 100) * 2.0**-52


def pld_route(mechanism: Subsampled, delta: float, grid: float, *, pessimistic: bool = True) -> float:
    """Epsilon by a privacy loss distribution on a grid.

    Args:
        mechanism: What is composed.
        delta: In (0, 1), more than twice `rounding_delta`.
        grid: Distance between the losses that the distribution may take.
        pessimistic: An upper bound by connecting the dots; False: a lower bound by privacy buckets.

    Raises:
        AccountingError: the library gave NaN.

    Returns:
        The bound. Where the library overflows, at epsilon above 709, inf, or 0 for a lower bound.

    Guarantees:
        Rounding in the Fourier transform does not turn the upper bound into an under-estimate.
    """
    from dp_accounting import NeighboringRelation  # noqa: PLC0415 - 1 s to import
    from dp_accounting.pld import privacy_loss_distribution  # noqa: PLC0415 - 1 s to import

    relation = NeighboringRelation.REPLACE_ONE if mechanism.replace_one else NeighboringRelation.ADD_OR_REMOVE_ONE
    composed = privacy_loss_distribution.from_gaussian_mechanism(
        mechanism.z,
        sampling_prob=mechanism.q,
        pessimistic_estimate=pessimistic,
        use_connect_dots=pessimistic,
        value_discretization_interval=grid,
        neighboring_relation=relation,
    )
    if mechanism.steps > 1:
        composed = composed.self_compose(mechanism.steps)
    slack = rounding_delta(mechanism.steps)
    try:
        result = float(composed.get_epsilon_for_delta(delta - slack if pessimistic else delta + slack))
    except OverflowError:
        return math.inf if pessimistic else 0.0
    if math.isnan(result):
        raise AccountingError(f"the privacy loss distribution of {mechanism} gave NaN at delta = {delta}")
    return result
