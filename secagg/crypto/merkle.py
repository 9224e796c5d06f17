"""Merkle tree hash, inclusion paths and their check, as in RFC 9162 section 2.1 [RFC9162] with SHA-256."""

import hashlib
from collections.abc import Sequence

from secagg.errors import DecodeError


def _leaf(data: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + data).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _split(size: int) -> int:
    """The largest power of two below `size` (>= 2)."""
    return 1 << (size - 1).bit_length() - 1


def root(leaves: Sequence[bytes]) -> bytes:
    """The 32-byte root over at least one leaf."""
    return _subtree([_leaf(x) for x in leaves])


def _subtree(hashes: Sequence[bytes]) -> bytes:
    if len(hashes) == 1:
        return hashes[0]
    k = _split(len(hashes))
    return _node(_subtree(hashes[:k]), _subtree(hashes[k:]))


def paths(leaves: Sequence[bytes]) -> list[tuple[bytes, ...]]:
    """The inclusion path of every leaf, lowest sibling first."""

    def walk(hashes: Sequence[bytes]) -> tuple[bytes, list[tuple[bytes, ...]]]:
        if len(hashes) == 1:
            return hashes[0], [()]
        k = _split(len(hashes))
        left, left_paths = walk(hashes[:k])
        right, right_paths = walk(hashes[k:])
        return _node(left, right), [(*p, right) for p in left_paths] + [(*p, left) for p in right_paths]

    return walk([_leaf(x) for x in leaves])[1]


def check(leaf: bytes, *, index: int, size: int, path: Sequence[bytes], expected_root: bytes) -> None:
    """That `leaf` stands at `index` of the `size` leaves under `expected_root`.

    Raises:
        DecodeError: It does not.
    """

    def climb(index: int, size: int, path: Sequence[bytes]) -> bytes:
        if size == 1:
            if path:
                raise DecodeError("Merkle path is too long")
            return _leaf(leaf)
        if not path:
            raise DecodeError("Merkle path is too short")
        k = _split(size)
        if index < k:
            return _node(climb(index, k, path[:-1]), path[-1])
        return _node(path[-1], climb(index - k, size - k, path[:-1]))

    if not 0 <= index < size:
        raise DecodeError(f"Merkle leaf {index} of {size} does not exist")
    if climb(index, size, path) != expected_root:
        raise DecodeError("Merkle path does not lead to the signed root")
