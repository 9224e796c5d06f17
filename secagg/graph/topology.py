"""Who shares secrets with whom, and which side of an edge picks its seed."""

from collections.abc import Sequence

from secagg.params import RoundParams


def neighbours(params: RoundParams, members: Sequence[int], client: int) -> tuple[int, ...]:
    """The neighbours of `client` among `members`, sorted: everybody else, since the graph is complete.

    Args:
        params: The round.
        members: A set of client ids that contains `client` (U1, or what is left of it).
        client: A client id.
    """
    alive = set(members)
    return tuple(i for i in params.cohort if i in alive and i != client)


def position(params: RoundParams, client: int) -> int:
    """Index of a client in the sorted cohort; its Shamir point is one more."""
    return params.cohort.index(client)


def is_chooser(params: RoundParams, client: int, peer: int) -> bool:
    """Whether `client` picks the pair seed of its edge with `peer`.

    With p < q the two positions, p picks exactly if p + q is odd: each edge has one chooser, and nobody chooses for all.
    """
    mine, theirs = position(params, client), position(params, peer)
    return (mine < theirs) == ((mine + theirs) % 2 == 1)


def adds(params: RoundParams, client: int, peer: int) -> bool:
    """Whether `client` adds (or else subtracts) the pair stream of its edge with `peer`."""
    return position(params, client) < position(params, peer)
