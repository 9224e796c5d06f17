"""Exchange 5: for each neighbour one share: of its self seed if its vector is in the sum, of its mask root if it is not.

[BIK+17] Fig. 4 round 4. The answers follow from the statement that the client signed, never from a list that the server
asks for, and an answer has room for one kind of share. A dropped client's pair seeds come from its neighbours; its root is
reconstructed only for edges to survivors that went silent since.
"""

import dataclasses

import numpy as np
import numpy.typing as npt

from secagg import graph, messages, ring
from secagg.crypto import shamir
from secagg.crypto.kdf import Label
from secagg.crypto.sealing import Purpose, box_info
from secagg.errors import BelowThresholdError, PeerFault, RoundError, SealError, SecaggError, ShareError
from secagg.protocols.pairwise.confirm import Confirmed
from secagg.protocols.pairwise.mask import AgreedSurvivors, MaskedSum, Stream, apply_streams
from secagg.protocols.pairwise.parties import (
    Redacted,
    Rejected,
    Replies,
    holders,
    mask_key_pair,
    pair_commitment,
    pair_seed,
    seed_commitment,
    share_commitment,
)

_ROOT, _SELF = b"root", b"self"


def send(agreed: AgreedSurvivors) -> bytes:
    """One answer for each holder's dealer that this client has shares of."""
    me, near = agreed.me, agreed.near
    survivors = set(agreed.survivors)
    answers: list[messages.SelfShare | messages.RootShare] = []
    for owner in sorted(near.held):
        if owner in survivors:
            answers.append(messages.SelfShare(owner, near.held[owner].self_seed))
        else:
            answers.append(messages.RootShare(owner, near.held[owner].root, near.pair_seeds[owner]))
    return messages.seal(
        messages.Unmask(binding=agreed.view.transcript, sender=me.id, answers=tuple(answers)), me.identity.sign
    )


@dataclasses.dataclass(frozen=True)
class Unmasked:
    """What the server ends with.

    Attributes:
        sums: `{block name: int64 (length,)}`, the exact sum over `survivors`.
        survivors: U3.
    """

    sums: dict[str, npt.NDArray[np.int64]]
    survivors: tuple[int, ...]


@dataclasses.dataclass(repr=False)
class _Revealed(Redacted):
    """Valid shares and pair seeds so far, shares by owner and holder, seeds by (survivor, dropped); and who was wrong."""

    self_shares: dict[int, dict[int, bytes]]
    root_shares: dict[int, dict[int, bytes]]
    pair_seeds: dict[tuple[int, int], bytes]
    rejected: Rejected


def glance(state: Confirmed, client: int, frame: bytes) -> None:
    """Whether a frame is the one that is waited for, its signature apart.

    Raises:
        DecodeError: Another exchange's, round's or sender's.
    """
    messages.glance(frame, messages.Unmask, binding=state.masked.view.transcript, sender=client)


def collect(state: Confirmed, replies: Replies) -> tuple[Unmasked, Rejected]:
    """Takes the masks off the sum.

    Raises:
        BelowThresholdError: A secret that is needed has fewer than t valid shares.
        PeerFault: t valid shares contradict their dealer's own commitments: it is provably corrupt, nothing is published.
        RoundError: The sum is outside what inputs within their bounds can give.
    """
    masked = state.masked
    revealed = _Revealed({}, {}, {}, {})
    for client in sorted(replies):
        try:
            _read(replies[client], client, masked, revealed)
        except SecaggError as error:
            revealed.rejected[client] = error
    streams = [_self_mask(client, masked, revealed) for client in masked.survivors]
    for dropped in sorted(set(masked.sharers.members) - set(masked.survivors)):
        streams += _pair_masks(dropped, masked, revealed)
    sums = [total.copy() for total in masked.sums]
    for index, words in enumerate(sums):
        apply_streams(words, streams, index, masked.view.transcript)
    return Unmasked(_decode(sums, masked), masked.survivors), revealed.rejected


def _read(frame: bytes, client: int, masked: MaskedSum, revealed: _Revealed) -> None:
    """Keeps every valid answer; raises about the first wrong one after the valid ones are kept."""
    host, transcript, sharers = masked.host, masked.view.transcript, masked.sharers
    message = messages.unseal(frame, messages.Unmask, binding=transcript, sender=client, roster=host.roster)
    survivors, refused = set(masked.survivors), set(masked.refusals[client])
    dealers = set(holders(host.params, sharers.members, client)) - refused
    expected = [(owner, messages.SelfShare if owner in survivors else messages.RootShare) for owner in sorted(dealers)]
    if [(answer.owner, type(answer)) for answer in message.answers] != expected:
        raise PeerFault(client, "did not answer for exactly the clients that the signed statement asks for")
    fault: PeerFault | None = None
    for answer in message.answers:
        try:
            _keep(answer, client, masked, revealed)
        except PeerFault as error:
            fault = fault or error
    if fault is not None:
        raise fault


def _keep(answer: messages.SelfShare | messages.RootShare, client: int, masked: MaskedSum, revealed: _Revealed) -> None:
    transcript, sharers, owner = masked.view.transcript, masked.sharers, answer.owner
    kind = _SELF if isinstance(answer, messages.SelfShare) else _ROOT
    expected = sharers.deals[owner].commitment(client, kind)
    if share_commitment(transcript, owner, client, kind, answer.share) != expected:
        raise PeerFault(client, f"revealed a wrong share of the {kind.decode()} secret of client {owner}")
    try:
        shamir.decode_share(answer.share)
    except SecaggError as error:
        raise PeerFault(client, f"revealed a share of client {owner} that is none: {error}") from None
    if isinstance(answer, messages.SelfShare):
        revealed.self_shares.setdefault(owner, {})[client] = answer.share
        return
    revealed.root_shares.setdefault(owner, {})[client] = answer.share
    if not _seed_matches(masked, client, owner, answer.pair_seed):
        raise PeerFault(client, f"revealed a pair seed with client {owner} that is not the committed one")
    revealed.pair_seeds[client, owner] = answer.pair_seed


def _seed_matches(masked: MaskedSum, client: int, peer: int, seed: bytes) -> bool:
    params, transcript, deals = masked.host.params, masked.view.transcript, masked.sharers.deals
    chooser, other = (client, peer) if graph.is_chooser(params, client, peer) else (peer, client)
    pair = deals[chooser].parts[other].pair
    return pair is not None and pair.commitment == pair_commitment(transcript, chooser, other, seed)


def _reconstruct(owner: int, shares: dict[int, bytes], masked: MaskedSum, what: str, rejected: Rejected) -> bytes:
    params = masked.host.params
    if len(shares) < params.threshold:
        alive = tuple(sorted(shares))
        reason = f"shares of the {what} of client {owner}"
        raise BelowThresholdError("unmask", params.threshold, alive, reason, rejected)
    chosen = sorted(shares)[: params.threshold]
    points = [graph.position(params, holder) + 1 for holder in chosen]
    try:
        return shamir.reconstruct(points, np.stack([shamir.decode_share(shares[holder]) for holder in chosen]))
    except ShareError as error:
        raise PeerFault(owner, f"dealt shares of its {what} that come from no 32-byte secret: {error}") from None


def _self_mask(client: int, masked: MaskedSum, revealed: _Revealed) -> Stream:
    seed = _reconstruct(client, revealed.self_shares.get(client, {}), masked, "self seed", revealed.rejected)
    if seed_commitment(masked.host.context, client, seed) != masked.view.peers[client].seed_commitment:
        raise PeerFault(client, "dealt shares of another self seed than it committed to")
    return Stream(seed, Label.SELF_STREAM, subtract=True)


def _pair_masks(dropped: int, masked: MaskedSum, revealed: _Revealed) -> list[Stream]:
    """What the survivors added and subtracted for a client that is not in the sum, each with its sign undone."""
    params, streams = masked.host.params, []
    root: bytes | None = None
    for client in graph.neighbours(params, (*masked.survivors, dropped), dropped):
        if dropped in masked.refusals[client]:
            continue
        seed = revealed.pair_seeds.get((client, dropped))
        if seed is None:
            root = root or _open_root(dropped, masked, revealed)
            seed = _seed_from_root(root, dropped, client, masked)
        streams.append(Stream(seed, Label.PAIR_STREAM, subtract=graph.adds(params, client, dropped)))
    return streams


def _open_root(dropped: int, masked: MaskedSum, revealed: _Revealed) -> bytes:
    root = _reconstruct(dropped, revealed.root_shares.get(dropped, {}), masked, "mask root", revealed.rejected)
    key = mask_key_pair(masked.host.suite, root, masked.host.context)
    if key.public != masked.view.peers[dropped].mask_key:
        raise PeerFault(dropped, "dealt shares of a mask root that does not give its mask key")
    return root


def _seed_from_root(root: bytes, dropped: int, client: int, masked: MaskedSum) -> bytes:
    """The pair seed of an edge whose surviving end is silent, from the dropped end's root."""
    host, transcript = masked.host, masked.view.transcript
    if graph.is_chooser(host.params, dropped, client):
        seed, culprit = pair_seed(root, transcript, dropped, client), dropped
    else:
        pair, culprit = masked.sharers.deals[client].parts[dropped].pair, client
        if pair is None:
            raise PeerFault(client, f"sent client {dropped} no pair seed")
        key = mask_key_pair(host.suite, root, host.context)
        try:
            seed = host.suite.open(key, pair.box, info=box_info(Purpose.PAIR_SEED, transcript, client, dropped))
        except SealError as error:
            raise PeerFault(client, f"sealed its pair seed for client {dropped} wrongly: {error}") from None
    if not _seed_matches(masked, client, dropped, seed):
        raise PeerFault(culprit, "committed to another pair seed than it used")
    return seed


def _decode(sums: list[npt.NDArray[np.unsignedinteger]], masked: MaskedSum) -> dict[str, npt.NDArray[np.int64]]:
    params, out = masked.host.params, {}
    for block, words in zip(params.blocks, sums, strict=True):
        ring.reduce_in_place(words, block.bits)
        total = ring.decode(words, block.bits)
        limit = len(masked.survivors) * block.bound
        if total.size and (int(total.min()) < -limit or int(total.max()) > limit):
            raise RoundError(
                f"block {block.name!r}: the sum leaves +-{limit}, which {len(masked.survivors)} inputs within +-{block.bound} "
                "cannot: a client sent more than its bound, or a mask did not cancel; nothing is published"
            )
        out[block.name] = total
    return out
