"""A site's training records, each in a slot of its own, as arrays that a compiled program takes."""

import collections
import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Arrays(NamedTuple):
    """The arrays of `Records` as a pytree, for functions that JAX traces."""

    x: Any
    y: Any
    present: Any
    tags: Any


@dataclass(frozen=True)
class Records:
    """A site's training rows, each in a slot of its own.

    Attributes:
        x: (slots, ...), float32 where the record is a table's row; absent slots are zero.
        y: (slots, ...), int32 where the label is a class.
        present: (slots,) bool: which slots hold a record.
        tags: (slots,) uint32: what a record's random streams (dropout layers) are keyed by. A function of the record and
            of how many identical ones come before it, so that removing a record leaves the others' streams alone
            wherever they move to.
    """

    x: npt.NDArray[Any]
    y: npt.NDArray[Any]
    present: npt.NDArray[np.bool_]
    tags: npt.NDArray[np.uint32]

    @classmethod
    def place(cls, x: npt.NDArray[Any], y: npt.NDArray[Any], slots: int) -> "Records":
        """Put row i into slot i; the caller has checked that there are no more than `slots` rows."""
        spare = slots - len(x)
        tags = np.pad(_tags(x, y), (0, spare))
        padded = (np.pad(part, ((0, spare), *((0, 0),) * (part.ndim - 1))) for part in (x, y))
        return cls(next(padded), next(padded), np.arange(slots) < len(x), tags)

    @property
    def arrays(self) -> Arrays:
        """As a pytree."""
        return Arrays(self.x, self.y, self.present, self.tags)


def _tags(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    seen: collections.Counter[bytes] = collections.Counter()
    tags = np.empty(len(x), np.uint32)
    for index, (row, label) in enumerate(zip(x, y, strict=True)):
        record = row.tobytes() + label.tobytes()
        digest = hashlib.sha256(record + seen[record].to_bytes(8, "big")).digest()
        tags[index] = int.from_bytes(digest[:4], "big")
        seen[record] += 1
    return tags
