"""The one generator: AES-256-CTR keystreams added to vectors, and the tag of a vector.

Word i of the stream of a key is bytes [i·s, (i + 1)·s) of the AES-256-CTR keystream [SP800-38A] with a zero initial counter block, read
little-endian, s being the word's size (1, 2, 4 or 8 bytes). It does not depend on chunks, threads or platform: masks of two sites with
different byte orders or default integers cancel.
"""

import hashlib
import threading
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from secagg.cores import CORES, spread
from secagg.crypto.kdf import Label, digest
from secagg.errors import InputError, SelfTestError

Words = npt.NDArray[np.unsignedinteger[Any]]

KEY_LENGTH = 32
TAG_LENGTH = 16

# The keystream of a chunk and the vector's own chunk stay in the second-level cache; smaller chunks pay more calls.
CHUNK_BYTES = 256 * 1024

# Long keystreams and additions release the interpreter's lock; below this many bytes a thread costs more than it saves.
_WORTH_A_THREAD = 4 * 2**20

# A cipher's state takes about 3 kB; a server that takes off thousands of masks opens so many at a time.
_OPEN_STREAMS = 64

_BLOCK_LENGTH = 16
_ZERO_NONCE = bytes(12)
_ZEROS = memoryview(bytes(CHUNK_BYTES))
_WORD_DTYPES = tuple(np.dtype(f"u{size}") for size in (1, 2, 4, 8))


class _Scratch(threading.local):
    """One warm keystream buffer a thread: fresh pages cost more than the cipher."""

    def __init__(self) -> None:
        self.keystream = np.empty(CHUNK_BYTES, np.uint8)


_scratch = _Scratch()


def add_stream(acc: Words, key: bytes, *, subtract: bool = False) -> None:
    """Add one key's stream to a vector in place, modulo the size of its word.

    Args:
        acc: `(length,)`, uint8, uint16, uint32 or uint64, writable.
        key: 32 bytes.
        subtract: Take the stream away instead.

    Raises:
        InputError: The array or the key of our caller is not of this kind.

    Guarantees:
        Adding and subtracting the same key leaves `acc` as it was, for every length and every word.
    """
    add_streams(acc, ((key, subtract),))


def add_streams(acc: Words, keys: Iterable[tuple[bytes, bool]]) -> None:
    """Add many streams to a vector in place: `add_stream` for each (key, subtract), in few passes over the vector.

    Args:
        acc: `(length,)`, uint8, uint16, uint32 or uint64, writable.
        keys: Pairs of a key (32 bytes) and whether its stream is subtracted.

    Raises:
        InputError: The array or a key of our caller is not of this kind. The vector is then unchanged.
    """
    if acc.dtype not in _WORD_DTYPES or acc.ndim != 1 or not acc.flags.writeable:
        raise InputError(
            f"a stream goes into a writable vector of unsigned words, not {acc.dtype} of shape {acc.shape}"
        )
    signed = [(_checked(key), np.subtract if subtract else np.add) for key, subtract in keys]
    spread(lambda part: _add_part(acc[slice(*part)], part[0], signed), _parts(acc, len(signed)))


def _parts(acc: Words, streams: int) -> list[tuple[int, int]]:
    """How the vector is cut for the cores: at whole cipher blocks, and only where a thread's share is worth waking it up."""
    count = min(CORES, streams * acc.nbytes // _WORTH_A_THREAD) if acc.nbytes > CHUNK_BYTES else 1
    step = -(-acc.size // max(count, 1) // _BLOCK_LENGTH) * _BLOCK_LENGTH
    return [(start, min(start + step, acc.size)) for start in range(0, acc.size, step or 1)] or [(0, 0)]


def _add_part(acc: Words, offset: int, signed: list[tuple[bytes, Any]]) -> None:
    """Combine words [offset, offset + len(acc)) of every stream with `acc`; the offset is at a whole cipher block."""
    keystream = _scratch.keystream
    words = keystream.view(acc.dtype.newbyteorder("<"))
    step, block = words.size, offset * acc.itemsize // _BLOCK_LENGTH
    for first in range(0, len(signed), _OPEN_STREAMS):
        streams = [(_encryptor(key, block), combine) for key, combine in signed[first : first + _OPEN_STREAMS]]
        for start in range(0, acc.size, step):
            part = acc[start : start + step]
            zeros, out, addend = _ZEROS[: part.nbytes], keystream[: part.nbytes], words[: part.size]
            for encryptor, combine in streams:
                encryptor.update_into(zeros, out)
                combine(part, addend, out=part)


def stream(key: bytes, length: int, dtype: npt.DTypeLike) -> Words:
    """The first `length` words of a key's stream.

    Args:
        key: 32 bytes.
        length: Number of words, 0 allowed.
        dtype: uint8, uint16, uint32 or uint64.

    Raises:
        InputError: The key or the dtype of our caller is not of this kind.
    """
    words: Words = np.zeros(length, dtype)
    add_stream(words, key)
    return words


def gmac(key: bytes, body: bytes | bytearray | memoryview) -> bytes:
    """The AES-256-GMAC tag of a body under a one-time key [SP800-38D]: GCM with no plaintext, the body as associated data.

    The nonce is twelve zero bytes, so a key must tag one message in its life; a second one gives the authentication key away.
    Compare tags with `hmac.compare_digest`.

    Returns:
        16 bytes.

    Raises:
        InputError: The key of our caller has another length, or the body has 2**31 bytes or more.
    """
    if memoryview(body).nbytes >= 2**31:
        raise InputError("a body of 2**31 bytes or more has no tag: split the vector into blocks and rounds")
    return AESGCM(_checked(key)).encrypt(_ZERO_NONCE, b"", body)


@cache
def self_test() -> None:
    """Check the generator of this installation against known answers; once per process, a few milliseconds.

    It runs the code that masks vectors: sums and differences of two streams over two chunks and a bit, for every word, each whole,
    so that a single wrong bit shows at any offset in there; then a tag. In one process everybody shares the generator, and a wrong
    one would cancel unseen.

    Raises:
        SelfTestError: Something differs. A failure is not remembered as a pass.
    """
    keys = (digest(Label.TEST_ENTROPY, 0), digest(Label.TEST_ENTROPY, 1))
    for dtype in _WORD_DTYPES:
        one = stream(keys[0], _TEST_BYTES // dtype.itemsize + 3, dtype)
        both = one.copy()
        add_stream(both, keys[1], subtract=True)
        for words, known in ((one, _KNOWN_STREAM), (both, _KNOWN_DIFFERENCE)):
            found = hashlib.sha256(words.astype(dtype.newbyteorder("<")).tobytes()).hexdigest()
            if found != known[dtype.itemsize]:
                raise SelfTestError(f"the AES-256-CTR stream of {dtype} words is not what it must be on this machine")
    if gmac(keys[0], one.tobytes()).hex() != _KNOWN_TAG:
        raise SelfTestError("the AES-256-GMAC tag is not what it must be on this machine")


_TEST_BYTES = 2 * 256 * 1024
# From tests/vectors/generate_crypto.py, which takes them by another road (AES-ECB of counters and Python integers).
_KNOWN_STREAM = {
    1: "1371542a8b784b8da185288f115b8d2b010c807641cc55d32b75d117a7ad1e95",
    2: "9fc767335df548073d7db13efae05144fcbbd8dd2a8ed0a191223fd58b42d860",
    4: "06704f3167c8fe61d2819abd1541cbe3d41b74cdfb4aa5c6d073015b535db3a5",
    8: "a572cea9a4fd4ffe0380a104fce667f0c66a1a14a2357c28c8c7578213d90f47",
}
_KNOWN_DIFFERENCE = {
    1: "df3de4412bff37d5210faa11feb0c6ea8330c7140597ba25ab0f90e21f0e200c",
    2: "bc5ff322e066104d7b8dce320759abd70cc7756ff6393a24ab30f12d3d4e1cf9",
    4: "eaa649e5173c1c08f953c9a06d83987db637ee6d507c196098374c2bf657b685",
    8: "8bbcda531279de6aec3c150c91b32894f88bbea235fe9f022407de880073a5e4",
}
_KNOWN_TAG = "1e02649017e5dad1fbd5b31b0c0919fb"


def _checked(key: bytes) -> bytes:
    if len(key) != KEY_LENGTH:
        raise InputError(f"an AES-256 key has {KEY_LENGTH} bytes, not {len(key)}")
    return key


def _encryptor(key: bytes, block: int) -> Any:  # noqa: ANN401 - the public annotation lacks update_into's array buffers
    return Cipher(AES(key), CTR(block.to_bytes(_BLOCK_LENGTH, "big"))).encryptor()
