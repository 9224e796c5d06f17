"""How many bytes every frame of a round has, exact, without a round.

A frame's length follows from the parameters, the ids in it, and on a sparse graph from who is whose neighbour, which the transcript decides.
"""

import dataclasses
import functools
from collections.abc import Iterable

from secagg import graph, messages
from secagg.crypto.kdf import Label
from secagg.crypto.merkle import HASH_LENGTH
from secagg.crypto.sealing import SERVER_ID, SUITES
from secagg.graph import Graph
from secagg.params import PHASES, RoundParams

_HASH, _TAG, _SIGNATURE, _SHARE = bytes(32), bytes(16), bytes(64), bytes(36)


@dataclasses.dataclass(frozen=True)
class FrameSizes:
    """Bytes of every frame of one round, by phase and client.

    Attributes:
        up: `{phase: {client id: bytes}}`: what each client sends.
        down: `{phase: {client id: bytes}}`: what the server sends it before that.
    """

    up: dict[str, dict[int, int]]
    down: dict[str, dict[int, int]]


def frame_sizes(params: RoundParams, dropouts: int = 0, *, transcript: bytes = bytes(32)) -> FrameSizes:
    """The bytes of a round of honest clients.

    Args:
        params: The round.
        dropouts: How many clients, the last of the cohort, are silent from exchange 3 on.
        transcript: T1, 32 bytes: it shuffles a sparse graph, and with it whose ids and whose paths a frame has. The complete graph
            does not depend on it.

    Guarantees:
        With the round's own transcript every length is that of the real frame.
    """
    cohort = params.cohort
    alive = cohort[: len(cohort) - dropouts]
    edges = graph.build(cohort, cohort, params.degree, transcript)
    adverts = {i: _advertisement(params, i) for i in cohort}
    survivors = _signed(messages.Survivors(binding=_HASH, sender=SERVER_ID, members=alive))
    signers = alive[: params.quorum(len(cohort))]
    quorum = _signed(
        messages.Quorum(binding=_HASH, sender=SERVER_ID, signatures=tuple((i, _SIGNATURE) for i in signers))
    )
    up = (
        adverts,
        {i: _shares(params, edges, i) for i in cohort},
        {i: _masked(params, i) for i in alive},
        {i: len(messages.encode(messages.Confirm(binding=_HASH, sender=i, signature=_SIGNATURE))) for i in alive},
        _answers(edges, alive),
    )
    down = (
        dict.fromkeys(cohort, len(params.encode())),
        _advertised(edges, adverts),
        _shared(params, edges),
        dict.fromkeys(alive, survivors),
        dict.fromkeys(alive, quorum),
    )
    return FrameSizes(dict(zip(PHASES, up, strict=True)), dict(zip(PHASES, down, strict=True)))


def _advertisement(params: RoundParams, client: int) -> int:
    suite = SUITES[params.suite]
    key = bytes(suite.public_key_length)
    return _signed(
        messages.Advertise(
            binding=_HASH,
            sender=client,
            channel_key=key,
            mask_key=key,
            seed_commitment=_HASH,
            mac_box=bytes(32 + suite.box_overhead),
        )
    )


def _advertised(edges: Graph, adverts: dict[int, int]) -> dict[int, int]:
    header = bytes(_signed(messages.Advertised(binding=_HASH, sender=SERVER_ID, transcript=_HASH)))
    alike = len(messages.encode(messages.AdvertisedFrame(header, bytes(40 * len(edges.members)), ())))
    return {i: alike + _items(adverts[peer] for peer in edges.neighbours(i)) for i in edges.members}


def _share_header(client: int) -> int:
    return _signed(messages.ShareHeader(binding=_HASH, sender=client, root=_HASH))


def _shares(params: RoundParams, edges: Graph, client: int) -> int:
    alike = len(messages.encode(messages.ShareFrame(bytes(_share_header(client)), ())))
    return alike + _items(messages.leaf_lengths(edges, client, SUITES[params.suite].box_overhead))


def _shared(params: RoundParams, edges: Graph) -> dict[int, int]:
    members, overhead = edges.members, SUITES[params.suite].box_overhead
    header = bytes(_signed(messages.Shared(binding=_HASH, sender=SERVER_ID, members=members)))
    alike = len(messages.encode(messages.SharedFrame(header, ())))
    headers = {i: _bin(_share_header(i)) for i in members}
    places = {dealer: {i: place for place, i in enumerate(edges.holders(dealer))} for dealer in members}
    leaves = {dealer: messages.leaf_lengths(edges, dealer, overhead) for dealer in members}

    def delivery(dealer: int, holder: int) -> int:
        place = places[dealer][holder]
        return 1 + headers[dealer] + _bin(leaves[dealer][place]) + _bin(_path(place, len(places[dealer])))

    sizes = {}
    for i in members:
        near = edges.neighbours(i)
        sizes[i] = alike - 1 + _array(len(near)) + sum(delivery(dealer, i) for dealer in near)
    return sizes


@functools.cache
def _path(index: int, size: int) -> int:
    """Bytes of the Merkle path to a leaf: at each level a sibling, if there is one."""
    siblings, last = 0, size - 1
    while last:
        siblings += (index ^ 1) <= last
        index, last = index >> 1, last >> 1
    return HASH_LENGTH * siblings


def _masked(params: RoundParams, client: int) -> int:
    body = params.body_length
    front = 4 + _signed(messages.MaskHeader(binding=_HASH, sender=client, body_length=body, refused=(), tag=_TAG))
    return messages.body_start(front) + body


def _answers(edges: Graph, alive: tuple[int, ...]) -> dict[int, int]:
    there, sizes = frozenset(alive), {}
    for client in alive:
        answers = tuple(
            messages.SelfShare(owner, _SHARE) if owner in there else messages.RootShare(owner, _SHARE, _HASH)
            for owner in edges.holders(client)
        )
        sizes[client] = _signed(messages.Unmask(binding=_HASH, sender=client, answers=answers))
    return sizes


def _signed(message: messages.Message) -> int:
    """Bytes of a message as a signed frame."""
    return len(messages.seal(message, _no_signature))


def _no_signature(_label: Label, _payload: bytes) -> bytes:
    return _SIGNATURE


# MessagePack: what stands in front of n bytes, and of n items.


def _bin(length: int) -> int:
    return length + (2 if length < 2**8 else 3 if length < 2**16 else 5)


def _array(count: int) -> int:
    return 1 if count < 16 else 3 if count < 2**16 else 5


def _items(lengths: Iterable[int]) -> int:
    """What byte strings add to an array that was counted as empty."""
    sizes = [_bin(length) for length in lengths]
    return sum(sizes) + _array(len(sizes)) - 1
