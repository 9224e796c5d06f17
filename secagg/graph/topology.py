"""Who shares secrets with whom, and which side of an edge picks its seed.

Up to the degree everybody is everybody's neighbour. Above, the cohort stands on a ring in an order that nobody chose, a permutation
drawn from the transcript, and each is joined to the degree / 2 nearest on either side: a random Harary graph [BBG+20]. Whoever did not
advertise leaves its place empty, so that the ring, and with it the bounds of `secagg.graph.bounds`, are those of the whole cohort.
"""

import dataclasses
import functools
from collections.abc import Container

import numpy as np

from secagg.crypto import prg
from secagg.crypto.kdf import Label, derive


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """The edges of one round.

    Attributes:
        cohort: Every client id of the round, sorted; positions, and with them the Shamir points, count here.
        members: U1, sorted: the vertices.
        degree: Most neighbours of a member, k; all the others where there are no more than that.
        ring: The cohort in ring order; None for the complete graph.
    """

    cohort: tuple[int, ...]
    members: tuple[int, ...]
    degree: int
    ring: tuple[int, ...] | None

    @functools.cached_property
    def _positions(self) -> dict[int, int]:
        return {client: place for place, client in enumerate(self.cohort)}

    @functools.cached_property
    def _slots(self) -> dict[int, int]:
        return {client: slot for slot, client in enumerate(self.ring or ())}

    @functools.cached_property
    def _present(self) -> frozenset[int]:
        return frozenset(self.members)

    @functools.cached_property
    def _neighbours(self) -> dict[int, tuple[int, ...]]:
        return {}

    def neighbours(self, client: int) -> tuple[int, ...]:
        """N(i), sorted; `client` is a member."""
        known = self._neighbours.get(client)
        if known is None:
            known = self._neighbours[client] = self._look_up(client)
        return known

    def _look_up(self, client: int) -> tuple[int, ...]:
        if self.ring is None:
            return tuple(i for i in self.members if i != client)
        slot, size, half = self._slots[client], len(self.ring), self.degree // 2
        near = (self.ring[(slot + step) % size] for step in range(-half, half + 1) if step)
        return tuple(sorted(i for i in near if i in self._present))

    def within(self, client: int, alive: Container[int]) -> tuple[int, ...]:
        """The neighbours of `client` that are in a set, sorted."""
        return tuple(filter(alive.__contains__, self.neighbours(client)))

    def holders(self, dealer: int) -> tuple[int, ...]:
        """N(i) and i itself, sorted: who holds shares of the dealer's secrets, and the order of its Merkle leaves."""
        return tuple(sorted((*self.neighbours(dealer), dealer)))

    def point(self, client: int) -> int:
        """The client's Shamir x-coordinate: its position in the sorted cohort, plus one."""
        return self._positions[client] + 1

    def is_chooser(self, client: int, peer: int) -> bool:
        """Whether `client` picks the pair seed of its edge with `peer`.

        With p < q the two positions, p picks exactly if p + q is odd: each edge has one chooser, and nobody chooses for all.
        """
        mine, theirs = self._positions[client], self._positions[peer]
        return (mine < theirs) == ((mine + theirs) % 2 == 1)

    def choices(self, dealer: int) -> list[bool]:
        """`is_chooser` for the edge to each neighbour of the dealer, in order."""
        mine, positions = self._positions[dealer], self._positions
        return [
            (mine < theirs) == ((mine + theirs) % 2 == 1)
            for theirs in map(positions.__getitem__, self.neighbours(dealer))
        ]

    def adds(self, client: int, peer: int) -> bool:
        """Whether `client` adds (or else subtracts) the pair stream of its edge with `peer`."""
        return self._positions[client] < self._positions[peer]


# Parties of one process share the graph of their round; a client of its own builds it once.
@functools.lru_cache(maxsize=4)
def build(cohort: tuple[int, ...], members: tuple[int, ...], degree: int, transcript: bytes) -> Graph:
    """The graph over U1.

    Args:
        cohort: Every client id of the round, sorted.
        members: U1, sorted, at least one.
        degree: k, an even number or at least the cohort's size less one.
        transcript: T1, 32 bytes.

    Guarantees:
        The ring is computationally indistinguishable from a uniform one when T1 is uniform: it comes from a keystream.
        Neighbourhood is mutual.
    """
    ring = None if len(cohort) <= degree + 1 else tuple(cohort[i] for i in _permutation(len(cohort), transcript))
    return Graph(cohort, members, degree, ring)


def _permutation(size: int, transcript: bytes) -> list[int]:
    """A Fisher-Yates shuffle of 0 … size - 1, fed by the u64 words of one keystream; a word that would bias is skipped."""
    key = derive(transcript, Label.GRAPH, salt=transcript)
    words = iter(prg.stream(key, size + 64, np.uint64).tolist())
    order = list(range(size))
    for last in range(size - 1, 0, -1):
        choices = last + 1
        # 64 words beyond one a step: a step skips one with probability under 2^-31.
        word = next(word for word in words if word < 2**64 - 2**64 % choices)
        other = word % choices
        order[last], order[other] = order[other], order[last]
    return order
