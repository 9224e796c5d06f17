"""Shamir's secret sharing [Sha79] over p = 2**31 - 1, all secrets of a dealer in one matrix product.

A 32-byte secret is read as one little-endian integer and cut into eight limbs of 29 bits and a ninth of 24, each shared by its own polynomial.
The shares are a Vandermonde matrix times the coefficients, computed in float64 without any rounding: the coefficients are cut into pieces of
w bits with 31 + w + ⌈log2 t⌉ ≤ 53, so every sum of t products is an integer that float64 holds, whatever the order of the additions.
There is no table and no branch that a secret selects.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from secagg.crypto.kdf import Entropy, draw
from secagg.errors import DecodeError, InputError, ShareError

PRIME = 2**31 - 1
LIMBS = 9
LIMB_BITS = 29
SECRET_LENGTH = 32
SHARE_LENGTH = 4 * LIMBS
_LAST_LIMB_BITS = 8 * SECRET_LENGTH - LIMB_BITS * (LIMBS - 1)
_MANTISSA_BITS = 53
# Pieces of fewer than 4 bits would work, but nobody needs a threshold above 2**18.
_MAX_THRESHOLD = 2**18


def share(secrets: Sequence[bytes], threshold: int, points: Sequence[int], entropy: Entropy) -> npt.NDArray[np.uint32]:
    """Deal shares of some secrets, any `threshold` of which give them back.

    The entropy is read as u32 little-endian words, the top bit dropped: first one word for every coefficient, in the order (power 1 … t - 1,
    secret, limb); then, as long as a word equals p, one more for each such coefficient in the same order.

    Args:
        secrets: 32 bytes each.
        threshold: t, at least 2.
        points: The holders' x-coordinates, distinct, in [1, p).
        entropy: Where the coefficients come from.

    Returns:
        uint32 `(len(secrets), len(points), 9)`, every limb in [0, p).

    Raises:
        InputError: An argument of our caller is not of this kind, or the entropy source ran short.

    Guarantees:
        Any t of the shares give the secret back.
        Fewer than t shares are independent of the secret.
    """
    if any(len(secret) != SECRET_LENGTH for secret in secrets):
        raise InputError(f"a shared secret has {SECRET_LENGTH} bytes")
    if not 2 <= threshold <= min(len(points), _MAX_THRESHOLD):
        raise InputError(f"a threshold of {threshold} is not in [2, {min(len(points), _MAX_THRESHOLD)}]")
    if not _distinct_points(points):
        raise InputError("share points must be distinct and in [1, p)")
    columns = len(secrets) * LIMBS
    coefficients = np.empty((threshold, columns), np.uint32)
    coefficients[0] = [limb for secret in secrets for limb in _to_limbs(secret)]
    coefficients[1:] = _uniform((threshold - 1) * columns, entropy).reshape(threshold - 1, columns)
    width = _MANTISSA_BITS - 31 - (threshold - 1).bit_length()
    mask = np.uint32(2**width - 1)
    pieces = np.concatenate([coefficients >> shift & mask for shift in range(0, 31, width)], axis=1, dtype=np.float64)
    partial = (_vandermonde(tuple(points), threshold) @ pieces).astype(np.int64) % PRIME
    partial = partial.reshape(len(points), -1, columns)
    total = partial[:, -1]
    for piece in reversed(range(partial.shape[1] - 1)):
        total = ((total << width) + partial[:, piece]) % PRIME
    return np.ascontiguousarray(total.reshape(len(points), -1, LIMBS).transpose(1, 0, 2), np.uint32)


def reconstruct(points: Sequence[int], shares: npt.NDArray[np.uint32]) -> bytes:
    """The secret that these shares determine, by Lagrange interpolation at 0.

    Args:
        points: The holders' x-coordinates; exactly as many as the threshold.
        shares: uint32 `(len(points), 9)`.

    Returns:
        32 bytes.

    Raises:
        ShareError: The points or the shares are malformed, or the result is no 32-byte secret: the dealer's fault if each share
            is the one that the dealer committed to.
    """
    if shares.shape != (len(points), LIMBS) or shares.dtype != np.uint32:
        raise ShareError(
            f"{len(points)} points need uint32 shares of shape ({len(points)}, 9), not {shares.dtype} {shares.shape}"
        )
    if not points or not _distinct_points(points):
        raise ShareError("share points must be distinct and in [1, p), and at least one")
    outside = np.flatnonzero((shares >= PRIME).any(axis=1))
    if outside.size:
        raise ShareError(f"the share at point {points[outside[0]]} has a limb outside [0, p)")
    secret = reconstruct_many([tuple(points)], shares[np.newaxis])[0]
    if secret is None:
        raise ShareError("these shares are of no 32-byte secret: a limb is out of range")
    return secret


def reconstruct_many(points: Sequence[tuple[int, ...]], shares: npt.NDArray[np.uint32]) -> list[bytes | None]:
    """The secrets of many owners at once: `reconstruct` for each, the weights of all holder sets in one computation.

    Args:
        points: For each owner its holders' x-coordinates, t of them, distinct and in [1, p).
        shares: uint32 `(len(points), t, 9)`, every limb in [0, p).

    Returns:
        32 bytes an owner; None where the shares are of no 32-byte secret.
    """
    sets: dict[tuple[int, ...], int] = {}
    which = [sets.setdefault(holders, len(sets)) for holders in points]
    if not which:
        return []
    weights = _weights(np.array(list(sets), np.uint64))[which]
    products = weights[:, :, np.newaxis] * shares % np.uint64(PRIME)
    return [_from_limbs(limbs) for limbs in (products.sum(axis=1) % np.uint64(PRIME)).tolist()]


def encode_share(limbs: npt.NDArray[np.uint32]) -> bytes:
    """Nine limbs as u32 little-endian, 36 bytes.

    Raises:
        InputError: Our caller's array is no share.
    """
    if limbs.shape != (LIMBS,) or limbs.dtype != np.uint32 or (limbs >= PRIME).any():
        raise InputError("a share is nine uint32 limbs in [0, p)")
    return limbs.astype("<u4").tobytes()


def decode_share(data: bytes) -> npt.NDArray[np.uint32]:
    """The nine limbs of an encoded share, uint32 `(9,)`.

    Raises:
        DecodeError: It has another length, or a limb outside [0, p).
    """
    if len(data) != SHARE_LENGTH:
        raise DecodeError(f"a share has {SHARE_LENGTH} bytes, not {len(data)}")
    limbs = decode_shares(data)
    if (limbs >= PRIME).any():
        raise DecodeError("a share has a limb outside [0, p)")
    return limbs.reshape(LIMBS)


def decode_shares(data: bytes) -> npt.NDArray[np.uint32]:
    """The limbs of shares that stand side by side, uint32 `(len(data) // 36, 9)`, their range not checked."""
    return np.frombuffer(data, "<u4").astype(np.uint32).reshape(-1, LIMBS)


def _to_limbs(secret: bytes) -> list[int]:
    value = int.from_bytes(secret, "little")
    return [(value >> (LIMB_BITS * place)) & (2**LIMB_BITS - 1) for place in range(LIMBS)]


def _from_limbs(limbs: list[int]) -> bytes | None:
    if max(limbs[:-1]) >> LIMB_BITS or limbs[-1] >> _LAST_LIMB_BITS:
        return None
    return sum(limb << (LIMB_BITS * place) for place, limb in enumerate(limbs)).to_bytes(SECRET_LENGTH, "little")


def _uniform(count: int, entropy: Entropy) -> npt.NDArray[np.uint32]:
    """`count` integers uniform in [0, p): 31 random bits each, p itself drawn again."""
    values = _draw_31_bits(count, entropy)
    while (rejected := np.flatnonzero(values == PRIME)).size:
        values[rejected] = _draw_31_bits(rejected.size, entropy)
    return values


def _draw_31_bits(count: int, entropy: Entropy) -> npt.NDArray[np.uint32]:
    return np.frombuffer(draw(entropy, 4 * count), "<u4") & np.uint32(2**31 - 1)


def _distinct_points(points: Sequence[int]) -> bool:
    return len(set(points)) == len(points) and all(0 < point < PRIME for point in points)


# All dealers of a complete graph share one set of points; on a sparse graph there is nothing to reuse.
@lru_cache(maxsize=8)
def _vandermonde(points: tuple[int, ...], threshold: int) -> npt.NDArray[np.float64]:
    """The powers 0 … t - 1 of the points modulo p, float64 `(len(points), t)`."""
    powers = np.ones((len(points), threshold), np.uint64)
    filled, factor = 1, np.array(points, np.uint64)[:, np.newaxis]
    while filled < threshold:
        block = powers[:, filled : 2 * filled]
        block[:] = powers[:, : block.shape[1]] * factor % np.uint64(PRIME)
        filled, factor = 2 * filled, factor * factor % np.uint64(PRIME)
    matrix = powers.astype(np.float64)
    matrix.flags.writeable = False
    return matrix


def _weights(points: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The Lagrange weights at 0 of each row of points, uint64 `(rows, t)`: Π_{j ≠ i} x_j / (x_j - x_i) modulo p."""
    p, count = np.uint64(PRIME), points.shape[1]
    numerator = np.ones(len(points), np.uint64)
    denominators = points.copy()  # x_i · Π_{j ≠ i} (x_j - x_i), so that the numerator is the same for all i
    for j in range(count):
        column = points[:, j]
        numerator = numerator * column % p
        difference = (column[:, np.newaxis] + p - points) % p
        difference[:, j] = 1
        denominators = denominators * difference % p
    # One modular inverse a row: prefix[i] is the product of the denominators before i.
    prefix = np.ones((count + 1, len(points)), np.uint64)
    for i in range(count):
        prefix[i + 1] = prefix[i] * denominators[:, i] % p
    inverse = np.array([pow(product, -1, PRIME) for product in prefix[count].tolist()], np.uint64)
    weights = np.empty_like(points)
    for i in reversed(range(count)):
        weights[:, i] = inverse * prefix[i] % p * numerator % p
        inverse = inverse * denominators[:, i] % p
    return weights
