"""Privacy loss distributions: discretised here, composed by dp-accounting.

The loss of an outcome o under P against Q is ``log(P(o) / Q(o))``, and

    delta(epsilon) = sup over S of P(S) - exp(epsilon) Q(S)

is its curve. From above, the curve is taken on a grid of losses and joined by the dots [DGKKM22]; from below, each loss
is rounded down to the grid. Both stay bounds when they are composed [KJH20], [ZDW22]. The library would walk the grid
in Python, and takes a second to import: so the curves are computed here, and at ``q = 1``, where nothing is composed,
all of it.

Notation as in privacy.accounting.subsampled: one step is ``P = (1-q) N(0) + q N(1)`` against ``N(0)`` and back, or
against ``(1-q) N(0) + q N(-1)``.
"""

import math
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from privacy.accounting.guard import Subsampled
from privacy.accounting.subsampled import rdp_route
from privacy.errors import AccountingError

Vector = npt.NDArray[np.float64]
Direction = Literal["remove", "add", "replace"]

MAX_STEPS: Final = 1_000_000  # of a PLD; its rounding was measured up to there
MAX_CELLS: Final = 1_000_000  # about, of a composed PLD: a second, and 30 MB for each length that scipy remembers
MAX_GRID: Final = 0.1  # a coarser one says less than Rényi does
COMPOSED_TAIL: Final = 1e-15  # the mass that is cut from a composition, and counted as lost

_DEFAULT_GRID: Final = 1e-4
_MAX_STEP_CELLS: Final = 200_000  # of one step's PLD; dp-accounting takes its moments at 40 orders
_EDGE: Final = 1e-12  # nearer to 0 or 1, rounding left little of q
_MAX_LOSS: Final = 600.0  # exp(709) overflows
_TAIL_SIGMAS: Final = 10.2  # beyond it the noise has a mass of exp(-54)
_MAX_EXPONENT: Final = 700.0
_NORMAL_ERROR: Final = 1e-15  # of a difference of normal probabilities


class Losses(NamedTuple):
    """A privacy loss distribution on a grid.

    Attributes:
        grid: Distance between losses.
        lowest: The first loss, in grid steps.
        masses: ``float64 (cells,)``, the probability of each loss; from below they may sum to less than 1.
        infinity: Probability of an unbounded loss.
        pessimistic: Whether it is an upper bound; False: a lower one.
    """

    grid: float
    lowest: int
    masses: Vector
    infinity: float
    pessimistic: bool

    def values(self) -> Vector:
        """The losses: ``float64 (cells,)``."""
        values: Vector = np.arange(self.lowest, self.lowest + len(self.masses), dtype=np.float64) * self.grid
        return values

    def _first_above(self, loss: float) -> int:
        """The first place with a loss above this one."""
        return min(max(math.floor(loss / self.grid) + 1 - self.lowest, 0), len(self.masses))

    def composed(self, times: int) -> "Losses":
        """The loss of so many independent releases; from above, what is cut counts as unbounded."""
        if times == 1:
            return self
        from dp_accounting.pld import common  # noqa: PLC0415 - 1 s to import

        offset, masses = common.self_convolve(self.masses, times, COMPOSED_TAIL)
        lowest = self.lowest * times + offset
        if not self.pessimistic:
            return Losses(self.grid, lowest, np.asarray(masses), 0.0, pessimistic=False)
        lost = 1.0 if self.infinity >= 1 else -math.expm1(times * math.log1p(-self.infinity))
        masses, infinity = np.maximum(np.asarray(masses), 0), min(1.0, lost + COMPOSED_TAIL)
        return Losses(self.grid, lowest, masses, infinity, pessimistic=True)

    def deltas(self, epsilons: Vector) -> Vector:
        """The curve ``delta(epsilon)`` at ``float64 (count,)`` points from -700 to 700, rounded to the safe side."""
        values = self.values()
        first = np.searchsorted(values, epsilons, side="right")
        beyond = self._rounded(self.infinity + _sums_from(self.masses)[first])
        against = _sums_from(self.masses * np.exp(-np.clip(values, -_MAX_EXPONENT, None)))[first]
        return beyond - np.exp(epsilons) * against

    def epsilon(self, delta: float) -> float:
        """The smallest epsilon >= 0 whose ``delta(epsilon)`` is at most delta; inf where none up to 700 is.

        Losses above 700 count as unbounded from above, and not at all from below.
        """
        start, stop = (self._first_above(loss) for loss in (0.0, _MAX_EXPONENT))
        infinity = self.infinity
        if self.pessimistic:
            infinity += float(self.masses[stop:].sum())
        masses = self.masses[start:stop]
        beyond = self._rounded(infinity + _sums_from(masses))
        if beyond[-1] > delta:
            return math.inf if self.pessimistic else _MAX_EXPONENT
        values = np.arange(self.lowest + start, self.lowest + stop, dtype=np.float64) * self.grid
        edges, against = np.append(0.0, values), _sums_from(masses * np.exp(-values))
        # Between two edges delta(epsilon) is beyond - exp(epsilon) against, with the sums over the losses above.
        fits = int(np.argmax(beyond - np.exp(edges) * against <= delta))  # the last one does
        if fits == 0:
            return 0.0
        low, high = float(edges[fits - 1]), float(edges[fits])
        if against[fits - 1] <= 0:
            return high if self.pessimistic else low
        return min(high, max(low, math.log(float((beyond[fits - 1] - delta) / against[fits - 1]))))

    def _rounded(self, beyond: Vector) -> Vector:
        """Sums of masses, moved to the safe side by more than adding one after the other, twice, can be off."""
        error = (len(self.masses) + 10) * 2.0**-52
        return beyond * (1 + error if self.pessimistic else 1 - error)


def _sums_from(masses: Vector) -> Vector:
    """Sum from each place to the end, and 0 beyond it: ``float64 (cells + 1,)``."""
    return np.append(np.cumsum(masses[::-1])[::-1], 0.0)


def connect_the_dots(grid: float, lowest: int, deltas: Vector) -> Losses:
    """The distribution whose curve goes through the dots and is above any other that does [DGKKM22, Alg. 1].

    Args:
        grid: Distance between the dots.
        lowest: Where the first one is, in grid steps.
        deltas: ``float64 (dots,)``, the curve there or anything above it.

    Guarantees:
        Its ``delta(epsilon)`` is not below the curve, at the dots and between them.
    """
    curve = np.maximum.accumulate(np.clip(deltas, 0, 1)[::-1])[::-1]  # rounding could make it rise
    falls = -np.diff(curve) / math.expm1(grid)
    masses = np.append(1 - curve[0], math.exp(grid) * falls) - np.append(falls, 0)
    return Losses(grid, lowest, np.maximum(masses, 0), float(curve[-1]), pessimistic=True)


def one_step(
    mechanism: Subsampled, grid: float, direction: Direction, *, pessimistic: bool, under_second: bool = False
) -> Losses:
    """The loss of one step of the subsampled Gaussian, on a grid: rounded so that it is an upper or a lower bound.

    ``under_second`` gives the masses that the second law has of the losses rounded down, instead of the first law's.
    """
    from scipy.special import ndtr  # noqa: PLC0415 - 0.3 s to import

    z, q = mechanism.z, mechanism.q
    ends = [_loss(z, q, direction, x) for x in _outcomes(z)]
    lowest, highest = math.floor(min(ends) / grid), math.ceil(max(ends) / grid)
    epsilons: Vector = np.arange(lowest, highest + 1, dtype=np.float64) * grid
    x = _outcome(z, q, direction, epsilons)
    sign = -1 if direction == "add" else 1  # there the loss falls with x
    at_zero, at_one = ndtr(-sign * x / z), ndtr(-sign * (x - 1) / z)
    mixed = (1 - q) * at_zero + q * at_one
    if direction == "replace":
        reached, against = mixed, (1 - q) * at_zero + q * ndtr((-1 - x) / z)
        deltas = reached - np.exp(epsilons) * against
    elif direction == "remove":
        reached, against = mixed, at_zero
        least = np.expm1(epsilons) + q <= 0  # no outcome has a loss so low
        deltas = np.where(least, -np.expm1(epsilons), q * at_one - (np.expm1(epsilons) + q) * at_zero)
    else:
        reached, against = at_zero, mixed
        deltas = np.exp(epsilons) * (np.maximum(np.expm1(-epsilons) + q, 0) * at_zero - q * at_one)
    if pessimistic:
        return connect_the_dots(grid, lowest, deltas)
    tail = against if under_second else reached
    return Losses(grid, lowest, tail - np.append(tail[1:], 0), 0.0, pessimistic=False)


def _outcomes(z: float) -> tuple[float, float]:
    """Where the noise has all but exp(-54) of its mass, whichever mean it has."""
    return -1 - _TAIL_SIGMAS * z, 1 + _TAIL_SIGMAS * z


def _loss(z: float, q: float, direction: Direction, x: float) -> float:
    """The privacy loss of an outcome; it rises with x, and falls where a record is added."""

    def ratio(mean: int) -> float:
        exponent = (2 * mean * x - 1) / (2 * z * z)
        if q == 1:
            return exponent
        return float(np.logaddexp(math.log1p(-q), math.log(q) + exponent))

    if direction == "replace":
        return ratio(1) - ratio(-1)
    return ratio(1) if direction == "remove" else -ratio(1)


def _outcome(z: float, q: float, direction: Direction, epsilons: Vector) -> Vector:
    """The outcomes where the losses are these; infinite where the loss is never so low, or so high."""
    if direction == "replace":
        half = epsilons / 2
        if q < 1:
            ratio = (1 - q) / q * math.exp(1 / (2 * z * z))
            return z * z * (half + np.arcsinh(ratio * np.sinh(half)))
        return z * z * half
    with np.errstate(divide="ignore"):
        share = np.maximum(np.expm1(epsilons if direction == "remove" else -epsilons) / q + 1, 0)
        x: Vector = z * z * np.log(share) + 0.5
        return x


def directions(mechanism: Subsampled) -> tuple[Direction, ...]:
    """In which orders the two laws must be told apart; one where they mirror each other."""
    if mechanism.replace_one:
        return ("replace",)
    return ("remove",) if mechanism.q == 1 else ("remove", "add")


def pld_grid(mechanism: Subsampled, delta: float, *, rounds: int = 1, coin: float = 1.0) -> float | None:
    """Choose the grid of the PLD: 1e-4, finer where many steps would blur it, coarser where it would not fit.

    Connecting the dots adds at most ``grid**2 / 4`` to the variance of each step's loss [DGKKM22]; the grid is refined
    until that is small, beside the variance of the loss or in itself.

    Args:
        mechanism: What is composed.
        delta: In (0, 1].
        rounds: How often all of it is composed again.
        coin: With which probability it happens in a round.

    Returns:
        The grid, or None where the PLD cannot answer: losses that overflow or that only a coarse grid could hold, a
        delta below its rounding error, q within 1e-12 of 0 or 1 (but q = 1 is answered), or more steps than that error
        was measured for.

    Guarantees:
        No more than 200 000 cells for one step and about 1 000 000 for the composition.
    """
    z, q, steps, replace_one = mechanism
    shift = 2 if replace_one else 1
    largest = shift * (_TAIL_SIGMAS / z + 1 / (z * z))
    if steps > MAX_STEPS or not (_EDGE <= q <= 1 - _EDGE or q == 1):
        return None
    if largest > _MAX_LOSS or rounding_delta(steps) > delta / 2:
        return None
    one_step_range = 2 * math.log1p(q * math.expm1(largest))
    composed = one_step_range if steps == 1 else 2 * rdp_route(mechanism, COMPOSED_TAIL) + one_step_range
    if not math.isfinite(composed):
        return None
    finest = _DEFAULT_GRID
    deviation = coin * shift * q * math.sqrt(math.expm1(1 / (z * z)))
    while math.sqrt(steps * rounds) * finest > 2e-3 and finest > 0.1 * deviation:
        finest /= 10
    grid = max(finest, one_step_range / _MAX_STEP_CELLS, composed / MAX_CELLS)
    return grid if grid <= MAX_GRID else None


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
        pessimistic: An upper bound by connecting the dots; False: a lower bound by rounding down.

    Returns:
        The bound; from above it is inf where epsilon would be over 700.

    Guarantees:
        Rounding in the Fourier transform does not turn the upper bound into an under-estimate.
    """
    slack = rounding_delta(mechanism.steps)
    return max(
        bounded_epsilon(
            one_step(mechanism, grid, direction, pessimistic=pessimistic).composed(mechanism.steps), delta, slack
        )
        for direction in directions(mechanism)
    )


def bounded_epsilon(losses: Losses, delta: float, slack: float) -> float:
    """Epsilon of a distribution that rounding may have moved by ``slack`` of delta.

    Raises:
        AccountingError: the distribution has masses that are no numbers.
    """
    if not math.isfinite(losses.infinity + float(losses.masses.sum())):
        raise AccountingError(f"a privacy loss distribution on a grid of {losses.grid} has masses that are no numbers")
    return losses.epsilon(delta - slack if losses.pessimistic else delta + slack)


def gaussian_bounds(mu: float, delta: float, grid: float) -> tuple[float, float]:
    """Epsilon of a Gaussian mechanism from above and from below, by its loss rounded up and down to a grid.

    The loss is normal with mean ``mu**2 / 2`` and deviation mu. Nothing but the normal distribution function goes in,
    so this is a check of the closed form; it takes milliseconds.

    Args:
        mu: Sensitivity over standard deviation, up to 25.
        delta: In (0, 1), 1e-12 or more.
        grid: Distance between losses.

    Guarantees:
        The two are within two grid steps, with the exact value between them.
    """
    from scipy.special import ndtr  # noqa: PLC0415 - 0.3 s to import

    mean = mu * mu / 2
    lowest = math.floor((mean - 11 * mu) / grid)
    edges = np.arange(lowest, math.ceil((mean + 11 * mu) / grid) + 1) * grid
    beyond = ndtr((mean - edges) / mu)
    masses = -np.diff(beyond)
    lowest_mass = np.append(1 - beyond[0], np.zeros(len(masses) - 1))
    above = Losses(grid, lowest + 1, masses + lowest_mass, float(beyond[-1]), pessimistic=True)
    below = Losses(grid, lowest, masses, 0.0, pessimistic=False)
    return bounded_epsilon(above, delta, _NORMAL_ERROR), bounded_epsilon(below, delta, _NORMAL_ERROR)
