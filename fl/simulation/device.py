"""The encoders of `privacy.codec` and `privacy.adaptive` as traced JAX functions, integers bit for bit the same.

A trace cannot raise for a value, so each encoder gives a flag beside the integers: False where NumPy's raises, and then the
integers are zero. The caller leaves that client out by name, as a site that refuses its own update is left out.

Four things of a compiled program would change bits, and are kept out here. A kernel may contract a product and a sum into
one rounding (FMA), and may divide by a common divisor as it multiplies by one over it; so squares and divisors pass
through an integer operation that no compiler can look behind. A library reduction of floats has no
fixed order, so sums are the trees and runs of the original. Denormal numbers are read as zero, so those of float32 are widened by
their bits.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fl.algorithms.base import LocalResult
from fl.algorithms.encoding import LOSS, ClippedEncoding, WeightedEncoding
from privacy import codec as reference
from privacy.adaptive import AdaptiveCodec
from privacy.codec import FixedPoint, GridCodec

Encoded: TypeAlias = tuple[jax.Array, jax.Array]
Pieces: TypeAlias = tuple[jax.Array, ...]

_FLOAT32_FRACTION = 23
_FLOAT32_LEAST = 2.0**-149  # of which a denormal float32 is a multiple


def encode_fixed_point(codec: FixedPoint, pieces: Pieces) -> tuple[Pieces, jax.Array]:
    """`FixedPoint.encode`, traced, for a vector in pieces: a compiled loop over pieces side by side is slow.

    Args:
        codec: Limit and fraction bits.
        pieces: Floating point (k,) each, d in all.

    Returns:
        int64 pieces, and bool (): every value is finite and within the limit. Where it is False, the integers are zero.

    Guarantees:
        The integers are those of `FixedPoint.encode`, and the flag is False exactly where it raises for a value.
    """
    with jax.enable_x64(True):
        found = [_scaled(codec, piece) for piece in pieces]
        ok = jnp.all(jnp.array([inside for _, inside, _ in found]))
        whole = ((jnp.where(ok, scaled, 0).astype(narrow).astype(jnp.int64)) for scaled, _, narrow in found)
        return tuple(whole), ok


def _scaled(codec: FixedPoint, values: jax.Array) -> tuple[jax.Array, jax.Array, jax.typing.DTypeLike]:
    """Whole numbers as floats, whether all values may be encoded, and the integer type that holds them."""
    if values.dtype == jnp.float32 and codec.bound < 1 << 31:
        # A power of two changes no digit, so float32 is as exact as float64 here, and takes half the memory.
        scaled = jnp.round(values * np.float32(2.0**codec.fraction_bits))
        return scaled, within(values, _float32_below(codec.limit)), jnp.int32
    wide = _float64(values)
    return jnp.round(wide * 2.0**codec.fraction_bits), within(wide, np.float64(codec.limit)), jnp.int64


def encode_grid(codec: GridCodec, values: jax.Array, clip: jax.Array) -> Encoded:
    """`GridCodec.encode_update`, traced, at a clip norm that is an argument of the compiled program.

    Args:
        codec: Grid and dimension; its own clip norm is not used.
        values: Floating point (d,).
        clip: float64 (), positive and normal: the round's clip norm. As a constant of the program it would let the
            compiler see that the hidden zero is zero, so it must be traced.

    Returns:
        int64 (d,), grid units, and bool (): every value is finite. Where it is False, the integers are zero.

    Raises:
        TypeError: the clip norm is not traced.

    Guarantees:
        The integers are those of `GridCodec.encode_update` bit for bit, for values of float32 and smaller types; and of
        float64 where no value but zero is below 2**-1022.
    """
    zero = _hidden_zero(clip)
    with jax.enable_x64(True):
        update = _float64(values)
        ok = jnp.all(jnp.isfinite(update))
        update = jnp.where(ok, update, 0.0)
        peak = jnp.max(jnp.abs(update))
        unit = _divided(update, jnp.where(peak > 0, peak, 1.0), zero)
        norm = jnp.where(peak > 0, jnp.sqrt(_tree_sum(_squares(unit, zero))), 1.0)
        unclipped = jnp.where(peak > 0, _divided(peak, clip, zero) * codec.grid, 0.0)

        def shrunk(state: tuple[Any, Any, jax.Array, Any]) -> tuple[Any, Any, jax.Array, Any]:
            limit, shrink, _, _ = state
            rounded = jnp.round(unit * jnp.minimum(unclipped, _divided(limit, norm, zero))).astype(jnp.int64)
            return limit * (1.0 - shrink), jnp.minimum(2.0 * shrink, 1.0), rounded, _within(rounded, codec.grid)

        start = (
            jnp.float64(codec.grid - math.sqrt(codec.dimension) / 2),
            jnp.float64(reference._FIRST_SHRINK),  # noqa: SLF001 - the same step, or the integers differ
            jnp.zeros(update.shape, jnp.int64),
            jnp.bool_(False),
        )
        _, _, encoded, _ = lax.while_loop(lambda state: ~state[3], shrunk, start)
        return encoded, ok


def encode_adaptive(codec: AdaptiveCodec, values: jax.Array, clip: jax.Array) -> Encoded:
    """`AdaptiveCodec.encode_update`, traced: as `encode_grid`, and the bit as coordinate d; int64 (d + 1,).

    Guarantees:
        As `encode_grid`; the bit is that of the original's running sum, which is only run where a tree of the same
        squares is too close to the clip norm to tell.
    """
    zero = _hidden_zero(clip)
    encoded, ok = encode_grid(codec.grid_codec, values, clip)
    with jax.enable_x64(True):
        squares = _squares(_divided(_float64(values), clip, zero), zero)
        about, d = _tree_sum(squares), squares.shape[0]
        unclear = jnp.abs(about - 1.0) <= d * 2.0**-51  # either sum is within d 2**-53 of the exact one, relatively
        run = lax.fori_loop(0, jnp.where(unclear, d, 0), lambda i, total: total + squares[i], jnp.float64(0))
        bit = jnp.where(jnp.where(unclear, run, about) <= 1.0, codec.bit, -codec.bit)
        return jnp.append(encoded, jnp.where(ok, bit, 0)), ok


def within(values: jax.Array, limit: np.floating) -> jax.Array:
    """Whether all values (k,) are numbers of magnitude at most `limit`, a number of their own type.

    Magnitudes are compared by their bits, which stand in the same order with infinity and then NaN at the end: a
    maximum of integers is the one reduction that compilers do many lanes at a time.
    """
    whole = {2: jnp.int16, 4: jnp.int32, 8: jnp.int64}[values.dtype.itemsize]
    magnitudes = lax.bitcast_convert_type(values, whole) & np.iinfo(whole).max
    inside: jax.Array = jnp.max(magnitudes, initial=0) <= limit.view(f"i{values.dtype.itemsize}")
    return inside


def finite(values: jax.Array) -> jax.Array:
    """Whether all values (k,) are finite."""
    return within(values, jnp.finfo(values.dtype).max)  # type: ignore[no-untyped-call]  # JAX's own


def pieces(layout: Sequence[tuple[str, int]], vector: jax.Array) -> Pieces:
    """The pieces of a vector (d,), one for each leaf of (name, entries)."""
    ends = [0, *itertools.accumulate(size for _, size in layout)]
    return tuple(vector[start:stop] for start, stop in itertools.pairwise(ends))


def contribution(
    encoding: WeightedEncoding | ClippedEncoding, result: LocalResult, clip: jax.Array
) -> tuple[dict[str, Pieces], jax.Array]:
    """`encoding.encode`, traced.

    Args:
        encoding: The algorithm's.
        result: Of a client's training.
        clip: float64 (), traced: the round's clip norm; not read by a weighted encoding.

    Returns:
        int64 vectors in pieces, by block name, without noise; and bool (): False where `encoding.encode` raises for a value.
    """
    with jax.enable_x64(True):
        if isinstance(encoding, ClippedEncoding):
            codec = encoding.plan.codec()
            if isinstance(codec, AdaptiveCodec):
                update, ok = encode_adaptive(codec, result.delta, clip)
            else:
                update, ok = encode_grid(codec, result.delta, clip)
            return {"update": (update,)}, ok
        vectors = {"update": result.delta, **{name: result.extra[name] for name in encoding.extra}}
        blocks = {name: encode_fixed_point(encoding.values, pieces(encoding.layout, v)) for name, v in vectors.items()}
        blocks["loss"] = encode_fixed_point(LOSS, (result.loss.reshape(1),))
        ok = jnp.all(jnp.array([flag for _, flag in blocks.values()]))
        weight = jnp.minimum(result.weight, 1) if encoding.uniform else result.weight
        weight = jnp.where(ok, weight, 0).astype(jnp.int64)
        weighted = {name: tuple(piece * weight for piece in found) for name, (found, _) in blocks.items()}
        return weighted | {"weight": (weight.reshape(1),)}, ok


def _hidden_zero(clip: jax.Array) -> jax.Array:
    """An int64 zero, the sign bit of a positive clip norm, which the compiler does not know to be zero."""
    if not isinstance(clip, jax.core.Tracer):
        raise TypeError("the clip norm must be an argument of the compiled program, not a constant in it")
    with jax.enable_x64(True):
        return lax.bitcast_convert_type(clip.astype(jnp.float64), jnp.int64) >> 63


def _squares(values: jax.Array, zero: jax.Array) -> jax.Array:
    """Squares rounded on their own, which no kernel can contract into the sum that follows."""
    bits = lax.bitcast_convert_type(values * values, jnp.int64) ^ zero
    return lax.bitcast_convert_type(bits, jnp.float64)


def _divided(values: jax.Array, by: jax.Array, zero: jax.Array) -> jax.Array:
    """Quotients rounded once. The divisor is the same for all, which no compiler may see, or it multiplies by 1 / divisor."""
    hidden = lax.bitcast_convert_type(by, jnp.int64) ^ (lax.bitcast_convert_type(values, jnp.int64) & zero)
    return values / lax.bitcast_convert_type(hidden, jnp.float64)


def _tree_sum(values: jax.Array) -> jax.Array:
    """Sum float64 (d,) in the order of the codec's row sums."""
    width = values.shape[0]
    while width > 1:
        half = width // 2
        values = jnp.concatenate([values[:half] + values[width - half : width], values[half : width - half]])
        width -= half
    return values[0]


def _within(vector: jax.Array, grid: int) -> jax.Array:
    """The certificate of int64 (d,): the squares sum to at most grid**2, without overflow."""
    inside, squares = jnp.max(jnp.abs(vector)) <= grid, vector * vector
    if vector.shape[0] * grid**2 < 1 << 63:
        return inside & (jnp.sum(squares) <= grid**2)
    mask = (1 << 32) - 1
    low = jnp.sum(squares & mask)
    high = jnp.sum(squares >> 32) + (low >> 32)
    grid_high, grid_low = divmod(grid**2, 1 << 32)
    return inside & ((high < grid_high) | ((high == grid_high) & ((low & mask) <= grid_low)))


def _float64(values: jax.Array) -> jax.Array:
    """Widen any floating type exactly, denormals of float32 and bfloat16 included."""
    if values.dtype == jnp.float64:
        return values
    if values.dtype == jnp.bfloat16:
        # The upper half of a float32; a conversion by arithmetic could flush it.
        bits = lax.bitcast_convert_type(values, jnp.uint16).astype(jnp.uint32) << 16
    else:
        bits = lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    fraction = bits & ((1 << _FLOAT32_FRACTION) - 1)
    small = fraction.astype(jnp.float64) * _FLOAT32_LEAST
    small = jnp.where(bits >> 31 == 1, -small, small)
    denormal = (bits >> _FLOAT32_FRACTION) & 0xFF == 0
    return jnp.where(denormal, small, lax.bitcast_convert_type(bits, jnp.float32).astype(jnp.float64))


def _float32_below(limit: float) -> np.float32:
    """The largest float32 that is not above a positive limit."""
    with np.errstate(over="ignore"):
        near = np.float32(limit)
    return near if float(near) <= limit else np.nextafter(near, np.float32(0))
