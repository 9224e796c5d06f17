"""Exchange 2: every client shares its two secrets among its neighbours, and sends each edge's pair seed to its other end.

[BIK+17] Fig. 4 round 1, with commitments to every share and one signature (over a Merkle root) for all parts, so that a
client can tell a lying dealer from a lying server, and the server can name who reveals a wrong share.
"""

import dataclasses

import numpy as np
import numpy.typing as npt

from secagg import graph, messages
from secagg.crypto import merkle, shamir
from secagg.crypto.sealing import SERVER_ID, Purpose, box_info
from secagg.errors import BelowThresholdError, DecodeError, PeerFault, SealError, SecaggError, ServerFault, ShareError
from secagg.protocols.pairwise.advertise import Advertisers, AwaitingAdvertised, RoundSecrets
from secagg.protocols.pairwise.parties import (
    Answers,
    Host,
    Member,
    Redacted,
    Rejected,
    Replies,
    View,
    holders,
    pair_commitment,
    pair_seed,
    share_commitment,
)

_ROOT, _SELF = b"root", b"self"
SHARE_LENGTH = 36


@dataclasses.dataclass(frozen=True, repr=False)
class HeldShares(Redacted):
    """One dealer's two shares as one holder has them, 36 bytes each."""

    root: bytes
    self_seed: bytes


@dataclasses.dataclass(frozen=True, repr=False)
class AwaitingShared(Redacted):
    """A client that has dealt its shares and waits for its neighbours'."""

    me: Member
    secrets: RoundSecrets
    view: View
    own: HeldShares


@dataclasses.dataclass(frozen=True, repr=False)
class Neighbourhood(Redacted):
    """What a client holds once its neighbours' parts are in.

    Attributes:
        sharers: U2.
        held: Shares by dealer, the client's own included; refused dealers are not here.
        pair_seeds: s_ij by neighbour, refused neighbours left out.
        refused: Dealers whose part was wrong, sorted.
    """

    sharers: tuple[int, ...]
    held: dict[int, HeldShares]
    pair_seeds: dict[int, bytes]
    refused: tuple[int, ...]


def send(state: AwaitingAdvertised, view: View) -> tuple[AwaitingShared, bytes]:
    """Deals R and b to the holders, and seals the pair seeds that this client chooses."""
    me, secrets = state.me, state.secrets
    owners = holders(me.params, view.advertisers, me.id)
    points = [graph.position(me.params, holder) + 1 for holder in owners]
    dealt = shamir.share([secrets.root, secrets.self_seed], me.params.threshold, points, me.entropy)
    leaves, own = [], None
    for index, holder in enumerate(owners):
        shares = HeldShares(*_encode(dealt[:, index]))
        if holder == me.id:
            own = shares
        leaves.append(messages.encode(_part(me, secrets, view, holder, shares)))
    if own is None:
        raise ServerFault("U1 leaves out this client")
    header = messages.seal(
        messages.ShareHeader(binding=view.transcript, sender=me.id, root=merkle.root(leaves)), me.identity.sign
    )
    return AwaitingShared(me, secrets, view, own), messages.encode(messages.ShareFrame(header, tuple(leaves)))


def _encode(shares: npt.NDArray[np.uint32]) -> tuple[bytes, bytes]:
    return shamir.encode_share(shares[0]), shamir.encode_share(shares[1])


def _part(
    me: Member, secrets: RoundSecrets, view: View, holder: int, shares: HeldShares
) -> messages.Part | messages.OwnPart:
    transcript = view.transcript
    root_commitment = share_commitment(transcript, me.id, holder, _ROOT, shares.root)
    self_commitment = share_commitment(transcript, me.id, holder, _SELF, shares.self_seed)
    if holder == me.id:
        return messages.OwnPart(holder, root_commitment, self_commitment)
    advert, pair = view.peers[holder], None
    if graph.is_chooser(me.params, me.id, holder):
        seed = pair_seed(secrets.root, transcript, me.id, holder)
        info = box_info(Purpose.PAIR_SEED, transcript, me.id, holder)
        pair = messages.PairBox(
            _seal(me, holder, advert.mask_key, seed, info), pair_commitment(transcript, me.id, holder, seed)
        )
    info = box_info(Purpose.SHARES, transcript, me.id, holder)
    box = _seal(me, holder, advert.channel_key, shares.root + shares.self_seed, info)
    return messages.Part(holder, box, root_commitment, self_commitment, pair)


def _seal(me: Member, holder: int, key: bytes, plaintext: bytes, info: bytes) -> bytes:
    try:
        return me.suite.seal(key, plaintext, info=info)
    except SealError as error:
        raise PeerFault(holder, f"advertised a key that nobody can seal to: {error}") from None


def accept(state: AwaitingShared, frame: bytes) -> Neighbourhood:
    """Checks U2 and opens the neighbours' parts; a dealer whose part is wrong is refused, not fatal.

    Raises:
        ServerFault: U2 is too small or inconsistent, or a part is not the one that its dealer signed.
        PeerFault: More dealers must be refused than may be corrupt; names the last.
    """
    me, view = state.me, state.view
    answer = messages.unseal_server(frame, messages.Shared, binding=view.transcript, roster=me.roster)
    messages.check_members(
        answer.members, within=view.advertisers, at_least=me.params.min_survivors, name="U2", client=me.id
    )
    near = graph.neighbours(me.params, answer.members, me.id)
    if tuple(delivery.dealer for delivery in answer.deliveries) != near:
        raise ServerFault(f"U2 does not come with exactly the parts of the neighbours of client {me.id}")
    if len(near) + 1 < me.params.threshold:
        raise ServerFault(
            f"U2 leaves client {me.id} with {len(near)} neighbours, t = {me.params.threshold} shares are needed"
        )
    held, seeds, refused = {me.id: state.own}, {}, list[int]()
    for delivery in answer.deliveries:
        dealer = delivery.dealer
        _check_delivery(delivery, me, view)
        try:
            held[dealer], seeds[dealer] = _open(delivery, state)
        except (DecodeError, SealError, ShareError, PeerFault) as error:
            refused.append(dealer)
            if len(refused) > max(me.params.colluders, 1):
                raise PeerFault(
                    dealer,
                    f"dealt a wrong part ({error}), and so did {refused[:-1]}: more than c = {me.params.colluders}",
                ) from None
    return Neighbourhood(answer.members, held, seeds, tuple(refused))


def _check_delivery(delivery: messages.Delivery, me: Member, view: View) -> None:
    """That the dealer signed this very part for this very holder; if not, the server made it up."""
    dealer = delivery.dealer
    owners = holders(me.params, view.advertisers, dealer)
    try:
        header = messages.unseal(
            delivery.header, messages.ShareHeader, binding=view.transcript, sender=dealer, roster=me.roster
        )
        merkle.check(
            delivery.leaf, index=owners.index(me.id), size=len(owners), path=delivery.path, expected_root=header.root
        )
    except SecaggError as error:
        raise ServerFault(f"the part of client {dealer} is not what it signed: {error}") from None


def _open(delivery: messages.Delivery, state: AwaitingShared) -> tuple[HeldShares, bytes]:
    me, view, dealer = state.me, state.view, delivery.dealer
    part = messages.decode(delivery.leaf, messages.Part)
    _check_part(part, dealer, me.id, me)
    plain = me.suite.open(
        state.secrets.channel_key, part.share_box, info=box_info(Purpose.SHARES, view.transcript, dealer, me.id)
    )
    if len(plain) != 2 * SHARE_LENGTH:
        raise PeerFault(dealer, f"sealed {len(plain)} bytes where two shares have {2 * SHARE_LENGTH}")
    shares = HeldShares(plain[:SHARE_LENGTH], plain[SHARE_LENGTH:])
    for kind, share, commitment in (
        (_ROOT, shares.root, part.root_commitment),
        (_SELF, shares.self_seed, part.self_commitment),
    ):
        shamir.decode_share(share)
        if share_commitment(view.transcript, dealer, me.id, kind, share) != commitment:
            raise PeerFault(dealer, f"dealt a {kind.decode()} share that is not the one it committed to")
    if part.pair is None:
        return shares, pair_seed(state.secrets.root, view.transcript, me.id, dealer)
    info = box_info(Purpose.PAIR_SEED, view.transcript, dealer, me.id)
    seed = me.suite.open(state.secrets.mask_key, part.pair.box, info=info)
    if len(seed) != 32 or pair_commitment(view.transcript, dealer, me.id, seed) != part.pair.commitment:
        raise PeerFault(dealer, "sent a pair seed that is not the one it committed to")
    return shares, seed


def _check_part(part: messages.Part, dealer: int, holder: int, party: Member | Host) -> None:
    """The form of a part: its holder, exact box sizes, and a pair seed exactly where the dealer is the chooser."""
    overhead = party.suite.box_overhead
    if part.holder != holder:
        raise DecodeError(f"the part of client {dealer} is for {part.holder} instead of {holder}")
    if len(part.share_box) != 2 * SHARE_LENGTH + overhead:
        raise DecodeError(f"client {dealer} sealed a share box of {len(part.share_box)} bytes for {holder}")
    if (part.pair is not None) != graph.is_chooser(party.params, dealer, holder):
        raise DecodeError(
            f"client {dealer} has a pair seed for {holder} where it is not the chooser, or none where it is"
        )
    if part.pair is not None and len(part.pair.box) != 32 + overhead:
        raise DecodeError(f"client {dealer} sealed a seed box of {len(part.pair.box)} bytes for {holder}")


@dataclasses.dataclass(frozen=True)
class Deal:
    """What the server keeps of one dealer: its signed header, its leaves and their decoded parts by holder."""

    header: bytes
    leaves: tuple[bytes, ...]
    parts: dict[int, messages.Part]
    own: messages.OwnPart

    def commitment(self, holder: int, kind: bytes) -> bytes:
        """The dealer's commitment to the share of this kind that `holder` has."""
        part = self.own if holder == self.own.holder else self.parts[holder]
        return part.root_commitment if kind == _ROOT else part.self_commitment


@dataclasses.dataclass(frozen=True, repr=False)
class Sharers(Redacted):
    """The server after exchange 2: U2 is `tuple(deals)`."""

    host: Host
    view: View
    mac_keys: dict[int, bytes]
    deals: dict[int, Deal]

    @property
    def members(self) -> tuple[int, ...]:
        """U2, sorted."""
        return tuple(self.deals)


def glance(state: Advertisers, client: int, frame: bytes) -> None:
    """Whether a frame is the one that is waited for, its signature and parts apart.

    Raises:
        DecodeError: Another exchange's, round's or sender's.
    """
    header = messages.decode(frame, messages.ShareFrame).header
    messages.glance(header, messages.ShareHeader, binding=state.view.transcript, sender=client)


def collect(state: Advertisers, replies: Replies) -> tuple[Sharers, Answers, Rejected]:
    """Forms U2 of the clients whose parts have the right form under their signed root.

    Raises:
        BelowThresholdError: U2 is smaller than the agreed minimum.
    """
    host, view = state.host, state.view
    deals, rejected = {}, Rejected()
    for client in sorted(replies):
        try:
            deals[client] = _read(replies[client], client, host, view)
        except SecaggError as error:
            rejected[client] = error
    members = tuple(deals)
    if len(members) < host.params.min_survivors:
        raise BelowThresholdError("share", host.params.min_survivors, members, "min_survivors", rejected)
    paths = {dealer: merkle.paths(deal.leaves) for dealer, deal in deals.items()}
    answers = {}
    for client in members:
        deliveries = []
        for dealer in graph.neighbours(host.params, members, client):
            index = holders(host.params, view.advertisers, dealer).index(client)
            deal = deals[dealer]
            deliveries.append(messages.Delivery(dealer, deal.header, deal.leaves[index], paths[dealer][index]))
        answer = messages.Shared(
            binding=view.transcript, sender=SERVER_ID, members=members, deliveries=tuple(deliveries)
        )
        answers[client] = messages.seal(answer, host.identity.sign)
    return Sharers(host, view, state.mac_keys, deals), answers, rejected


def _read(frame: bytes, client: int, host: Host, view: View) -> Deal:
    shares = messages.decode(frame, messages.ShareFrame)
    header = messages.unseal(
        shares.header, messages.ShareHeader, binding=view.transcript, sender=client, roster=host.roster
    )
    owners = holders(host.params, view.advertisers, client)
    if len(shares.leaves) != len(owners):
        raise DecodeError(f"client {client} sent {len(shares.leaves)} parts for {len(owners)} holders")
    if merkle.root(shares.leaves) != header.root:
        raise PeerFault(client, "sent parts that are not under its signed root")
    parts, own = {}, None
    for holder, leaf in zip(owners, shares.leaves, strict=True):
        if holder == client:
            own = messages.decode(leaf, messages.OwnPart)
            if own.holder != client:
                raise DecodeError(f"client {client} committed to its own shares under another name")
        else:
            parts[holder] = messages.decode(leaf, messages.Part)
            _check_part(parts[holder], client, holder, host)
    if own is None:
        raise DecodeError(f"client {client} is not a member of U1")
    return Deal(shares.header, shares.leaves, parts, own)
