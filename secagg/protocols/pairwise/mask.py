"""Exchange 3: every client sends its masked vectors; from here on its input counts as released.

[BIK+17] Fig. 4 round 2: y_i = x_i + PRG(b_i) + sum of +-PRG(s_ij) in each block's ring. A client leaves out the edges to
dealers that it refused and says so; the server ends each dispute by dropping one side, and publishes U3.

A mask frame is u32be header length ‖ header frame ‖ zero bytes up to a multiple of 16 ‖ the packed blocks, one after the other:
the server adds the body where it lies, without a copy.
"""

import collections
import dataclasses
import hmac
import threading
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import numpy.typing as npt

from secagg import messages, ring
from secagg.crypto import prg
from secagg.crypto.kdf import Label, derive
from secagg.crypto.sealing import SERVER_ID
from secagg.errors import BelowThresholdError, DecodeError, DisputeError, InputError, PeerFault, ServerFault
from secagg.params import Block, RoundParams
from secagg.protocols.pairwise.parties import Answers, Host, Member, Redacted, Rejected, View, statement
from secagg.protocols.pairwise.share import AwaitingShared, Neighbourhood, Sharers
from secagg.spool import Spool

Inputs = Mapping[str, npt.NDArray[np.integer]]
Words = npt.NDArray[np.unsignedinteger]

_KEEP_WARM = 64 * 2**20


class _Scratch(threading.local):
    """A warm body and a warm vector in each thread: fresh pages cost more than the cipher. Large ones are not kept."""

    def __init__(self) -> None:
        self._room: dict[str, npt.NDArray[np.uint8]] = {}

    def take(self, name: str, size: int) -> npt.NDArray[np.uint8]:
        """`size` bytes that nobody else in this thread uses under this name."""
        room = self._room.get(name)
        if room is None or room.size < size:
            room = np.empty(size, np.uint8)
            if size <= _KEEP_WARM:
                self._room[name] = room
        return room[:size]


_scratch = _Scratch()


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
        statement: The digest of S, which it may sign once.
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
    for block, x in zip(params.blocks, _vectors(params, inputs), strict=True):
        _check_bounds(block, x)


def _vectors(params: RoundParams, inputs: Inputs) -> list[npt.NDArray[np.integer]]:
    """The inputs in order of block, checked in all but their bounds."""
    names = {block.name for block in params.blocks}
    if set(inputs) != names:
        raise InputError(f"blocks {sorted(names - set(inputs))} are missing, {sorted(set(inputs) - names)} are unknown")
    return [_vector(block, inputs[block.name]) for block in params.blocks]


def _vector(block: Block, x: object) -> npt.NDArray[np.integer]:
    if not isinstance(x, np.ndarray) or x.dtype.kind not in "iu":
        kind = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
        raise InputError(f"block {block.name!r}: an integer array is needed, got {kind}; encode floats before")
    x = np.asarray(x)  # a masked array would hide entries from min and max
    if x.shape != (block.length,):
        raise InputError(f"block {block.name!r}: shape {x.shape} instead of ({block.length},)")
    return x


def _check_bounds(block: Block, x: npt.NDArray[np.integer]) -> None:
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


def stream_keys(streams: Iterable[Stream], index: int, transcript: bytes) -> list[tuple[bytes, bool]]:
    """The keystream keys of masks for block number `index`, each with whether it is subtracted."""
    return [(derive(s.seed, s.label, index, salt=transcript), s.subtract) for s in streams]


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
    me, graph, transcript = state.me, state.view.graph, state.view.transcript
    vectors = _vectors(me.params, inputs() if callable(inputs) else inputs)
    streams = [Stream(state.secrets.self_seed, Label.SELF_STREAM, subtract=False)] + [
        Stream(seed, Label.PAIR_STREAM, subtract=not graph.adds(me.id, peer)) for peer, seed in near.pair_seeds.items()
    ]
    body, start = _scratch.take("body", me.params.body_length), 0
    for index, (block, x) in enumerate(zip(me.params.blocks, vectors, strict=True)):
        end = start + block.packed_length
        _mask(x, block, body[start:end], stream_keys(streams, index, transcript))
        start = end
    header = messages.seal(
        messages.MaskHeader(
            binding=transcript,
            sender=me.id,
            body_length=len(body),
            refused=near.refused,
            tag=prg.gmac(state.secrets.mac_key, body.data),
        ),
        me.identity.sign,
    )
    front = len(header).to_bytes(4, "big") + header
    frame = b"".join((front, bytes(messages.body_start(len(front)) - len(front)), body.data))
    return AwaitingSurvivors(me, state.view, near), frame


def _mask(
    x: npt.NDArray[np.integer], block: Block, room: npt.NDArray[np.uint8], keys: Iterable[tuple[bytes, bool]]
) -> None:
    """Writes the packed masked vector of one block into its place in the body."""
    dtype = ring.word_dtype(block.bits)
    words: Words = _scratch.take("words", block.length * dtype.itemsize).view(dtype)
    try:
        ring.encode_into(x, -block.bound, block.bound, words)
    except InputError:
        _check_bounds(block, x)  # names the block, and the extremes of the whole vector
        raise
    prg.add_streams(words, keys)
    ring.reduce_in_place(words, block.bits)
    ring.pack(words, block.bits, out=room.data)


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
    survivors = frozenset(answer.members)
    unwanted = survivors.intersection(near.refused)
    if unwanted:
        raise ServerFault(f"U3 has {sorted(unwanted)}, whom client {me.id} refused: the dispute is open")
    if len(view.graph.within(me.id, survivors)) + 1 < me.params.threshold:
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
        headers: The signed header of each vector that arrived.
        disputed: Clients whose vector arrived and was taken out again to end a dispute, and why.
    """

    sharers: Sharers
    sums: list[Words]
    survivors: tuple[int, ...]
    refusals: dict[int, tuple[int, ...]]
    headers: dict[int, bytes]
    disputed: dict[int, DisputeError]

    @property
    def host(self) -> Host:
        """The server."""
        return self.sharers.host

    @property
    def view(self) -> View:
        """What exchange 1 fixed."""
        return self.sharers.view

    @property
    def statement(self) -> bytes:
        """The digest of S, which every survivor must sign alike."""
        return statement(self.view.transcript, self.sharers.members, self.survivors)


MaskedVector = tuple[messages.MaskHeader, bytes, memoryview]
"""The header that a client signed, its frame as it was received, and the body that it authenticates."""


class CollectingVectors(Redacted):
    """The server during exchange 3: a running sum, and the bodies in a spool until nobody can be dropped any more."""

    def __init__(self, state: Sharers, spool: Spool) -> None:
        self._state = state
        self._spool = spool
        self._headers: dict[int, bytes] = {}
        self._refusals: dict[int, tuple[int, ...]] = {}
        self._sums: list[Words] = [ring.room_to_decode(block.length, block.bits) for block in state.host.params.blocks]

    def read(self, client: int, frame: bytes) -> messages.Unverified[MaskedVector]:
        """A masked vector, whose tag is checked along with the signature over it.

        Raises:
            DecodeError: It is not that client's for this round.
        """
        header_frame, body = _split(frame, client, self._state.host.params)
        key = self._state.before.mac_keys[client]

        def authentic(header: messages.MaskHeader) -> MaskedVector:
            if header.body_length != len(body) or not hmac.compare_digest(header.tag, prg.gmac(key, body)):
                raise DecodeError(f"the body of client {client} is not the one that its header authenticates")
            return header, header_frame, body

        binding = self._state.view.transcript
        return messages.unverified(header_frame, messages.MaskHeader, binding=binding, sender=client).then(authentic)

    def take(self, client: int, _frame: bytes, vector: MaskedVector) -> None:
        """Adds a masked vector to the running sum.

        Raises:
            PeerFault: Its refusals or its padding are wrong. The sum is as it was.
            LocalError: The spool could not keep it.
        """
        params, view = self._state.host.params, self._state.view
        header, header_frame, body = vector
        evidence = {"mask header": header_frame, "digests": view.digests}
        if list(header.refused) != sorted(set(header.refused)) or not set(header.refused) <= set(
            view.graph.within(client, self._state.deals)
        ):
            raise PeerFault(client, "refused clients that are not its neighbours, or not in order", evidence)
        if len(header.refused) > max(params.colluders, 1):
            message = f"refused {len(header.refused)} dealers, more than c = {params.colluders} can be wrong"
            raise PeerFault(client, message, evidence)
        blocks = list(_blocks(body, params))
        for block, packed in blocks:
            try:
                ring.check_packed(packed, block.length, block.bits)
            except DecodeError as error:
                raise PeerFault(client, f"block {block.name!r}: {error}", evidence) from None
        self._spool.put(client, body)
        for total, (block, packed) in zip(self._sums, blocks, strict=True):
            ring.combine_packed(total, packed, block.bits)
        self._headers[client], self._refusals[client] = header_frame, header.refused

    def close(self, rejected: Rejected) -> tuple[MaskedSum, Answers]:
        """Ends the disputes and fixes U3.

        Args:
            rejected: Why clients were missing by then, for an error.

        Raises:
            BelowThresholdError: U3 is smaller than the agreed minimum.
        """
        state, params = self._state, self._state.host.params
        refusals = dict(sorted(self._refusals.items()))
        disputed = {client: self._dispute(client, refusals) for client in settle(refusals, params.colluders)}
        for client in disputed:
            for total, (block, packed) in zip(self._sums, _blocks(self._spool.get(client), params), strict=True):
                ring.combine_packed(total, packed, block.bits, subtract=True)
        self._spool.close()
        for deal in state.deals.values():
            deal.tree.forget_paths()  # delivered by now; only evidence may want one again
        survivors = tuple(client for client in refusals if client not in disputed)
        if len(survivors) < params.min_survivors:
            raise BelowThresholdError("mask", params.min_survivors, survivors, "min_survivors", rejected | disputed)
        answer = messages.seal(
            messages.Survivors(binding=state.view.transcript, sender=SERVER_ID, members=survivors),
            state.host.identity.sign,
        )
        kept = {client: refusals[client] for client in survivors}
        return MaskedSum(state, self._sums, survivors, kept, self._headers, disputed), dict.fromkeys(survivors, answer)

    def _dispute(self, client: int, refusals: Mapping[int, tuple[int, ...]]) -> DisputeError:
        accusers = {other for other, refused in refusals.items() if client in refused}
        others = sorted(accusers | set(refusals[client]))
        evidence = {f"mask header {i}": self._headers[i] for i in sorted({client, *accusers})}
        evidence["digests"] = self._state.view.digests
        return DisputeError((client, *others), "dropped the first to end the dispute between them", evidence)


def _blocks(body: memoryview, params: RoundParams) -> Iterable[tuple[Block, memoryview]]:
    start = 0
    for block in params.blocks:
        yield block, body[start : start + block.packed_length]
        start += block.packed_length


def _split(frame: bytes, client: int, params: RoundParams) -> tuple[bytes, memoryview]:
    """The header frame and the body of a mask frame whose length is exactly right; the body is a view."""
    whole = memoryview(frame)
    header_end = 4 + int.from_bytes(whole[:4], "big")
    start = messages.body_start(header_end)
    expected = start + params.body_length
    if len(whole) < 4 or header_end > messages.MAX_FRAME_LENGTH or len(whole) != expected:
        raise DecodeError(f"client {client} sent a mask frame of {len(whole)} bytes instead of {expected}")
    if any(whole[header_end:start]):
        raise DecodeError(f"client {client} sent a mask frame whose header is not padded with zeros")
    return bytes(whole[4:header_end]), whole[start:]


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
