"""Discrete Gaussian samples from exact tables and an AES-256-CTR keystream.

``D(sigma)`` is the law on the integers with ``P(x)`` proportional to ``exp(-x**2 / (2 sigma**2))``. Notation: ``M``
is the magnitude of a sample, ``F`` its distribution function, ``T = floor(13 sigma)`` the tail.

* One level. A table holds ``round(2**128 F(m))``; with ``U`` uniform on 128 bits, ``M`` is the number of entries
  ``<= U``. The weight of zero is counted once and that of every other magnitude twice, so a fair sign makes the law
  symmetric and an ignored sign of zero costs nothing.
* Two levels, for large sigma: ``X = K X1 + X0`` with ``X1 ~ D(sigma1)``, ``X0 ~ D(sigma0)`` and
  ``sigma**2 = K**2 sigma1**2 + sigma0**2`` exactly (rational arithmetic). Completing the square leaves a sum over a
  lattice that Poisson summation shows to be constant to ``4.5 exp(-2 pi**2 rho**2)``, ``rho = sigma0 sigma1 / sigma``;
  ``sigma0 >= 2.2 K`` and ``sigma1 >= 18`` make that less than ``2**-132``.

docs/privacy.md has the proofs and adds up the error: less than ``2**-100`` in total variation for each sample, for a
uniform keystream. The running time depends on the samples (table look-ups), so it is not constant-time.

Sources: [CKS20] for the law, [MW17] for combining levels, [CA74] for the guide table.
"""

import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from privacy.errors import SamplerError

MIN_SIGMA: Final = 8.0
MAX_SIGMA: Final = 1e8
TAIL_SIGMAS: Final = 13
KEY_LENGTH: Final = 32

_SINGLE_LEVEL_MAX: Final = 1024.0  # above it two small tables beat one that leaves the cache
_SIGMA0_PER_K: Final = Fraction(9, 4)  # sigma0 / K; anything >= 2.2 keeps the lattice sum flat
_ENTRY_BITS: Final = 128
_WORK_BITS: Final = 320  # fixed-point bits of the weights: 192 more than an entry shows
_DECIMAL_DIGITS: Final = 120
_CHUNK: Final = 1 << 16  # samples worked on at a time: 512 KiB of keystream stays in the cache
_CELLS_PER_SIGMA: Final = 64
_GUIDE_BITS: Final = (12, 18)  # least and most; 2**18 int32 cells are 1 MiB

# Each level draws from three keystream lanes that never share a counter block.
_LANES_PER_LEVEL: Final = 3
_HIGH, _LOW, _SIGN = range(_LANES_PER_LEVEL)


class _Table(NamedTuple):
    """The folded law of one level.

    Attributes:
        high: ``uint64 (m,)``, upper halves of the cumulative entries, ascending.
        low: ``uint64 (m,)``, lower halves.
        guide: ``int32 (2**bits,)``: the magnitude shared by every high word in this cell, -1 where it is not unique.
        shift: Bits to drop from a high word to find its cell.
    """

    high: npt.NDArray[np.uint64]
    low: npt.NDArray[np.uint64]
    guide: npt.NDArray[np.int32]
    shift: np.uint64

    def magnitudes(self, words: npt.NDArray[np.uint64], low_word: Callable[[int], int]) -> npt.NDArray[np.int32]:
        """Count the entries that do not exceed each 128-bit uniform.

        Args:
            words: ``uint64 (n,)``, the upper halves of the uniforms.
            low_word: Gives the lower half of uniform ``i``. Asked only when the upper half equals an entry's.

        Returns:
            ``int32 (n,)``.
        """
        magnitude = self.guide[(words >> self.shift).astype(np.intp)]
        unsettled = np.flatnonzero(magnitude < 0)
        keys = words[unsettled]
        right = np.searchsorted(self.high, keys, side="right")
        magnitude[unsettled] = right
        # right == 0 reads the last entry, which is then larger than the key: no tie.
        for tie in np.flatnonzero(self.high[right - 1] == keys):
            left = int(np.searchsorted(self.high, keys[tie], side="left"))
            index = int(unsettled[tie])
            low = np.uint64(low_word(index))
            magnitude[index] = left + int(np.searchsorted(self.low[left : right[tie]], low, side="right"))
        return magnitude


def _cumulative(variance: Fraction, tail: int) -> list[int]:
    """Tabulate the folded law of ``D(sqrt(variance))`` on ``0..tail``.

    Weights follow ``w(k+1) = w(k) g(k)``, ``g(k+1) = g(k) exp(-1/variance)`` in 320-bit fixed point. In units of
    ``2**-320`` the factor g(k) is off by at most 2k + 1, a weight by ``2 variance + 2k``, and the total by 2k times that:
    less than ``2**-260`` for the largest table, so the entries are exact but for their own rounding.

    Returns:
        ``round(2**128 F(m))`` for m = 0, 1, ... while it is below ``2**128``; at most ``tail`` entries.
    """
    with localcontext() as context:
        context.prec = _DECIMAL_DIGITS
        root = (Decimal(-variance.denominator) / Decimal(2 * variance.numerator)).exp()
        one = Decimal(1 << _WORK_BITS)
        growth, ratio = int(root * one), int(root * root * one)
    weight = 1 << _WORK_BITS
    total = weight
    partial = [total]
    for _ in range(tail):
        weight = (weight * growth) >> _WORK_BITS
        growth = (growth * ratio) >> _WORK_BITS
        total += 2 * weight
        partial.append(total)
    # 2**128 itself is dropped: no 128-bit uniform reaches it, and the tail beyond is below one unit.
    entries = (((value << (_ENTRY_BITS + 1)) + total) // (2 * total) for value in partial[:-1])
    return [entry for entry in entries if entry < 1 << _ENTRY_BITS]


def _table(variance: Fraction) -> _Table:
    """Build the table of ``D(sqrt(variance))`` conditioned on 13 standard deviations, with its guide."""
    tail = math.isqrt(int(TAIL_SIGMAS * TAIL_SIGMAS * variance))
    entries = _cumulative(variance, tail)
    halves = np.frombuffer(b"".join(entry.to_bytes(16, "little") for entry in entries), dtype="<u8").reshape(-1, 2)
    high = np.ascontiguousarray(halves[:, 1], dtype=np.uint64)
    low = np.ascontiguousarray(halves[:, 0], dtype=np.uint64)
    least, most = _GUIDE_BITS
    bits = min(most, max(least, math.ceil(math.log2(_CELLS_PER_SIGMA * math.sqrt(variance)))))
    shift = np.uint64(64 - bits)
    starts = np.arange(1 << bits, dtype=np.uint64) << shift
    below = np.searchsorted(high, starts, side="left")
    above = np.append(below[1:], len(high))
    guide = np.where(below == above, below, -1).astype(np.int32)
    return _Table(high, low, guide, shift)


@lru_cache(maxsize=16)
def _levels(sigma: float) -> tuple[tuple[int, _Table], ...]:
    """Split ``D(sigma)`` into levels ``(scale, table)``; the sample is the sum of ``scale`` times each level's."""
    variance = Fraction(sigma) ** 2
    if sigma <= _SINGLE_LEVEL_MAX:
        return ((1, _table(variance)),)
    scale = round(math.sqrt(sigma / float(_SIGMA0_PER_K)))
    variance0 = (_SIGMA0_PER_K * scale) ** 2
    variance1 = (variance - variance0) / scale**2
    return ((scale, _table(variance1)), (1, _table(variance0)))


def _lane(key: bytes, lane: int, block: int = 0) -> CipherContext:
    """Open an AES-256-CTR keystream at a counter block; lanes are 2**64 blocks apart."""
    nonce = lane.to_bytes(8, "big") + block.to_bytes(8, "big")
    return Cipher(algorithms.AES(key), modes.CTR(nonce)).encryptor()


def coins(key: bytes, rate: float, count: int) -> npt.NDArray[np.bool_]:
    """Flip coins that fall with one probability each, independently: word i of a keystream below ``rate * 2**64``.

    Args:
        key: ``KEY_LENGTH`` secret bytes that nothing else is drawn from.
        rate: In (0, 1].
        count: How many.

    Returns:
        ``bool (count,)``; coin i depends on the key, the rate and i alone.

    Raises:
        SamplerError: the rate is out of range, or the count is negative.

    Guarantees:
        For a uniform keystream each coin's probability is ``rate`` rounded down to a multiple of 2**-64: never above it.
    """
    if not 0 < rate <= 1 or count < 0:  # NaN fails too
        raise SamplerError(f"{count} coins of rate {rate}: the rate is not in (0, 1], or the count is negative")
    words = np.frombuffer(_lane(key, 0).update(bytes(8 * count)), "<u8")
    most = int(Fraction(rate) * (1 << 64)) - 1
    if most < 0:
        return np.zeros(count, np.bool_)
    return np.asarray(words <= np.uint64(most))


def _low_word(key: bytes, lane: int, index: int) -> int:
    """Read the 64-bit little-endian word at ``index`` of a lane without expanding what lies before it."""
    block = _lane(key, lane, index // 2).update(bytes(16))
    return int.from_bytes(block[8 * (index % 2) :][:8], "little")


def _add_level(out: npt.NDArray[np.int64], scale: int, table: _Table, key: bytes, first_lane: int) -> None:
    """Add ``scale`` times one level's samples to ``out (n,)`` in place."""
    high = _lane(key, first_lane + _HIGH)
    sign = _lane(key, first_lane + _SIGN)
    zeros = bytes(8 * _CHUNK)
    stream = np.empty(8 * _CHUNK + 15, dtype=np.uint8)
    for start in range(0, len(out), _CHUNK):
        part = out[start : start + _CHUNK]
        count = len(part)

        def low_word(index: int, start: int = start) -> int:
            return _low_word(key, first_lane + _LOW, start + index)

        high.update_into(memoryview(zeros)[: 8 * count], stream.data)
        magnitude = table.magnitudes(stream[: 8 * count].view("<u8"), low_word)
        bits = np.frombuffer(sign.update(zeros[: (count + 7) // 8]), dtype=np.uint8)
        factor = np.array([scale, -scale], dtype=np.int64)[np.unpackbits(bits, count=count, bitorder="little")]
        factor *= magnitude
        part += factor


class DiscreteGaussian:
    """Sampler of ``D(sigma)`` for a real-valued sigma; tables are built once for each sigma and kept.

    Args:
        sigma: Parameter in grid units, ``8 <= sigma <= 1e8``. Used as given, never rounded.

    Attributes:
        sigma: The parameter.
        tail: ``floor(13 sigma)``; no sample is larger in magnitude.

    Raises:
        SamplerError: sigma is outside the range, or not finite.

    Guarantees:
        Each sample is within ``2**-100`` of ``D(sigma)`` in total variation, for a uniform keystream.
        Samples depend on (sigma, key, position) only, on every platform and for every length.
        No two positions, levels or uses within a sample share keystream bits.
    """

    def __init__(self, sigma: float) -> None:
        if not MIN_SIGMA <= sigma <= MAX_SIGMA:  # NaN fails too
            raise SamplerError(f"sigma = {sigma} grid units is outside [{MIN_SIGMA:g}, {MAX_SIGMA:g}]")
        self.sigma = float(sigma)
        self.tail = math.floor(TAIL_SIGMAS * Fraction(self.sigma))
        self._levels = _levels(self.sigma)

    def __repr__(self) -> str:
        return f"DiscreteGaussian(sigma={self.sigma!r})"

    def sample(self, key: bytes, length: int) -> npt.NDArray[np.int64]:
        """Draw independent samples.

        Args:
            key: 32 bytes, uniform and secret, used for this call only.
            length: Number of samples.

        Returns:
            ``int64 (length,)``, each in ``[-tail, tail]``.

        Raises:
            SamplerError: the key is not 32 bytes, or the length is negative.
        """
        if len(key) != KEY_LENGTH:
            raise SamplerError(f"a noise key has {KEY_LENGTH} bytes, not {len(key)}")
        if length < 0:
            raise SamplerError(f"cannot draw {length} samples")
        out = np.zeros(length, dtype=np.int64)
        for level, (scale, table) in enumerate(self._levels):
            _add_level(out, scale, table, key, _LANES_PER_LEVEL * level)
        return np.clip(out, -self.tail, self.tail, out=out)
