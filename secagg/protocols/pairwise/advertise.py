"""Exchange 1: every client publishes its keys for this round; everybody learns who is there, and agrees on T1.

[BIK+17] Fig. 4 round 0, with keys derived from one mask root, a committed self seed, and one transcript hash.
"""

import dataclasses

from secagg import graph, messages
from secagg.crypto.kdf import Label, draw
from secagg.crypto.sealing import SERVER_ID, Purpose, SecretKey, box_info
from secagg.errors import BelowThresholdError, DecodeError, PeerFault, SealError, SecaggError, ServerFault
from secagg.protocols.pairwise.parties import (
    Answers,
    Host,
    Member,
    Redacted,
    Rejected,
    Replies,
    View,
    advertisement_digest,
    key_pair,
    mask_key_pair,
    seed_commitment,
    transcript_hash,
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
    answer = messages.unseal_server(frame, messages.Advertised, binding=me.context, roster=me.roster)
    digests = dict(answer.digests) | {client: advertisement_digest(x) for client, x in answer.frames}
    members = tuple(sorted(digests))
    if len(digests) != len(answer.digests) + len(answer.frames):
        raise ServerFault("U1 names a client twice")
    messages.check_members(members, within=me.params.cohort, at_least=me.params.min_survivors, name="U1", client=me.id)
    if digests[me.id] != advertisement_digest(state.frame):
        raise ServerFault(f"U1 has an advertisement of client {me.id} that this client did not send")
    if tuple(client for client, _ in answer.frames) != graph.neighbours(me.params, members, me.id):
        raise ServerFault(f"U1 does not carry exactly the advertisements of the neighbours of client {me.id}")
    peers = {}
    for client, peer_frame in answer.frames:
        try:
            peers[client] = _read(peer_frame, client, me)
        except SecaggError as error:
            raise ServerFault(
                f"U1 has an advertisement that client {client} did not make for this round: {error}"
            ) from None
    return View(transcript_hash(me.context, digests), members, peers)


def _read(frame: bytes, client: int, party: Member | Host) -> messages.Advertise:
    advert = messages.unseal(frame, messages.Advertise, binding=party.context, sender=client, roster=party.roster)
    length = party.suite.public_key_length
    for name, key in (("channel", advert.channel_key), ("mask", advert.mask_key)):
        if len(key) != length:
            raise DecodeError(
                f"the {name} key of client {client} has {len(key)} bytes, suite {party.suite.name} has {length}"
            )
    if advert.channel_key == advert.mask_key:
        raise DecodeError(f"client {client} uses one key for two purposes")
    return advert


def glance(host: Host, client: int, frame: bytes) -> None:
    """Whether a frame is the one that is waited for, its signature apart.

    Raises:
        DecodeError: Another exchange's, round's or sender's.
    """
    messages.glance(frame, messages.Advertise, binding=host.context, sender=client)


@dataclasses.dataclass(frozen=True, repr=False)
class Advertisers(Redacted):
    """The server after exchange 1: U1 and its transcript hash, and the MAC keys that clients sealed to it."""

    host: Host
    view: View
    mac_keys: dict[int, bytes]


def collect(host: Host, replies: Replies) -> tuple[Advertisers, Answers, Rejected]:
    """Forms U1 of the valid advertisements whose keys others can seal to.

    Raises:
        BelowThresholdError: U1 is smaller than the agreed minimum.
    """
    adverts, mac_keys, frames, rejected = {}, {}, {}, Rejected()
    for client in sorted(replies):
        try:
            advert = _read(replies[client], client, host)
            mac_keys[client] = _try_keys(advert, client, host)
        except SecaggError as error:
            rejected[client] = error
            continue
        adverts[client], frames[client] = advert, replies[client]
    members, params = tuple(adverts), host.params
    if len(members) < params.min_survivors:
        raise BelowThresholdError("advertise", params.min_survivors, members, "min_survivors", rejected)
    digests = {client: advertisement_digest(frame) for client, frame in frames.items()}
    answers = {}
    for client in members:
        near = graph.neighbours(params, members, client)
        answers[client] = messages.seal(
            messages.Advertised(
                binding=host.context,
                sender=SERVER_ID,
                frames=tuple((peer, frames[peer]) for peer in near),
                digests=tuple((peer, digests[peer]) for peer in members if peer not in set(near)),
            ),
            host.identity.sign,
        )
    return (
        Advertisers(host, View(transcript_hash(host.context, digests), members, adverts), mac_keys),
        answers,
        rejected,
    )


def _try_keys(advert: messages.Advertise, client: int, host: Host) -> bytes:
    """Opens the MAC key, and seals to both public keys, since a key can be well-formed and still fail at others."""
    try:
        for key in (advert.channel_key, advert.mask_key):
            host.suite.seal(key, bytes(32), info=b"trial")
    except SealError as error:
        raise PeerFault(client, f"advertised a key that nobody can seal to: {error}") from None
    try:
        mac_key = host.identity.open(advert.mac_box, info=box_info(Purpose.MAC_KEY, host.context, client, SERVER_ID))
    except SealError as error:
        raise PeerFault(client, f"sealed its MAC key wrongly: {error}") from None
    if len(mac_key) != 32:
        raise PeerFault(client, f"sealed a MAC key of {len(mac_key)} bytes instead of 32")
    return mac_key
