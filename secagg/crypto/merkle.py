"""Merkle tree hash, inclusion paths and their check, as in RFC 9162 section 2.1 [RFC9162] with SHA-256."""

import functools
import hashlib
from collections.abc import Sequence

from secagg.errors import DecodeError

HASH_LENGTH = 32


class Tree:
    """The tree over at least one leaf, hashed once.

    Attributes:
        root: 32 bytes.
    """

    def __init__(self, leaves: Sequence[bytes]) -> None:
        sha256 = hashlib.sha256
        level = [sha256(b"\x00" + leaf).digest() for leaf in leaves]
        self._levels = [level]
        # Level by level, a last node without a sibling carried up unhashed: the recursive split at powers of two gives the same tree.
        while len(level) > 1:
            odd = level[-1:] if len(level) % 2 else []
            pairs = zip(level[0::2], level[1::2], strict=False)
            level = [sha256(b"\x01" + left + right).digest() for left, right in pairs] + odd
            self._levels.append(level)
        self.root = level[0]

    @functools.cached_property
    def paths(self) -> list[bytes]:
        """The inclusion path of every leaf: its siblings, lowest first, 32 bytes each."""
        above = [b""]
        for level in reversed(self._levels[:-1]):
            siblings = [level[index ^ 1] if index ^ 1 < len(level) else b"" for index in range(len(level))]
            above = [sibling + above[index >> 1] for index, sibling in enumerate(siblings)]
        return above

    def forget_paths(self) -> None:
        """Let go of the paths, which are larger than the tree; they are computed anew when somebody asks."""
        self.__dict__.pop("paths", None)


def check(leaf: bytes, *, index: int, size: int, path: bytes, expected_root: bytes) -> None:
    """That `leaf` stands at `index` of the `size` leaves under `expected_root`.

    Raises:
        DecodeError: It does not.
    """
    if not 0 <= index < size:
        raise DecodeError(f"Merkle leaf {index} of {size} does not exist")
    node, used = hashlib.sha256(b"\x00" + leaf).digest(), 0
    last = size - 1
    while last:
        if index ^ 1 <= last:
            sibling = path[used : used + HASH_LENGTH]
            if len(sibling) != HASH_LENGTH:
                raise DecodeError("Merkle path is too short")
            used += HASH_LENGTH
            node = hashlib.sha256(b"\x01" + (sibling + node if index & 1 else node + sibling)).digest()
        index, last = index >> 1, last >> 1
    if used != len(path):
        raise DecodeError("Merkle path is too long")
    if node != expected_root:
        raise DecodeError("Merkle path does not lead to the signed root")
