"""Exchange 3: every client sends its masked vectors; from here on its input counts as released.

[BIK+17] Fig. 4 round 2: y_i = x_i + PRG(b_i) + sum of +-PRG(s_ij) in each block's ring. A client leaves out the edges to
dealers that it refused and says so; the server ends each dispute by dropping one side, and publishes U3.
"""

import collections
import dataclasses
import hmac
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import numpy.typing as npt

from secagg import graph, messages, ring
from secagg.crypto import prg
from secagg.crypto.kdf import Label, derive
from secagg.crypto.sealing import SERVER_ID
from secagg.errors import BelowThresholdError, DecodeError, InputError, PeerFault, SecaggError, ServerFault
from secagg.params import Block, RoundParams
from secagg.protocols.pairwise.parties import Answers, Host, Member, Redacted, Rejected, Replies, View, statement
from secagg.protocols.pairwise.share import AwaitingShared, Neighbourhood, Sharers

Inputs = Mapping[str, npt.NDArray[np.integer]]
Words = npt.NDArray[np.unsignedinteger]


@dataclasses.dataclass(frozen=True, repr=False)
class AwaitingSurvivors(Redacted):
    """A client whose masked vector has left and that waits for U3."""

    me: Member
    view: View
    near: Neighbourhood


@dataclasses.dataclass(frozen=True, repr=False)
class AgreedSurvivors(Redacted):
    """A client that has checked U3 against what it knows.

    Attributes:
        survivors: U3.
        statement: S, the bytes that it may sign once.
    """

    me: Member
    view: View
    near: Neighbourhood
    survivors: tuple[int, ...]
    statement: bytes


def check_inputs(params: RoundParams, inputs: Inputs) -> None:
    """That the inputs are exactly the agreed blocks: names, shapes, integer dtypes, bounds, before any cast.

    Raises:
        InputError: They are not; names the block.
    """
    names = {block.name for block in params.blocks}
    if set(inputs) != names:
        raise InputError(f"blocks {sorted(names - set(inputs))} are missing, {sorted(set(inputs) - names)} are unknown")
    for block in params.blocks:
        _check_input(block, inputs[block.name])


def _check_input(block: Block, x: object) -> None:
    if not isinstance(x, np.ndarray) or x.dtype.kind not in "iu":
        kind = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
        raise InputError(f"block {block.name!r}: an integer array is needed, got {kind}; encode floats before")
    x = np.asarray(x)  # a masked array would hide entries from min and max
    if x.shape != (block.length,):
        raise InputError(f"block {block.name!r}: shape {x.shape} instead of ({block.length},)")
    if x.size == 0:
        return
    low, high = int(x.min()), int(x.max())
    if low < -block.bound or high > block.bound:
        raise InputError(f"block {block.name!r}: values {low}..{high} are outside +-{block.bound}")


@dataclasses.dataclass(frozen=True, repr=False)
class Stream(Redacted):
    """One mask of one client or edge: a 32-byte seed, what it is for, and its sign."""

    seed: bytes
    label: Label
    subtract: bool


def apply_streams(words: Words, streams: Iterable[Stream], index: int, transcript: bytes) -> None:
    """Adds or subtracts mask streams for block number `index`, in place, in one pass over the vector."""
    prg.add_streams(words, [(derive(s.seed, s.label, index, salt=transcript), s.subtract) for s in streams])


def send(
    state: AwaitingShared, near: Neighbourhood, inputs: Inputs | Callable[[], Inputs]
) -> tuple[AwaitingSurvivors, bytes]:
    """Masks the inputs.

    Args:
        state: The client's state.
        near: What exchange 2 gave it.
        inputs: `{block name: integers (length,)}`, or a function that gives them when they are needed.

    Raises:
        InputError: The inputs are not the agreed blocks; nothing leaves.
    """
    me, transcript = state.me, state.view.transcript
    values = inputs() if callable(inputs) else inputs
    check_inputs(me.params, values)
    streams = [Stream(state.secrets.self_seed, Label.SELF_STREAM, subtract=False)] + [
        Stream(seed, Label.PAIR_STREAM, subtract=not graph.adds(me.params, me.id, peer))
        for peer, seed in near.pair_seeds.items()
    ]
    body = bytearray()
    for index, block in enumerate(me.params.blocks):
        words = ring.encode(np.asarray(values[block.name]), block.bits)
        apply_streams(words, streams, index, transcript)
        ring.reduce_in_place(words, block.bits)
        body += ring.pack(words, block.bits)
    header = messages.seal(
        messages.MaskHeader(
            binding=transcript,
            sender=me.id,
            body_length=len(body),
            refused=near.refused,
            tag=prg.gmac(state.secrets.mac_key, body),
        ),
        me.identity.sign,
    )
    return AwaitingSurvivors(me, state.view, near), len(header).to_bytes(4, "big") + header + bytes(body)


def accept(state: AwaitingSurvivors, frame: bytes) -> AgreedSurvivors:
    """Checks U3.

    Raises:
        ServerFault: U3 is too small or inconsistent, or has a client that this one refused.
    """
    me, view, near = state.me, state.view, state.near
    answer = messages.unseal_server(frame, messages.Survivors, binding=view.transcript, roster=me.roster)
    messages.check_members(
        answer.members, within=near.sharers, at_least=me.params.min_survivors, name="U3", client=me.id
    )
    unwanted = set(answer.members) & set(near.refused)
    if unwanted:
        raise ServerFault(f"U3 has {sorted(unwanted)}, whom client {me.id} refused: the dispute is open")
    if len(graph.neighbours(me.params, answer.members, me.id)) + 1 < me.params.threshold:
        raise ServerFault(f"U3 leaves client {me.id} with fewer than t = {me.params.threshold} holders")
    agreed = statement(view.transcript, near.sharers, answer.members)
    return AgreedSurvivors(me, view, near, answer.members, agreed)


@dataclasses.dataclass(frozen=True, repr=False)
class MaskedSum(Redacted):
    """The server after exchange 3.

    Attributes:
        sums: The masked running sum of each block over U3, words of the block's ring.
        survivors: U3.
        refusals: Whom each survivor refused, and so left out of its masks.
        disputed: Clients whose vector arrived and was taken out again to end a dispute, with those they disputed with.
    """

    host: Host
    view: View
    sharers: Sharers
    sums: list[Words]
    survivors: tuple[int, ...]
    refusals: dict[int, tuple[int, ...]]
    disputed: dict[int, tuple[int, ...]]

    @property
    def statement(self) -> bytes:
        """S, the bytes that every survivor must sign alike."""
        return statement(self.view.transcript, self.sharers.members, self.survivors)


def collect(state: Sharers, replies: Replies) -> tuple[MaskedSum, Answers, Rejected]:
    """Adds up the masked vectors that arrived whole, ends the disputes, and fixes U3.

    Raises:
        BelowThresholdError: U3 is smaller than the agreed minimum.
    """
    host, params = state.host, state.host.params
    sums: list[Words] = [np.zeros(block.length, ring.word_dtype(block.bits)) for block in params.blocks]
    refusals, rejected = dict[int, tuple[int, ...]](), Rejected()
    for client in sorted(replies):
        try:
            refused, vectors = _read(replies[client], client, state)
        except SecaggError as error:
            rejected[client] = error
            continue
        refusals[client] = refused
        for total, words in zip(sums, vectors, strict=True):
            ring.add_into(total, words)
    disputed = {client: _opponents(client, refusals) for client in settle(refusals, params.colluders)}
    for client in disputed:
        _, vectors = _read(replies[client], client, state)
        for total, words in zip(sums, vectors, strict=True):
            ring.sub_into(total, words)
    survivors = tuple(client for client in refusals if client not in disputed)
    if len(survivors) < params.min_survivors:
        raise BelowThresholdError("mask", params.min_survivors, survivors, "min_survivors", rejected)
    answer = messages.seal(
        messages.Survivors(binding=state.view.transcript, sender=SERVER_ID, members=survivors), host.identity.sign
    )
    masked = MaskedSum(
        host, state.view, state, sums, survivors, {client: refusals[client] for client in survivors}, disputed
    )
    return masked, dict.fromkeys(survivors, answer), rejected


def _read(frame: bytes, client: int, state: Sharers) -> tuple[tuple[int, ...], list[Words]]:
    params, view = state.host.params, state.view
    header_frame, body = _split(frame, client, params)
    header = messages.unseal(
        header_frame, messages.MaskHeader, binding=view.transcript, sender=client, roster=state.host.roster
    )
    if header.body_length != len(body) or not hmac.compare_digest(header.tag, prg.gmac(state.mac_keys[client], body)):
        raise PeerFault(client, "sent a body that its header does not authenticate")
    near = graph.neighbours(params, state.members, client)
    if list(header.refused) != sorted(set(header.refused)) or not set(header.refused) <= set(near):
        raise PeerFault(client, f"refused {list(header.refused)}, who are not all its neighbours")
    if len(header.refused) > max(params.colluders, 1):
        raise PeerFault(client, f"refused {len(header.refused)} dealers, more than c = {params.colluders} can be wrong")
    vectors, start = [], 0
    for block, length in zip(params.blocks, _packed_lengths(params), strict=True):
        vectors.append(ring.unpack(body[start : start + length], block.length, block.bits))
        start += length
    return header.refused, vectors


def _packed_lengths(params: RoundParams) -> list[int]:
    return [ring.packed_length(block.length, block.bits) for block in params.blocks]


def _split(frame: bytes, client: int, params: RoundParams) -> tuple[bytes, memoryview]:
    """The header frame and the body of a mask frame whose length is exactly right."""
    if not isinstance(frame, bytes) or len(frame) < 4:
        raise DecodeError(f"client {client} sent no mask frame")
    header_end, body_length = 4 + int.from_bytes(frame[:4], "big"), sum(_packed_lengths(params))
    if len(frame) != header_end + body_length:
        raise DecodeError(
            f"client {client} sent a mask frame of {len(frame)} bytes instead of {header_end + body_length}"
        )
    return frame[4:header_end], memoryview(frame)[header_end:]


def _opponents(client: int, refusals: Mapping[int, tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(sorted({i for i, refused in refusals.items() if client in refused} | set(refusals[client])))


def glance(state: Sharers, client: int, frame: bytes) -> None:
    """Whether a frame is the one that is waited for, its signature and body apart.

    Raises:
        DecodeError: Another exchange's, round's or sender's.
    """
    header, _ = _split(frame, client, state.host.params)
    messages.glance(header, messages.MaskHeader, binding=state.view.transcript, sender=client)


def settle(refusals: Mapping[int, tuple[int, ...]], colluders: int) -> tuple[int, ...]:
    """Whom to drop so that no dispute between two arrived clients stays open.

    A refusal proves only that one of the two is wrong. So everybody in more than max(c, 1) disputes goes, then repeatedly
    the party with most open disputes (ties: the refused one) until none is left.

    Args:
        refusals: Whom each client whose vector arrived refused.
        colluders: c.
    """
    disputes = {(i, j) for i, refused in refusals.items() for j in refused if j in refusals}
    dropped: list[int] = []

    def counts() -> collections.Counter[int]:
        pairs = {frozenset(dispute) for dispute in disputes}
        return collections.Counter(party for pair in pairs for party in pair)

    dropped += [party for party, count in sorted(counts().items()) if count > max(colluders, 1)]
    disputes = {d for d in disputes if not set(d) & set(dropped)}
    while disputes:
        open_disputes = counts()
        most = max(open_disputes.values())
        tied = sorted(p for p, count in open_disputes.items() if count == most)
        accused = {j for _, j in disputes}
        loser = next((p for p in tied if p in accused), tied[0])
        dropped.append(loser)
        disputes = {d for d in disputes if loser not in d}
    return tuple(sorted(dropped))
