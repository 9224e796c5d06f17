"""Vectors over Z_2^b: words, arithmetic in place, bit packing.

An entry is kept in the smallest unsigned word of W = 8, 16, 32 or 64 bits with b ≤ W. Sums wrap at the word; since 2^b divides 2^W, dropping the
high bits in the end gives the sum in Z_2^b.

**Packed form.** A vector of L entries is cut into W lanes of m = ⌈L / W⌉ consecutive entries, the missing ones zero. Column c of the
result is the b·W-bit integer Σ_j lane_j[c] · 2^(j·b); its W-bit words, lowest first, go into rows 0 … b - 1, and the rows follow each other,
little-endian: b·m·W/8 bytes. All work is on whole lanes, so no entry's carry can reach another's. With b = W it is a plain little-endian copy.
"""

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from secagg.errors import DecodeError, InputError

Words = npt.NDArray[np.unsignedinteger[Any]]
WriteBuffer = bytearray | memoryview
ReadBuffer = bytes | bytearray | memoryview

# Columns worked on at a time: a lane's part, a row's part and the scratch stay in the second-level cache.
_BLOCK = 32768


class _Scratch(threading.local):
    """Warm room for one lane's part in each thread: fresh pages cost more than the shifts."""

    def __init__(self) -> None:
        self.lane = np.empty(2 * _BLOCK, np.uint64)


_scratch = _Scratch()


def word_dtype(bits: int) -> np.dtype[np.unsignedinteger[Any]]:
    """The word that holds entries of `bits` bits.

    Raises:
        InputError: `bits` is not in [2, 64].
    """
    if not 2 <= bits <= 64:
        raise InputError(f"a ring has 2 to 64 bits, not {bits}")
    return np.dtype(f"u{max(8, 1 << (bits - 1).bit_length()) // 8}")


def encode(x: npt.NDArray[Any], bits: int) -> Words:
    """Signed integers as elements of Z_2^b, two's complement.

    Args:
        x: `(length,)`, any integer dtype, every value in [-2^(b-1), 2^(b-1)).
        bits: b.

    Returns:
        Words below 2^b, `(length,)`, fresh.

    Raises:
        InputError: It is not a vector of integers, or a value does not fit.
    """
    dtype = word_dtype(bits)
    if not isinstance(x, np.ndarray) or x.ndim != 1 or x.dtype.kind not in "iu":
        raise InputError(
            f"only vectors of integers have a place in a ring, not {getattr(x, 'dtype', type(x).__name__)} of {np.ndim(x)} dimensions"
        )
    if x.size:
        low, high = int(x.min()), int(x.max())
        if low < -(1 << (bits - 1)) or high >= 1 << (bits - 1):
            raise InputError(f"values from {low} to {high} do not fit in {bits} bits")
    words = x.astype(dtype)
    reduce_in_place(words, bits)
    return words


def encode_into(x: npt.NDArray[Any], low: int, high: int, words: Words) -> None:
    """Check that every value is within [low, high], and write two's complements, in one pass over the memory.

    Args:
        x: `(length,)`, any integer dtype.
        low: The least value allowed.
        high: The greatest.
        words: `(length,)`, where they go; bits above the ring's are not cleared.

    Raises:
        InputError: A value is outside; what `words` holds then has no meaning.
    """
    if x.shape != words.shape or x.dtype.kind not in "iu":
        raise InputError(f"integers of shape {words.shape} have a place here, not {x.dtype} of shape {x.shape}")
    for start in range(0, x.size, _BLOCK):
        part = x[start : start + _BLOCK]
        least, greatest = int(part.min()), int(part.max())
        if least < low or greatest > high:
            raise InputError(f"values {least}..{greatest} are outside {low}..{high}")
        np.copyto(words[start : start + _BLOCK], part, casting="unsafe")


def decode(words: Words, bits: int) -> npt.NDArray[np.int64]:
    """The signed integers in [-2^(b-1), 2^(b-1)) of elements of Z_2^b; bits of a word above b do not count.

    Returns:
        int64 `(length,)`, fresh.

    Raises:
        InputError: The words are not those of `bits`.
    """
    _check_words(words, bits)
    signed = np.empty(words.size, np.int64)
    # Up until the sign bit of the entry is that of the word, and down again with it.
    shift = words.dtype.type(8 * words.itemsize - bits)
    lifted = _scratch.lane.view(words.dtype)
    for start in range(0, words.size, _BLOCK):
        part = words[start : start + _BLOCK]
        entry = lifted[: part.size]
        np.left_shift(part, shift, out=entry)
        as_signed = entry.view(f"i{words.itemsize}")
        as_signed >>= as_signed.dtype.type(shift)
        signed[start : start + _BLOCK] = as_signed
    return signed


def room_to_decode(length: int, bits: int) -> Words:
    """A zero vector for a running sum that `decode_in_place` turns into integers where it lies.

    Returns:
        Words `(length,)`, the front of a buffer of `length` int64; pages behind them are not touched before they are needed.
    """
    room = np.zeros(length, np.int64)
    words: Words = room.view(word_dtype(bits))[:length]
    return words


def decode_in_place(words: Words, bits: int) -> npt.NDArray[np.int64]:
    """`decode` without room for a second vector; the words are gone then.

    Args:
        words: What `room_to_decode` gave.
        bits: b.

    Returns:
        int64 `(length,)`, in the same memory.

    Raises:
        InputError: The words are not the front of such a buffer.
    """
    _check_words(words, bits)
    room = words.base
    if not isinstance(room, np.ndarray) or room.dtype != np.int64 or room.shape != words.shape:
        raise InputError("only words that were made with room for integers are decoded in place")
    # From the end: integer i needs the bytes of words from 2i or more on, which are done with by then.
    for start in range((words.size - 1) // _BLOCK * _BLOCK, -1, -_BLOCK):
        room[start : start + _BLOCK] = decode(words[start : start + _BLOCK], bits)
    return room


def combine_packed(acc: Words, buf: ReadBuffer, bits: int, *, subtract: bool = False) -> None:
    """`acc += unpack(buf)` in place, wrapping at the word, without room for the unpacked vector.

    Args:
        acc: `(length,)` of `word_dtype(bits)`.
        buf: A packed form that `check_packed` accepts; without that check the padding goes unseen.
        bits: b.
        subtract: `acc -= unpack(buf)` instead.
    """
    combine = np.subtract if subtract else np.add
    for start, part in _unpacked(buf, acc.size, bits):
        target = acc[start : start + part.size]
        combine(target, part, out=target)


def check_packed(buf: ReadBuffer, length: int, bits: int) -> None:
    """That bytes are the packed form of a vector.

    Raises:
        DecodeError: The size is wrong, or the padding is not zero.
    """
    size = packed_length(length, bits)
    if memoryview(buf).nbytes != size:
        raise DecodeError(f"{length} entries of {bits} bits take {size} bytes, not {memoryview(buf).nbytes}")
    dtype = word_dtype(bits)
    lanes = 8 * dtype.itemsize
    if not size or bits == lanes:
        return
    rows = np.frombuffer(buf, dtype.newbyteorder("<")).reshape(bits, -1)
    padding = rows.shape[1] * lanes - length
    # Entry e stands in lane e // columns, column e % columns; the missing ones are the last columns of the last lanes.
    for lane in range(lanes - 1, -1, -1):
        missing = min(padding, rows.shape[1])
        if missing <= 0:
            return
        columns = slice(rows.shape[1] - missing, None)
        if _lane(rows, bits, lane, columns).any():
            raise DecodeError("the padding of a packed vector is not zero")
        padding -= missing


def reduce_in_place(words: Words, bits: int) -> None:
    """Keep the low b bits of every word.

    Raises:
        InputError: The words are not those of `bits`.
    """
    _check_words(words, bits)
    if bits < 8 * words.itemsize:
        np.bitwise_and(words, words.dtype.type((1 << bits) - 1), out=words)


def packed_length(length: int, bits: int) -> int:
    """The number of bytes that `pack` gives for `length` entries."""
    size = word_dtype(bits).itemsize
    if bits == 8 * size:
        return length * size
    return bits * size * -(-length // (8 * size))


def pack(words: Words, bits: int, *, out: WriteBuffer | None = None) -> WriteBuffer:
    """The packed form of a vector (layout: see the module).

    Args:
        words: `(length,)`, every word below 2^b.
        bits: b.
        out: Where to write, exactly `packed_length` bytes; fresh memory when None. A warm buffer saves the page faults.

    Returns:
        `out`, or a new bytearray.

    Raises:
        InputError: The words are not those of `bits`, one has a bit above b, or `out` has another size.

    Guarantees:
        `unpack` gives the same words back, also where entries at their maximum stand side by side.
    """
    _check_words(words, bits)
    size = packed_length(words.size, bits)
    target = bytearray(size) if out is None else out
    view = memoryview(target)
    if view.nbytes != size or view.readonly:
        raise InputError(
            f"{words.size} entries of {bits} bits need a writable buffer of {size} bytes; this one has {view.nbytes}"
        )
    if not size:
        return target
    stored = words.dtype.newbyteorder("<")
    lanes = 8 * words.itemsize
    if bits == lanes:
        np.frombuffer(target, stored)[:] = words
        return target
    if int(words.max()) >> bits:
        raise InputError(f"a word has more than {bits} bits: reduce before packing")
    rows = np.frombuffer(target, stored).reshape(bits, -1)
    for start in range(0, rows.shape[1], _BLOCK):
        _pack_columns(words, bits, rows, start)
    return target


def unpack(buf: ReadBuffer, length: int, bits: int, *, out: Words | None = None) -> Words:
    """The vector of a packed form.

    Args:
        buf: Exactly `packed_length(length, bits)` bytes.
        length: Number of entries.
        bits: b.
        out: Where to write, `(length,)` of `word_dtype(bits)`; fresh memory when None.

    Returns:
        Words below 2^b, `(length,)`: `out`, or a new array.

    Raises:
        DecodeError: The size is wrong, or the padding is not zero.
        InputError: `out` is not of this shape and dtype.

    Guarantees:
        Of all byte strings, exactly one unpacks to a given vector.
    """
    check_packed(buf, length, bits)
    dtype = word_dtype(bits)
    words: Words = np.empty(length, dtype) if out is None else out
    if words.shape != (length,) or words.dtype != dtype:
        raise InputError(
            f"{length} entries of {bits} bits go into {dtype} ({length},), not {words.dtype} {words.shape}"
        )
    for start, part in _unpacked(buf, length, bits):
        words[start : start + part.size] = part
    return words


def _unpacked(buf: ReadBuffer, length: int, bits: int) -> Iterator[tuple[int, Words]]:
    """The entries of a packed form in pieces, each with the place of its first; a piece lives until the next one."""
    dtype = word_dtype(bits)
    stored = dtype.newbyteorder("<")
    if not length:
        return
    if bits == 8 * dtype.itemsize:
        yield 0, np.frombuffer(buf, stored)
        return
    rows = np.frombuffer(buf, stored).reshape(bits, -1)
    columns = rows.shape[1]
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        for lane in range(8 * dtype.itemsize):
            first = lane * columns + start
            if first >= length:
                break
            yield first, _lane(rows, bits, lane, slice(start, stop))[: length - first]


def _pack_columns(words: Words, bits: int, rows: Words, start: int) -> None:
    """Fill columns [start, start + _BLOCK) of every row."""
    width, lane_length = 8 * words.itemsize, rows.shape[1]
    stop = min(start + _BLOCK, lane_length)
    shifted = _scratch.lane.view(words.dtype)[: stop - start]
    for index in range(bits):
        row = rows[index, start:stop]
        first, last = index * width // bits, ((index + 1) * width - 1) // bits
        for lane in range(first, last + 1):
            part = words[lane * lane_length + start : min(lane * lane_length + stop, words.size)]
            offset = lane * bits - index * width
            shift, amount = (np.left_shift, offset) if offset >= 0 else (np.right_shift, -offset)
            if lane == first:
                shift(part, amount, out=row[: part.size])
                row[part.size :] = 0
            else:
                shift(part, amount, out=shifted[: part.size])
                np.bitwise_or(row[: part.size], shifted[: part.size], out=row[: part.size])


def _lane(rows: Words, bits: int, lane: int, columns: slice) -> Words:
    """The entries of one lane in some columns, at most `_BLOCK` of them at a time, in scratch."""
    index, offset = divmod(lane * bits, 8 * rows.itemsize)
    row = rows[index, columns]
    scratch = _scratch.lane.view(rows.dtype.newbyteorder("="))
    if row.size > _BLOCK:
        scratch = np.empty(2 * row.size, scratch.dtype)
    part, upper = scratch[: row.size], scratch[row.size : 2 * row.size]
    np.right_shift(row, offset, out=part)
    if offset + bits > 8 * rows.itemsize:
        np.left_shift(rows[index + 1, columns], 8 * rows.itemsize - offset, out=upper)
        np.bitwise_or(part, upper, out=part)
    if offset + bits != 8 * rows.itemsize:
        np.bitwise_and(part, part.dtype.type((1 << bits) - 1), out=part)
    return part


def _check_words(words: Words, bits: int) -> None:
    if words.dtype != word_dtype(bits) or words.ndim != 1:
        raise InputError(f"{bits} bits need a vector of {word_dtype(bits)}, not {words.dtype} of shape {words.shape}")
