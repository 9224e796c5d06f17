"""A clip norm that follows a quantile of the unclipped norms, through the same integer sum [ATMR21].

Each contribution (a record's, or a client's) has one bit beside its vector: whether its norm is at most the clip norm C of
this round. The bit travels as one more coordinate of the clipped vector, ``+B`` steps for yes and ``-B`` for no, B a public
integer; who is absent, or zeroed out, adds 0. So one contribution moves the sum by at most ``sqrt(G**2 + B**2)`` steps (a
plan takes the next whole number), and the one discrete Gaussian that covers the vector covers the bit too: a round is one
Gaussian release, and the accounting of a plan does not change.

That is the paper's split of the noise. A bit minus one half is B steps over 2B, so the noise on their sum, counted in
contributions, is ``s = sigma / 2B``. With z the noise over the joint sensitivity and z_v the noise over the clip norm
alone, ``sigma = z sqrt(G**2 + B**2) = z_v G``, and so::

    z**-2 = (G**2 + B**2) / sigma**2 = z_v**-2 + (2 s)**-2,      z_v = (z**-2 - (2 s)**-2)**(-1/2).

B follows from the noise s that a plan wants on the count, ``B = G / sqrt((2 s / z)**2 - 1)``, rounded up. Where one unit
changes m contributions (replace-one, several silos), the sensitivity is m times as large, and z here m times the plan's
noise multiplier.

After the sum, everybody can compute the next clip norm, ``C exp(-eta (b - gamma))`` with b the noisy fraction that was
within C and gamma the quantile. Noise is drawn in grid steps of the C that clipped, so it belongs to that C; the next one
is post-processing. C falls when more than gamma of the norms are within it.
"""

import math
from dataclasses import asdict, dataclass, fields
from reprlib import repr as short
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from privacy.codec import GridCodec, Leaves
from privacy.errors import InputError, PlanError
from privacy.reading import check_keys, check_real

_GROUP: Final = 1 << 19  # coordinates worked on at a time; 4 MiB of float64


@dataclass(frozen=True, kw_only=True)
class AdaptiveClip:
    """How the clip norm moves; the first one is the plan's ``clip``. Everything here is public.

    Args:
        quantile: gamma in (0, 1): the fraction of contributions whose norm shall be within the clip norm.
        learning_rate: eta in (0, 1]; the paper takes 0.2.
        bit_noise: Standard deviation that the floor's noise may have in the sum of bits, counted in contributions;
            above half of noise_multiplier times the contributions that one unit changes. The paper takes a twentieth
            of `expected`.
        expected: Public number of contributions in a sum. Where it is off, gamma = 1/2 is still met, other quantiles
            are not.
        min_clip: Least clip norm, positive.
        max_clip: Largest clip norm.

    Raises:
        PlanError: a field is not a number in its range.

    Guarantees:
        `next_clip` stays in [min_clip, max_clip], and within a factor ``exp(eta)`` of the clip norm it is given,
        whatever the noise.
        Without noise and with norms that do not change, it comes to the quantile from either side, and stays within
        a factor ``exp(eta max(gamma, 1 - gamma))`` of it.
    """

    quantile: float
    learning_rate: float
    bit_noise: float
    expected: float
    min_clip: float
    max_clip: float

    def __post_init__(self) -> None:
        for each in fields(self):
            value = check_real(f"adaptive.{each.name}", getattr(self, each.name))
            object.__setattr__(self, each.name, value)
        if self.quantile >= 1:
            raise PlanError(f"adaptive.quantile = {self.quantile} is not below 1")
        if self.learning_rate > 1:
            raise PlanError(f"adaptive.learning_rate = {self.learning_rate} is above 1")
        if self.min_clip >= self.max_clip:
            raise PlanError(f"adaptive.min_clip = {self.min_clip} is not below max_clip = {self.max_clip}")

    @classmethod
    def from_fields(cls, data: object) -> Self:
        """Read the ``adaptive`` object of a plan.

        Raises:
            PlanError: not an object, a key that is unknown or missing, or a value that the constructor refuses.
        """
        if not isinstance(data, dict):
            raise PlanError(f"adaptive = {short(data)} is not an object")
        check_keys(data, (each.name for each in fields(cls)), prefix="adaptive.")
        return cls(**data)

    def to_fields(self) -> dict[str, float]:
        """Return the fields as a JSON object."""
        return asdict(self)

    def bit_steps(self, grid: int, noise: float) -> int:
        """B, the grid steps by which a bit moves its coordinate from zero.

        Args:
            grid: G, grid steps per clip norm.
            noise: The floor's noise over what one contribution counts: noise multiplier times the contributions that
                a change of one unit changes.

        Raises:
            PlanError: so little noise on the bit takes more than the whole budget.

        Guarantees:
            ``noise * sqrt(G**2 + B**2) <= 2 B bit_noise``: the count is as exact as was asked for, or more.
        """
        ratio = 2 * self.bit_noise / noise
        if not ratio > 1:
            raise PlanError(
                f"adaptive.bit_noise = {self.bit_noise:g} leaves nothing for the update: it must be above half of the "
                f"noise over what one contribution counts, {noise / 2:g}"
            )
        return max(1, math.ceil(grid / math.sqrt(ratio * ratio - 1) * (1 + 2.0**-40)))

    def check_clip(self, clip: float) -> None:
        """Return if this may be a round's clip norm.

        Raises:
            PlanError: it is outside [min_clip, max_clip].
        """
        # A server names it: NaN fails too, and what is no float at all.
        if not isinstance(clip, float) or not self.min_clip <= clip <= self.max_clip:
            raise PlanError(
                f"clip = {short(clip)} is outside [{self.min_clip:g}, {self.max_clip:g}], where the plan keeps it"
            )

    def fraction(self, bits: float) -> float:
        """Fraction of the expected contributions within the clip norm, in [0, 1], from the noisy sum of bits minus one half.

        Raises:
            InputError: it is not a finite number.
        """
        if not math.isfinite(bits):
            raise InputError(f"the sum of bits is {bits}")
        return min(max(0.5 + bits / self.expected, 0.0), 1.0)

    def next_clip(self, clip: float, bits: float) -> float:
        """Clip norm of the next round.

        Args:
            clip: The one that was used in this round.
            bits: The noisy sum of bits minus one half, counted in contributions, as `AdaptiveCodec.bits`
                gives it.

        Raises:
            PlanError: the clip norm is outside its range.
            InputError: the sum of bits is not a finite number.
        """
        self.check_clip(clip)
        moved = clip * math.exp(-self.learning_rate * (self.fraction(bits) - self.quantile))
        return min(max(moved, self.min_clip), self.max_clip)


@dataclass(frozen=True)
class AdaptiveCodec:
    """A `GridCodec` at one round's clip norm, with the bit as one more coordinate.

    Args:
        grid_codec: Clips and encodes the vector of d coordinates.
        bit: B, the steps of the bit, at least 1.

    Raises:
        PlanError: the bit is not an integer of at least 1.

    Guarantees:
        The squares of every encoded vector sum to at most ``grid**2 + bit**2``, in integer arithmetic.
        The last coordinate is ``+bit`` where the norm is at most the clip norm, else ``-bit``; 0 for a record that is
        absent or not finite.
        Row i of ``encode_records`` depends on row i and its present flag only, bit for bit.
        Without noise, `bits` is the number of contributions within the clip norm minus half of all, exactly.
    """

    grid_codec: GridCodec
    bit: int

    def __post_init__(self) -> None:
        if isinstance(self.bit, bool) or not isinstance(self.bit, int) or not 1 <= self.bit < 1 << 62:
            raise PlanError(f"bit = {short(self.bit)} is not an integer in [1, 2**62)")

    @property
    def clip(self) -> float:
        """C of this round."""
        return self.grid_codec.clip

    @property
    def length(self) -> int:
        """Coordinates of an encoded vector, d + 1."""
        return self.grid_codec.dimension + 1

    def encode_update(self, vector: npt.ArrayLike, leaves: Leaves = ()) -> npt.NDArray[np.int64]:
        """Encode one site's update ``(d,)`` to ``int64 (d + 1,)``, grid units; raises as `GridCodec.encode_update`."""
        encoded = self.grid_codec.encode_update(vector, leaves)
        row = _float64(np.asarray(vector).reshape(1, -1))
        return np.append(encoded, self._signs(row)[0])

    def encode_records(self, rows: npt.ArrayLike, present: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Encode records ``(k, d)`` to ``int64 (k, d + 1)``, grid units; raises as `GridCodec.encode_records`."""
        encoded = self.grid_codec.encode_records(rows, present)
        table, flags = np.asarray(rows), np.asarray(present)
        signs = np.empty(len(table), dtype=np.int64)
        step = max(1, _GROUP // self.grid_codec.dimension)
        for start in range(0, len(table), step):
            group = _float64(table[start : start + step])
            valid = flags[start : start + step] & np.isfinite(group).all(axis=1)
            signs[start : start + step] = np.where(valid, self._signs(group), 0)
        return np.column_stack((encoded, signs))

    def decode(self, total: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Turn a sum ``(d + 1,)`` into the update's ``float64 (d,)``; raises as `GridCodec.decode`."""
        return self.grid_codec.decode(self._sum(total)[:-1])

    def bits(self, total: npt.ArrayLike) -> float:
        """Return the sum of bits minus one half, noise included, counted in contributions.

        Args:
            total: Integer ``(d + 1,)``, grid units.

        Raises:
            InputError: wrong shape or dtype.
        """
        return int(self._sum(total)[-1]) / (2 * self.bit)

    def _sum(self, total: npt.ArrayLike) -> npt.NDArray[Any]:
        values = np.asarray(total)
        if values.dtype.kind != "i" or values.shape != (self.length,):
            raise InputError(
                f"the sum is {values.dtype.name} {values.shape}, expected signed integers ({self.length},): the update "
                "and its bit"
            )
        return values

    def _signs(self, rows: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Return ``int64 (k,)``, plus or minus B, for ``(k, d)``."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # an infinite norm is above any clip norm
            unit = rows / self.clip
            # A running sum has one order by definition; a reduction of floats changes its own with the shape.
            norms = np.add.accumulate(unit * unit, axis=1)[:, -1]
        return np.where(norms <= 1.0, self.bit, -self.bit)


def _float64(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    with np.errstate(over="ignore"):  # a longdouble beyond float64 becomes inf, as in the grid codec
        return values.astype(np.float64)
