"""Exchange 1: every client publishes its keys for this round; everybody learns who is there, and agrees on T1.

[BIK+17] Fig. 4 round 0, with keys derived from one mask root, a committed self seed, and one transcript hash.
"""

import dataclasses

from secagg import messages
from secagg.crypto.kdf import Label, draw
from secagg.crypto.sealing import SERVER_ID, Purpose, SecretKey, box_info
from secagg.errors import BelowThresholdError, PeerFault, SealError, SecaggError, ServerFault
from secagg.protocols.pairwise.parties import (
    ENTRY_LENGTH,
    Answers,
    Host,
    Member,
    Outbox,
    Party,
    Redacted,
    Rejected,
    View,
    advertisement_digest,
    encode_entries,
    entry_digest,
    entry_ids,
    key_pair,
    mask_key_pair,
    seed_commitment,
    view,
)


@dataclasses.dataclass(frozen=True, repr=False)
class RoundSecrets(Redacted):
    """A client's secrets, fresh for every round.

    Attributes:
        root: R, 32 bytes; revealing it exposes the pair masks of this client and nothing else.
        self_seed: b, 32 bytes.
        mask_key: Derived from R; pair seeds are sealed to it.
        channel_key: Independent of R; opens shares that are addressed here.
        mac_key: 32 bytes, for the one tag of exchange 3.
    """

    root: bytes
    self_seed: bytes
    mask_key: SecretKey
    channel_key: SecretKey
    mac_key: bytes


@dataclasses.dataclass(frozen=True, repr=False)
class AwaitingAdvertised(Redacted):
    """A client that has published its keys and waits for U1."""

    me: Member
    secrets: RoundSecrets
    frame: bytes


def send(me: Member) -> tuple[AwaitingAdvertised, bytes]:
    """Draws the round's secrets and advertises their public halves."""
    context, suite = me.context, me.suite
    root, channel_root = draw(me.entropy, 32), draw(me.entropy, 32)
    secrets = RoundSecrets(
        root=root,
        self_seed=draw(me.entropy, 32),
        mask_key=mask_key_pair(suite, root, context),
        channel_key=key_pair(suite, channel_root, context, Label.CHANNEL_KEY_MLKEM, Label.CHANNEL_KEY_X25519),
        mac_key=draw(me.entropy, 32),
    )
    frame = messages.seal(
        messages.Advertise(
            binding=context,
            sender=me.id,
            channel_key=secrets.channel_key.public,
            mask_key=secrets.mask_key.public,
            seed_commitment=seed_commitment(context, me.id, secrets.self_seed),
            mac_box=suite.seal(
                me.roster.server_sealing_key, secrets.mac_key, info=box_info(Purpose.MAC_KEY, context, me.id, SERVER_ID)
            ),
        ),
        me.identity.sign,
    )
    return AwaitingAdvertised(me, secrets, frame), frame


def accept(state: AwaitingAdvertised, frame: bytes) -> View:
    """Checks U1 and computes T1.

    Raises:
        ServerFault: A set that is too small or inconsistent, an advertisement that its owner did not sign for this
            round, or this client's own missing or changed.
    """
    me = state.me
    answer = messages.decode_server(frame, messages.AdvertisedFrame)
    places = _places(answer.digests, me)
    mine = view(me, answer.digests, tuple(places), {})
    header = messages.unseal_server(answer.header, messages.Advertised, binding=me.context, roster=me.roster)
    if header.transcript != mine.transcript:
        raise ServerFault("the digests of U1 do not give the transcript that the server signed")
    near = mine.graph.neighbours(me.id)
    if len(answer.frames) != len(near):
        raise ServerFault(f"U1 does not carry exactly the advertisements of the neighbours of client {me.id}")
    if len(near) + 1 < me.params.threshold:
        raise ServerFault(
            f"U1 leaves client {me.id} with {len(near)} neighbours, t = {me.params.threshold} shares are needed"
        )
    for client, peer_frame in ((me.id, state.frame), *zip(near, answer.frames, strict=True)):
        if advertisement_digest(peer_frame) != entry_digest(answer.digests, places[client]):
            raise ServerFault(f"U1 has another advertisement of client {client} than its digest says")
    return dataclasses.replace(mine, peers=_peers(dict(zip(near, answer.frames, strict=True)), me))


def _peers(frames: dict[int, bytes], me: Member) -> dict[int, messages.Advertise]:
    """The neighbours' advertisements, each checked."""
    peers: dict[int, messages.Advertise] = {}
    client = None
    try:
        read = []
        for client, frame in frames.items():
            read.append(unverified(frame, client, me))
        adverts = messages.verify_each(read, me.roster)
        for client, advert in zip(frames, adverts, strict=True):
            if isinstance(advert, SecaggError):
                raise advert
            check_keys(advert, frames[client], client, me)
            peers[client] = advert
    except SecaggError as error:
        raise ServerFault(
            f"U1 has an advertisement that client {client} did not make for this round: {error}"
        ) from None
    return peers


def _places(digests: bytes, me: Member) -> dict[int, int]:
    """The place of each member of U1 among the digests."""
    if len(digests) % ENTRY_LENGTH or len(digests) > ENTRY_LENGTH * len(me.params.cohort):
        raise ServerFault(f"U1 has {len(digests)} bytes of digests, {ENTRY_LENGTH} a member are needed")
    members = entry_ids(digests)
    messages.check_members(members, within=me.params.cohort, at_least=me.params.min_survivors, name="U1", client=me.id)
    return {client: place for place, client in enumerate(members)}


def unverified(frame: bytes, client: int, party: Party) -> messages.Unverified[messages.Advertise]:
    """An advertisement whose signature is still to be checked.

    Raises:
        DecodeError: It is not that client's for this round.
    """
    return messages.unverified(frame, messages.Advertise, binding=party.context, sender=client)


def check_keys(advert: messages.Advertise, frame: bytes, client: int, party: Party) -> None:
    """That an advertisement has two keys of the round's suite.

    Raises:
        PeerFault: It has not.
    """
    length = party.suite.public_key_length
    for name, key in (("channel", advert.channel_key), ("mask", advert.mask_key)):
        if len(key) != length:
            message = f"advertised a {name} key of {len(key)} bytes, suite {party.suite.name} has {length}"
            raise PeerFault(client, message, {"advertisement": frame})
    if advert.channel_key == advert.mask_key:
        raise PeerFault(client, "uses one key for two purposes", {"advertisement": frame})


@dataclasses.dataclass(frozen=True, repr=False)
class Advertisers(Redacted):
    """The server after exchange 1: U1 and its transcript hash, the frames, and the MAC keys that clients sealed to it."""

    host: Host
    view: View
    frames: dict[int, bytes]
    mac_keys: dict[int, bytes]


class CollectingAdvertisements(Redacted):
    """The server during exchange 1."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._adverts: dict[int, messages.Advertise] = {}
        self._frames: dict[int, bytes] = {}
        self._mac_keys: dict[int, bytes] = {}

    def read(self, client: int, frame: bytes) -> messages.Unverified[messages.Advertise]:
        """An advertisement.

        Raises:
            DecodeError: It is not that client's for this round.
        """
        return unverified(frame, client, self._host)

    def take(self, client: int, frame: bytes, advert: messages.Advertise) -> None:
        """Keeps an advertisement whose keys others can seal to.

        Raises:
            PeerFault: Something in it is wrong.
        """
        check_keys(advert, frame, client, self._host)
        for name, key in (("channel", advert.channel_key), ("mask", advert.mask_key)):
            try:
                self._host.suite.check_public_key(key)
            except SealError as error:
                message = f"advertised a {name} key that nobody can seal to: {error}"
                raise PeerFault(client, message, {"advertisement": frame}) from None
        self._mac_keys[client] = self._open_mac_key(advert, client, frame)
        self._adverts[client], self._frames[client] = advert, frame

    def _open_mac_key(self, advert: messages.Advertise, client: int, frame: bytes) -> bytes:
        host = self._host
        try:
            key = host.identity.open(advert.mac_box, info=box_info(Purpose.MAC_KEY, host.context, client, SERVER_ID))
        except SealError as error:
            raise PeerFault(client, f"sealed its MAC key wrongly: {error}", {"advertisement": frame}) from None
        if len(key) != 32:
            message = f"sealed a MAC key of {len(key)} bytes instead of 32"
            raise PeerFault(client, message, {"advertisement": frame})
        return key

    def close(self, rejected: Rejected) -> tuple[Advertisers, Answers]:
        """Forms U1 of the advertisements that were taken.

        Args:
            rejected: Why clients were missing by then, for an error.

        Raises:
            BelowThresholdError: U1 is smaller than the agreed minimum.
        """
        host, frames = self._host, dict(sorted(self._frames.items()))
        members, params = tuple(frames), host.params
        if len(members) < params.min_survivors:
            raise BelowThresholdError("advertise", params.min_survivors, members, "min_survivors", rejected)
        digests = encode_entries(frames)
        seen = view(host, digests, members, self._adverts)
        header = messages.seal(
            messages.Advertised(binding=host.context, sender=SERVER_ID, transcript=seen.transcript), host.identity.sign
        )

        def answer(client: int) -> bytes:
            near = tuple(frames[peer] for peer in seen.graph.neighbours(client))
            return messages.encode(messages.AdvertisedFrame(header, digests, near))

        return Advertisers(host, seen, frames, self._mac_keys), Outbox(members, answer)
