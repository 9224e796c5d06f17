import msgspec
import pytest

from secagg import messages
from secagg.crypto.kdf import Label, digest
from secagg.crypto.sealing import SERVER_ID, SUITES, Purpose, box_info
from secagg.errors import BelowThresholdError, DecodeError, PeerFault, SecaggError, ServerFault
from secagg.protocols.pairwise import advertise
from secagg.protocols.pairwise.parties import Host, Member, advertisement_digest, seed_commitment
from secagg.testing import parties, seeded_entropy


@pytest.fixture
def scene(params_of):
    """`scene(**fields)`: members, host and what each sends first."""

    def build(**fields):
        p = params_of(**fields)
        identities, server, roster = parties(p.cohort, p.suite)
        members = {i: Member(p, roster, identities[i], seeded_entropy(1, i)) for i in p.cohort}
        sent = {i: advertise.send(member) for i, member in members.items()}
        states = {i: state for i, (state, _) in sent.items()}
        frames = {i: frame for i, (_, frame) in sent.items()}
        return members, Host(p, roster, server), states, frames

    return build


def collect(host, frames):
    """The server's exchange 1 over some frames: its state, its answers, and why a frame was not taken."""
    collector, rejected = advertise.CollectingAdvertisements(host), {}
    for i, frame in frames.items():
        try:
            (advert,) = messages.verify_each([collector.read(i, frame)], host.roster)
            if isinstance(advert, SecaggError):
                raise advert
            collector.take(i, frame, advert)
        except SecaggError as error:
            rejected[i] = error
    after, answers = collector.close(rejected)
    return after, answers, rejected


def change(frame, member, **fields):
    """An advertisement with other fields, signed by its owner."""
    advert = messages.decode(messages.decode(frame, messages.Signed).payload, messages.Advertise)
    return messages.seal(msgspec.structs.replace(advert, **fields), member.identity.sign)


@pytest.mark.parametrize("suite", ["classical", "hybrid"])
def test_an_advertisement_has_public_halves_only(scene, suite):
    """Two different keys, the commitment to b, and a box that the server alone opens; no secret."""
    members, host, states, frames = scene(suite=suite)
    secrets = states[1].secrets
    advert = messages.unseal(frames[1], messages.Advertise, binding=host.context, sender=1, roster=host.roster)
    assert (advert.channel_key, advert.mask_key) == (secrets.channel_key.public, secrets.mask_key.public)
    assert advert.channel_key != advert.mask_key
    assert advert.seed_commitment == seed_commitment(host.context, 1, secrets.self_seed)
    info = box_info(Purpose.MAC_KEY, host.context, 1, SERVER_ID)
    assert host.identity.open(advert.mac_box, info=info) == secrets.mac_key
    assert len({secrets.root, secrets.self_seed, secrets.mac_key}) == 3
    assert not [s for s in (secrets.root, secrets.self_seed, secrets.mac_key) if s in frames[1]]
    assert members[1].id == 1


def test_secrets_are_fresh_for_every_round(scene, params_of):
    """The same client in two rounds draws other secrets, and even equal ones would give other keys."""
    _, _, states, frames = scene()
    _, _, again, other = scene()
    assert states[1].secrets.root == again[1].secrets.root
    assert states[1].secrets.mask_key.public != again[1].secrets.mask_key.public
    assert frames[1] != other[1]
    p = params_of()
    identities, _, roster = parties(p.cohort, p.suite)
    import os

    one, two = (advertise.send(Member(p, roster, identities[1], os.urandom))[0].secrets for _ in range(2))
    assert one.root != two.root


def test_everybody_computes_the_servers_transcript(scene):
    """The view of each client has U1, its neighbours' advertisements, and the same T1."""
    _, host, states, frames = scene()
    server, answers, rejected = collect(host, frames)
    assert rejected == {}
    digests = b"".join(i.to_bytes(8, "big") + advertisement_digest(f) for i, f in frames.items())
    expected = digest(Label.TRANSCRIPT, host.context, digests)
    assert server.view.transcript == expected
    for i, state in states.items():
        view = advertise.accept(state, answers[i])
        assert (view.transcript, view.advertisers) == (expected, (0, 1, 2, 3))
        assert sorted(view.peers) == [j for j in range(4) if j != i]


def test_a_silent_client_is_not_in_u1(scene):
    """The others go on without it."""
    _, host, states, frames = scene()
    del frames[2]
    server, answers, _ = collect(host, frames)
    assert server.view.advertisers == (0, 1, 3)
    assert 2 not in answers
    assert advertise.accept(states[0], answers[0]).advertisers == (0, 1, 3)


def test_too_few_advertisements_end_the_round(scene):
    """Two of four, where three are agreed: a named error."""
    _, host, _, frames = scene()
    with pytest.raises(BelowThresholdError, match="advertise: 2 of at least 3"):
        collect(host, {i: frames[i] for i in (0, 1)})


ZERO = bytes(32)


@pytest.mark.parametrize("suite", ["classical", "hybrid"])
@pytest.mark.parametrize("name", ["channel_key", "mask_key"])
def test_a_key_that_nobody_can_seal_to_is_dropped_by_name(scene, suite, name):
    """An all-zero X25519 key loads and fails at sealing: the server finds it before the others do."""
    members, host, _, frames = scene(suite=suite)
    advert = messages.decode(messages.decode(frames[2], messages.Signed).payload, messages.Advertise)
    bad = getattr(advert, name)[:-32] + ZERO
    server, _, rejected = collect(host, frames | {2: change(frames[2], members[2], **{name: bad})})
    assert server.view.advertisers == (0, 1, 3)
    assert isinstance(rejected[2], PeerFault)
    assert rejected[2].party == 2
    assert "nobody can seal to" in str(rejected[2])


def test_an_mlkem_key_that_is_none_is_dropped(scene):
    """1 184 bytes that no ML-KEM key has are found by the trial box."""
    members, host, _, frames = scene(suite="hybrid")
    bad = b"\xff" * 1184 + b"\x09" + bytes(31)
    _, _, rejected = collect(host, frames | {2: change(frames[2], members[2], mask_key=bad)})
    assert "nobody can seal to" in str(rejected[2])


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"channel_key": b"k" * 31}, PeerFault, "client 2: advertised a channel key of 31 bytes"),
        ({"mask_key": b"k" * 1216}, PeerFault, "client 2: advertised a mask key of 1216 bytes, suite classical has 32"),
        ({"mask_key": b"", "channel_key": b""}, PeerFault, "key of 0 bytes"),
        ({"mac_box": b""}, PeerFault, "client 2: sealed its MAC key wrongly"),
        ({"mac_box": b"x" * 80}, PeerFault, "client 2: sealed its MAC key wrongly"),
        ({"binding": b"\0" * 32}, DecodeError, "bound to another round"),
        ({"sender": 1}, DecodeError, "sender 1 instead of 2"),
    ],
)
def test_a_bad_advertisement_is_rejected_by_the_server(scene, fields, error, message):
    """Lengths, boxes, binding and sender, each with its reason; the round goes on."""
    members, host, _, frames = scene()
    server, _, rejected = collect(host, frames | {2: change(frames[2], members[2], **fields)})
    assert server.view.advertisers == (0, 1, 3)
    with pytest.raises(error, match=message) as caught:
        raise rejected[2]
    if error is PeerFault:
        assert caught.value.evidence == {"advertisement": change(frames[2], members[2], **fields)}


def test_one_key_for_two_purposes_is_rejected(scene):
    """The channel key is not the mask key: revealing R would open the channel."""
    members, host, states, frames = scene()
    key = states[2].secrets.mask_key.public
    _, _, rejected = collect(host, frames | {2: change(frames[2], members[2], channel_key=key)})
    assert "one key for two purposes" in str(rejected[2])


def test_a_mac_key_of_another_length_is_rejected(scene):
    """31 bytes, properly sealed, are no key."""
    members, host, _, frames = scene()
    info = box_info(Purpose.MAC_KEY, host.context, 2, SERVER_ID)
    box = SUITES["classical"].seal(host.identity.sealing_key, b"m" * 31, info=info)
    _, _, rejected = collect(host, frames | {2: change(frames[2], members[2], mac_box=box)})
    assert "MAC key of 31 bytes instead of 32" in str(rejected[2])


def test_s28_a_copied_mac_box_is_rejected(scene):
    """Client 2 copies the box of client 1: it is bound to its sender."""
    members, host, _, frames = scene()
    copied = messages.decode(messages.decode(frames[1], messages.Signed).payload, messages.Advertise).mac_box
    _, _, rejected = collect(host, frames | {2: change(frames[2], members[2], mac_box=copied)})
    assert rejected[2].party == 2


def test_s28_a_copied_advertisement_is_rejected(scene):
    """The frame of client 1 sent by client 2 names the wrong sender."""
    _, host, _, frames = scene()
    _, _, rejected = collect(host, frames | {2: frames[1]})
    assert "sender 1 instead of 2" in str(rejected[2])


# What a client checks of the server's answer.


def entry(client, frame):
    """One member's place among the digests."""
    return client.to_bytes(8, "big") + advertisement_digest(frame)


def answer_of(host, sent, client, *, digests=None, frames=None):
    """The server's answer to a client with other digests or frames, T1 and header right for what is shown."""
    digests = b"".join(entry(i, frame) for i, frame in sorted(sent.items())) if digests is None else digests
    frames = [frame for i, frame in sorted(sent.items()) if i != client] if frames is None else frames
    t1 = digest(Label.TRANSCRIPT, host.context, digests)
    header = messages.seal(
        messages.Advertised(binding=host.context, sender=SERVER_ID, transcript=t1), host.identity.sign
    )
    return messages.encode(messages.AdvertisedFrame(header, digests, tuple(frames)))


def test_the_server_may_not_leave_out_or_change_the_clients_own(scene):
    """Own advertisement missing, another's in its place, or one that it did not send."""
    members, host, states, frames = scene()
    other = change(frames[0], members[0], seed_commitment=b"\1" * 32)
    rest = b"".join(entry(i, frames[i]) for i in (1, 2, 3))
    for own, message in [
        (b"", "leaves out client 0"),
        ((0).to_bytes(8, "big") + b"\1" * 32, "another advertisement of client 0"),
        (entry(0, other), "another advertisement of client 0"),
        (entry(0, frames[1]), "another advertisement of client 0"),
    ]:
        with pytest.raises(ServerFault, match=message):
            advertise.accept(states[0], answer_of(host, frames, 0, digests=own + rest))


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        ((0, 1, 2, 2), "names a client twice"),
        ((0, 0, 1, 2), "names a client twice"),
        ((0, 1), "2 members, fewer than the agreed minimum 3"),
        ((0, 2, 1, 3), "not sorted"),
        ((), "leaves out client 0"),
        ((0, 1, 2, 3, 3), "200 bytes of digests"),
    ],
)
def test_a_wrong_u1_is_the_servers_fault(scene, clients, message):
    """Twice the same client, too few, another order, more than there are."""
    _, host, states, frames = scene()
    digests = b"".join(entry(i, frames[i]) for i in clients)
    with pytest.raises(ServerFault, match=message):
        advertise.accept(states[0], answer_of(host, frames, 0, digests=digests))


def test_a_stranger_in_u1_is_the_servers_fault(scene):
    """U1 holds members of the cohort only."""
    _, host, states, frames = scene()
    digests = b"".join(entry(i, frames[min(i, 3)]) for i in (0, 1, 2, 9))
    with pytest.raises(ServerFault, match=r"U1 contains \[9\]"):
        advertise.accept(states[0], answer_of(host, frames, 0, digests=digests))


def test_digests_that_are_cut_are_the_servers_fault(scene):
    """Each member has 40 bytes."""
    _, host, states, frames = scene()
    digests = b"".join(entry(i, frames[i]) for i in range(4))
    with pytest.raises(ServerFault, match="159 bytes of digests"):
        advertise.accept(states[0], answer_of(host, frames, 0, digests=digests[:-1]))


def test_digests_that_do_not_give_the_signed_transcript_are_the_servers_fault(scene):
    """The signed T1 is that of other digests: what the server signed is not what it shows."""
    members, host, states, frames = scene()
    other = frames | {3: change(frames[3], members[3], seed_commitment=b"\1" * 32)}
    header = messages.decode(answer_of(host, frames, 0), messages.AdvertisedFrame).header
    shown = messages.decode(answer_of(host, other, 0), messages.AdvertisedFrame)
    with pytest.raises(ServerFault, match="do not give the transcript that the server signed"):
        advertise.accept(states[0], messages.encode(msgspec.structs.replace(shown, header=header)))


def test_a_neighbour_given_as_a_digest_is_the_servers_fault(scene):
    """The client must see the keys that it seals to: a digest without the frame is not enough."""
    _, host, states, frames = scene()
    for shown in ((frames[1], frames[2]), (frames[1], frames[2], frames[3], frames[3]), ()):
        with pytest.raises(ServerFault, match="does not carry exactly the advertisements"):
            advertise.accept(states[0], answer_of(host, frames, 0, frames=shown))
    with pytest.raises(ServerFault, match="another advertisement of client 1 than its digest says"):
        advertise.accept(states[0], answer_of(host, frames, 0, frames=(frames[2], frames[1], frames[3])))


def test_swapped_keys_are_the_servers_fault(scene):
    """Keys that the server put in are not signed by their owner; another's frame under its name is not either."""
    members, host, states, frames = scene()
    forged = messages.decode(messages.decode(frames[1], messages.Signed).payload, messages.Advertise)
    forged = msgspec.structs.replace(forged, channel_key=states[3].secrets.channel_key.public)
    for bad in (
        messages.seal(forged, host.identity.sign),
        messages.seal(forged, members[3].identity.sign),
        frames[3],
        change(frames[1], members[1], binding=b"\2" * 32),
        change(frames[1], members[1], channel_key=b"k" * 31),
        b"garbage",
    ):
        with pytest.raises(ServerFault, match="client 1 did not make for this round"):
            advertise.accept(states[0], answer_of(host, frames | {1: bad}, 0))


def test_another_rounds_answer_is_the_servers_fault(scene):
    """An answer of the server in another round, and an unsigned one."""
    _, host, states, frames = scene()
    _, other, _, others = scene()
    for bad in (answer_of(other, others, 0), answer_of(host, frames, 0)[:-1], b""):
        with pytest.raises(ServerFault):
            advertise.accept(states[0], bad)
    assert advertise.accept(states[0], answer_of(host, frames, 0)).advertisers == (0, 1, 2, 3)
