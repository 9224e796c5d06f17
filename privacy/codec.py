"""Float vectors to integers and back, with bounds that hold in integer arithmetic.

``GridCodec`` clips to an L2 norm and certifies it on the integers, so the sensitivity does not rest on floating point.
``FixedPoint`` carries values without a privacy claim and bounds each coordinate.

Notation: d coordinates, clip norm C, G grid steps per C. Rounding to nearest moves a vector by at most sqrt(d) / 2
steps, so a vector of norm at most ``C (1 - sqrt(d) / 2G)`` lands within G steps; floats may break that by a hair, the
integer check finds it, and the vector is shrunk and rounded again.

Sources: [KLS21] for rounding before an integer mechanism, [Mir12] for what floating point does to a guarantee.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from privacy.errors import InputError, PlanError

MAX_GRID: Final = 1 << 30  # squares stay below 2**60
MAX_DIMENSION: Final = (1 << 31) - 1  # the halves of a sum of squares stay below 2**63
MAX_FIXED: Final = 1 << 62

_FIRST_SHRINK: Final = 2.0**-40  # far above float64 rounding, far below a grid step
_GROUP: Final = 1 << 19  # coordinates worked on at a time; 4 MiB of float64
_LOW_32: Final = (1 << 32) - 1

Leaves = Sequence[tuple[str, int]]


@dataclass(frozen=True)
class GridCodec:
    """Clip to norm C and round to the grid of C / G, certified on the integers.

    Args:
        clip: C, the L2 norm that a vector is clipped to, positive.
        grid: G, grid steps per clip norm, 1 to 2**30.
        dimension: d, coordinates of a vector.

    Raises:
        PlanError: an argument is out of range, or sqrt(d) / 2 >= G so that rounding alone may pass the bound.

    Guarantees:
        The squares of every encoded vector sum to at most grid**2, in integer arithmetic, whatever the floats did.
        Row i of ``encode_records`` depends on row i and its present flag only, bit for bit.
        A vector of norm at most ``C (1 - sqrt(d) / 2G)`` moves by at most half a grid step a coordinate; a longer one
        keeps a norm of at least G - sqrt(d) steps, but for float rounding.
        A non-finite update is refused by leaf name; a non-finite or absent record counts as zero.
    """

    clip: float
    grid: int
    dimension: int

    def __post_init__(self) -> None:
        if not 0 < self.clip < math.inf:
            raise PlanError(f"clip = {self.clip} is not positive and finite")
        if not isinstance(self.grid, int) or not 1 <= self.grid <= MAX_GRID:
            raise PlanError(f"grid = {self.grid} is not an integer in [1, {MAX_GRID}]")
        _check_dimension(self.dimension)
        if self.dimension >= 4 * self.grid**2:
            raise PlanError(
                f"grid = {self.grid} is too coarse for {self.dimension} coordinates: sqrt(d) / 2 must be below it"
            )

    def encode_update(self, vector: npt.ArrayLike, leaves: Leaves = ()) -> npt.NDArray[np.int64]:
        """Encode one site's update.

        Args:
            vector: Floating point ``(d,)``; 0-d counts as ``(1,)``.
            leaves: Name and size of each leaf, in the vector's order, to name one in an error.

        Returns:
            ``int64 (d,)``, grid units.

        Raises:
            InputError: wrong shape or dtype, or a value that is not finite; the message names the leaf.
        """
        update = _update(vector, self.dimension, leaves)
        return self._encode(update.reshape(1, -1)).reshape(-1)

    def encode_records(self, rows: npt.ArrayLike, present: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Encode one vector for each record.

        Args:
            rows: Floating point ``(k, d)``.
            present: Boolean ``(k,)``; False where a slot holds no record.

        Returns:
            ``int64 (k, d)``, grid units; zeros where the record is absent or not finite.

        Raises:
            InputError: wrong shape or dtype. Never for a value, which would reveal a record.
        """
        table = _floating(rows, "the records")
        flags = np.asarray(present)
        if table.ndim != 2 or table.shape[1] != self.dimension:
            raise InputError(f"the records have shape {table.shape}, expected (k, {self.dimension})")
        if flags.dtype != np.bool_ or flags.shape != table.shape[:1]:
            raise InputError(f"the present flags are {flags.dtype} {flags.shape}, expected bool ({table.shape[0]},)")
        out = np.empty(table.shape, dtype=np.int64)
        step = max(1, _GROUP // self.dimension)
        for start in range(0, len(table), step):
            group = _float64(table[start : start + step])
            valid = flags[start : start + step] & np.isfinite(group).all(axis=1)
            out[start : start + step] = self._encode(np.where(valid[:, np.newaxis], group, 0.0))
        return out

    def decode(self, total: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Turn a sum of encoded vectors, noise included, into the update's units.

        Args:
            total: Integer ``(d,)``, grid units.

        Returns:
            ``float64 (d,)``: total * clip / grid.

        Raises:
            InputError: wrong shape or dtype.
        """
        return _integers(total, self.dimension).astype(np.float64) / self.grid * self.clip

    def _encode(self, rows: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Encode finite ``float64 (k, d)``.

        Row independence: every operation is elementwise and correctly rounded, or a maximum, or an integer sum, or
        the fixed tree of ``_row_sums``. A library reduction of floats would change its order with the shape.
        """
        peak = np.abs(rows).max(axis=1)
        unit = rows / np.where(peak > 0, peak, 1.0)[:, np.newaxis]
        norm = np.sqrt(_row_sums(unit * unit))
        norm[peak == 0] = 1.0
        with np.errstate(over="ignore"):  # an infinite factor loses to the clip below
            unclipped = peak / self.clip * self.grid
        limit = self.grid - math.sqrt(self.dimension) / 2
        shrink = _FIRST_SHRINK
        out = np.empty(rows.shape, dtype=np.int64)
        pending = np.arange(len(rows))
        while pending.size:
            factor = np.minimum(unclipped, limit / norm)[pending]
            rounded = np.rint(unit[pending] * factor[:, np.newaxis]).astype(np.int64)
            out[pending] = rounded
            pending = pending[~_within(rounded, self.grid)]
            limit *= 1.0 - shrink
            shrink = min(2.0 * shrink, 1.0)  # in the end the limit is 0 and the vector zero: the loop ends
        return out


@dataclass(frozen=True)
class FixedPoint:
    """Round to multiples of ``2**-fraction_bits``: an encoding without a privacy claim.

    Args:
        limit: Largest magnitude of a value, positive.
        fraction_bits: Bits after the binary point, at least 0.
        dimension: d, coordinates of a vector.

    Attributes:
        bound: Largest magnitude of an encoded coordinate.

    Raises:
        PlanError: an argument is out of range, or ``limit * 2**fraction_bits`` is 2**62 or more.

    Guarantees:
        No encoded coordinate is larger in magnitude than ``bound``.
        Decoding an encoded vector changes a value by at most ``2**-(fraction_bits + 1)``.
    """

    limit: float
    fraction_bits: int
    dimension: int

    def __post_init__(self) -> None:
        if not 0 < self.limit < math.inf:
            raise PlanError(f"limit = {self.limit} is not positive and finite")
        if not 0 <= self.fraction_bits < 62:
            raise PlanError(f"fraction_bits = {self.fraction_bits} is not in [0, 61]")
        _check_dimension(self.dimension)
        if self.limit >= math.ldexp(1.0, 62 - self.fraction_bits):
            raise PlanError(f"limit = {self.limit} with {self.fraction_bits} fraction bits does not fit 62 bits")

    @property
    def bound(self) -> int:
        """Largest magnitude of an encoded coordinate."""
        return round(math.ldexp(self.limit, self.fraction_bits))

    def encode(self, vector: npt.ArrayLike, leaves: Leaves = ()) -> npt.NDArray[np.int64]:
        """Encode a vector.

        Args:
            vector: Floating point ``(d,)``; 0-d counts as ``(1,)``.
            leaves: Name and size of each leaf, in the vector's order, to name one in an error.

        Returns:
            ``int64 (d,)``, units of ``2**-fraction_bits``, rounded to nearest.

        Raises:
            InputError: wrong shape or dtype, or a value that is not finite or beyond the limit; names the leaf.
        """
        values = _update(vector, self.dimension, leaves)
        beyond = np.flatnonzero(np.abs(values) > self.limit)
        if beyond.size:
            raise InputError(f"{_place(leaves, int(beyond[0]))}: a magnitude above the limit of {self.limit:g}")
        return np.rint(np.ldexp(values, self.fraction_bits)).astype(np.int64)

    def decode(self, total: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Turn a sum of encoded vectors into the vector's units.

        Args:
            total: Integer ``(d,)``.

        Returns:
            ``float64 (d,)``: total * 2**-fraction_bits.

        Raises:
            InputError: wrong shape or dtype.
        """
        return np.ldexp(_integers(total, self.dimension).astype(np.float64), -self.fraction_bits)


def _row_sums(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sum each row of ``(k, d)``, which is used up, in an order that depends on d only."""
    width = values.shape[1]
    while width > 1:
        half = width // 2
        values[:, :half] += values[:, width - half : width]
        width -= half
    return values[:, 0]


def _within(rows: npt.NDArray[np.int64], grid: int) -> npt.NDArray[np.bool_]:
    """Check the certificate of each row of ``int64 (k, d)``: sum of squares at most grid**2, without overflow."""
    inside = np.abs(rows).max(axis=1) <= grid
    squares = rows * rows  # exact where inside
    if rows.shape[1] * grid**2 < 1 << 63:
        small = squares.sum(axis=1) <= grid**2
    else:
        low = (squares & _LOW_32).sum(axis=1)
        high = (squares >> 32).sum(axis=1) + (low >> 32)
        grid_high, grid_low = divmod(grid**2, 1 << 32)
        small = (high < grid_high) | ((high == grid_high) & ((low & _LOW_32) <= grid_low))
    within: npt.NDArray[np.bool_] = inside & small
    return within


def _update(vector: npt.ArrayLike, dimension: int, leaves: Leaves) -> npt.NDArray[np.float64]:
    """Bring one vector to finite ``float64 (dimension,)`` or say what is wrong and where."""
    if leaves and sum(size for _, size in leaves) != dimension:
        raise InputError(f"the leaves hold {sum(size for _, size in leaves)} values, expected {dimension}")
    values = _float64(_one_dimensional(_floating(vector, "the update"), dimension, "the update"))
    wrong = np.flatnonzero(~np.isfinite(values))
    if wrong.size:
        raise InputError(f"{_place(leaves, int(wrong[0]))}: not finite ({wrong.size} such values in the update)")
    return values


def _place(leaves: Leaves, index: int) -> str:
    """Name the leaf and the element in it that position ``index`` of the vector belongs to."""
    start = 0
    for name, size in leaves:
        if index < start + size:
            return f"leaf {name!r}, element {index - start}"
        start += size
    return f"element {index}"


def _floating(array: npt.ArrayLike, what: str) -> npt.NDArray[Any]:
    """Accept NumPy's floating types and the small ones that JAX registers (bfloat16, float8), nothing else."""
    values = np.asarray(array)
    if values.dtype.kind != "f" and not values.dtype.name.startswith(("bfloat16", "float8")):
        raise InputError(f"{what}: dtype {values.dtype.name}; only floating-point values are clipped and encoded")
    return values


def _float64(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    with np.errstate(over="ignore"):  # a longdouble beyond float64 becomes inf and is treated as such
        return values.astype(np.float64)


def _integers(total: npt.ArrayLike, dimension: int) -> npt.NDArray[np.int64]:
    values = np.asarray(total)
    if values.dtype.kind != "i":
        raise InputError(f"the sum: dtype {values.dtype.name}, expected signed integers")
    return _one_dimensional(values, dimension, "the sum").astype(np.int64, copy=False)


def _one_dimensional(values: npt.NDArray[Any], dimension: int, what: str) -> npt.NDArray[Any]:
    flat = values.reshape(1) if values.ndim == 0 else values
    if flat.shape != (dimension,):
        raise InputError(f"{what} has shape {values.shape}, expected ({dimension},)")
    return flat


def _check_dimension(dimension: int) -> None:
    if not isinstance(dimension, int) or not 1 <= dimension <= MAX_DIMENSION:
        raise PlanError(f"dimension = {dimension} is not an integer in [1, {MAX_DIMENSION}]")
