"""Exchange 2: every client shares its two secrets among its neighbours, and sends each edge's pair seed to its other end.

[BIK+17] Fig. 4 round 1, with commitments to every share and one signature (over a Merkle root) for all parts, so that a
client can tell a lying dealer from a lying server, and the server can name who reveals a wrong share.
"""

import dataclasses

from secagg import messages
from secagg.crypto import merkle, shamir
from secagg.crypto.sealing import SERVER_ID, Purpose, box_info
from secagg.crypto.shamir import SHARE_LENGTH
from secagg.errors import BelowThresholdError, DecodeError, PeerFault, SealError, SecaggError, ServerFault, ShareError
from secagg.protocols.pairwise.advertise import Advertisers, AwaitingAdvertised, RoundSecrets
from secagg.protocols.pairwise.parties import (
    ROOT,
    SELF,
    Answers,
    Host,
    Member,
    Outbox,
    Redacted,
    Rejected,
    View,
    pair_commitment,
    pair_seed,
    share_commitment,
)


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
    holders = view.graph.holders(me.id)
    points = [view.graph.point(holder) for holder in holders]
    dealt = shamir.share([secrets.root, secrets.self_seed], me.params.threshold, points, me.entropy)
    held = [
        HeldShares(root.tobytes(), self_seed.tobytes()) for root, self_seed in zip(*dealt.astype("<u4"), strict=True)
    ]
    leaves = [
        b"".join(_commitments(me, view, holder, shares))
        if holder == me.id
        else _part(me, secrets, view, holder, shares).encode()
        for holder, shares in zip(holders, held, strict=True)
    ]
    own = held[holders.index(me.id)]
    header = messages.seal(
        messages.ShareHeader(binding=view.transcript, sender=me.id, root=merkle.Tree(leaves).root), me.identity.sign
    )
    return AwaitingShared(me, secrets, view, own), messages.encode(messages.ShareFrame(header, tuple(leaves)))


def _commitments(me: Member, view: View, holder: int, shares: HeldShares) -> tuple[bytes, bytes]:
    return (
        share_commitment(view.transcript, me.id, holder, ROOT, shares.root),
        share_commitment(view.transcript, me.id, holder, SELF, shares.self_seed),
    )


def _part(me: Member, secrets: RoundSecrets, view: View, holder: int, shares: HeldShares) -> messages.Part:
    transcript, advert = view.transcript, view.peers[holder]
    info = box_info(Purpose.SHARES, transcript, me.id, holder)
    box = _seal(me, holder, advert.channel_key, shares.root + shares.self_seed, info)
    pair_box = commitment = None
    if view.graph.is_chooser(me.id, holder):
        seed = pair_seed(secrets.root, transcript, me.id, holder)
        pair_box = _seal(me, holder, advert.mask_key, seed, box_info(Purpose.PAIR_SEED, transcript, me.id, holder))
        commitment = pair_commitment(transcript, me.id, holder, seed)
    return messages.Part(box, *_commitments(me, view, holder, shares), pair_box, commitment)


def _seal(me: Member, holder: int, key: bytes, plaintext: bytes, info: bytes) -> bytes:
    try:
        return me.suite.seal(key, plaintext, info=info)
    except SealError as error:
        raise ServerFault(f"U1 has client {holder}, to whose key nobody can seal: {error}") from None


def accept(state: AwaitingShared, frame: bytes) -> Neighbourhood:
    """Checks U2 and opens the neighbours' parts; a dealer whose part is wrong is refused, not fatal.

    Raises:
        ServerFault: U2 is too small or inconsistent, or a part is not the one that its dealer signed.
        PeerFault: More dealers must be refused than may be corrupt; names the last.
    """
    me, view = state.me, state.view
    answer = messages.decode_server(frame, messages.SharedFrame)
    header = messages.unseal_server(answer.header, messages.Shared, binding=view.transcript, roster=me.roster)
    messages.check_members(
        header.members, within=view.advertisers, at_least=me.params.min_survivors, name="U2", client=me.id
    )
    near = view.graph.within(me.id, frozenset(header.members))
    if len(answer.deliveries) != len(near):
        raise ServerFault(f"U2 does not come with exactly the parts of the neighbours of client {me.id}")
    if len(near) + 1 < me.params.threshold:
        raise ServerFault(
            f"U2 leaves client {me.id} with {len(near)} neighbours, t = {me.params.threshold} shares are needed"
        )
    _check_deliveries(dict(zip(near, answer.deliveries, strict=True)), me, view)
    held, seeds, refused = {me.id: state.own}, {}, list[int]()
    for dealer, delivery in zip(near, answer.deliveries, strict=True):
        try:
            held[dealer], seeds[dealer] = _open(dealer, delivery.leaf, state)
        except (DecodeError, SealError, ShareError, PeerFault) as error:
            refused.append(dealer)
            if len(refused) > max(me.params.colluders, 1):
                raise PeerFault(
                    dealer,
                    f"dealt a wrong part ({error}), and so did {refused[:-1]}: more than c = {me.params.colluders}",
                ) from None
    return Neighbourhood(header.members, held, seeds, tuple(refused))


def _check_deliveries(deliveries: dict[int, messages.Delivery], me: Member, view: View) -> None:
    """That each dealer signed this very part for this very holder; if not, the server made it up."""
    dealer = None
    try:
        read = []
        for dealer, delivery in deliveries.items():
            read.append(
                messages.unverified(delivery.header, messages.ShareHeader, binding=view.transcript, sender=dealer)
            )
        headers = messages.verify_each(read, me.roster)
        for dealer, header in zip(deliveries, headers, strict=True):
            if isinstance(header, SecaggError):
                raise header
            delivery, holders = deliveries[dealer], view.graph.holders(dealer)
            place = holders.index(me.id)
            merkle.check(delivery.leaf, index=place, size=len(holders), path=delivery.path, expected_root=header.root)
    except SecaggError as error:
        raise ServerFault(f"the part of client {dealer} is not what it signed: {error}") from None


def _open(dealer: int, leaf: bytes, state: AwaitingShared) -> tuple[HeldShares, bytes]:
    """The shares and the pair seed in a dealer's part; any error is a reason to refuse the dealer."""
    me, view = state.me, state.view
    chooser = view.graph.is_chooser(dealer, me.id)
    part = messages.Part.decode(leaf, me.suite.box_overhead, pair=chooser)
    plain = me.suite.open(
        state.secrets.channel_key, part.share_box, info=box_info(Purpose.SHARES, view.transcript, dealer, me.id)
    )
    shares = HeldShares(plain[:SHARE_LENGTH], plain[SHARE_LENGTH:])
    for kind, share, commitment in (
        (ROOT, shares.root, part.root_commitment),
        (SELF, shares.self_seed, part.self_commitment),
    ):
        shamir.decode_share(share)
        if share_commitment(view.transcript, dealer, me.id, kind, share) != commitment:
            raise PeerFault(dealer, f"dealt a {kind.decode()} share that is not the one it committed to")
    if part.pair_box is None:
        return shares, pair_seed(state.secrets.root, view.transcript, me.id, dealer)
    seed = me.suite.open(
        state.secrets.mask_key, part.pair_box, info=box_info(Purpose.PAIR_SEED, view.transcript, dealer, me.id)
    )
    if pair_commitment(view.transcript, dealer, me.id, seed) != part.pair_commitment:
        raise PeerFault(dealer, "sealed a pair seed that is not the one it committed to")
    return shares, seed


@dataclasses.dataclass(frozen=True, repr=False)
class Deal(Redacted):
    """What the server keeps of one dealer: its signed header and its leaves, by holder.

    Attributes:
        header: The signed `ShareHeader`.
        leaves: By holder; the dealer's own has its two commitments only.
        places: The place of each holder's leaf in the tree.
        tree: Over the leaves in order of holder.
        overhead: The suite's bytes of a box beyond its plaintext.
    """

    header: bytes
    leaves: dict[int, bytes]
    places: dict[int, int]
    tree: merkle.Tree
    overhead: int

    def path(self, holder: int) -> bytes:
        """The Merkle path to a holder's leaf."""
        return self.tree.paths[self.places[holder]]

    def evidence(self, holder: int) -> dict[str, bytes]:
        """What the dealer signed for a holder: its header, the leaf, and the path between them."""
        return {
            "share header": self.header,
            f"leaf {holder}": self.leaves[holder],
            f"path {holder}": self.path(holder),
        }

    def commitment(self, holder: int, kind: bytes, *, own: bool) -> bytes:
        """The dealer's commitment to the share of this kind that `holder`, or itself, has."""
        start = 0 if own else 2 * SHARE_LENGTH + self.overhead
        if kind == SELF:
            start += 32
        return self.leaves[holder][start : start + 32]

    def pair(self, holder: int) -> messages.Part:
        """The part for a holder whose edge's chooser is the dealer."""
        return messages.Part.decode(self.leaves[holder], self.overhead, pair=True)


@dataclasses.dataclass(frozen=True, repr=False)
class Sharers(Redacted):
    """The server after exchange 2: U2 is `tuple(deals)`."""

    before: Advertisers
    deals: dict[int, Deal]

    @property
    def host(self) -> Host:
        """The server."""
        return self.before.host

    @property
    def view(self) -> View:
        """What exchange 1 fixed."""
        return self.before.view

    @property
    def members(self) -> tuple[int, ...]:
        """U2, sorted."""
        return tuple(self.deals)


Dealing = tuple[messages.ShareHeader, messages.ShareFrame]
"""A dealer's header, which it signed, and the frame around it, which has the leaves under the header's root."""


class CollectingShares(Redacted):
    """The server during exchange 2."""

    def __init__(self, state: Advertisers) -> None:
        self._state = state
        self._deals: dict[int, Deal] = {}

    def read(self, client: int, frame: bytes) -> messages.Unverified[Dealing]:
        """A dealer's parts.

        Raises:
            DecodeError: They are not that client's for this round.
        """
        shares = messages.decode(frame, messages.ShareFrame)
        header = messages.unverified(
            shares.header, messages.ShareHeader, binding=self._state.view.transcript, sender=client
        )
        return header.then(lambda signed: (signed, shares))

    def take(self, client: int, frame: bytes, dealing: Dealing) -> None:
        """Keeps a dealer's parts if they have the right form under its signed root.

        Raises:
            DecodeError: The parts are not those that it signed.
            PeerFault: It signed parts of another number or length.
        """
        view, host = self._state.view, self._state.host
        header, shares = dealing
        holders, overhead = view.graph.holders(client), host.suite.box_overhead
        if len(shares.leaves) > len(host.params.cohort):
            raise DecodeError(f"{len(shares.leaves)} parts are more than there are clients")
        tree = merkle.Tree(shares.leaves or (b"",))
        if tree.root != header.root:
            raise DecodeError(f"the parts of client {client} are not under its signed root")
        if [len(leaf) for leaf in shares.leaves] != messages.leaf_lengths(view.graph, client, overhead):
            message = f"sent {len(shares.leaves)} parts for {len(holders)} holders, or parts of a wrong length"
            raise PeerFault(client, message, {"shares": frame, "digests": view.digests})
        leaves = dict(zip(holders, shares.leaves, strict=True))
        places = {holder: place for place, holder in enumerate(holders)}
        self._deals[client] = Deal(shares.header, leaves, places, tree, overhead)

    def close(self, rejected: Rejected) -> tuple[Sharers, Answers]:
        """Forms U2 of the dealers that were taken.

        Args:
            rejected: Why clients were missing by then, for an error.

        Raises:
            BelowThresholdError: U2 is smaller than the agreed minimum.
        """
        host, view, deals = self._state.host, self._state.view, dict(sorted(self._deals.items()))
        members = tuple(deals)
        if len(members) < host.params.min_survivors:
            raise BelowThresholdError("share", host.params.min_survivors, members, "min_survivors", rejected)
        header = messages.seal(
            messages.Shared(binding=view.transcript, sender=SERVER_ID, members=members), host.identity.sign
        )

        def answer(client: int) -> bytes:
            deliveries = []
            for dealer in view.graph.within(client, deals):
                deal = deals[dealer]
                deliveries.append(messages.Delivery(deal.header, deal.leaves[client], deal.path(client)))
            return messages.encode(messages.SharedFrame(header, tuple(deliveries)))

        return Sharers(self._state, deals), Outbox(members, answer)
