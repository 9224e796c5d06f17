import dataclasses
import itertools

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secagg import graph, messages
from secagg.crypto.kdf import Label, digest
from secagg.crypto.sealing import SERVER_ID, Purpose
from secagg.errors import (
    BelowThresholdError,
    LocalError,
    PeerFault,
    RoundError,
    SecaggError,
    ServerFault,
    SignatureError,
)
from secagg.params import PHASES
from secagg.protocols.pairwise.parties import advertisement_digest, statement


def advert(rd, client, frame, **changes):
    """A second advertisement of a corrupt client in the same round."""
    return rd.resign(frame, messages.Advertise, by=client, **changes)


def test_split_u1_isolates_the_clients_that_see_it(new_round):
    """Client 0 is shown U1 without client 4: its T1 is another one, and nothing it sends from then on fits."""
    rd = new_round(5, colluders=0)
    rd.show_u1(0, without=(4,))
    rd.run()
    rd.check((1, 2, 3, 4))
    assert rd.session.result.dropped == {0: "share"}
    assert "another round, cohort" in str(rd.session.result.rejected[0])


def test_split_u1_is_the_servers_fault_at_the_others(new_round):
    """If the server hands on what a client dealt under another U1, the others stop and blame the server."""
    rd = new_round(5, colluders=0)
    rd.show_u1(0, without=(4,))
    rd.run("mask")
    foreign = messages.decode(rd.sent["share"][0], messages.ShareFrame)
    delivery = messages.Delivery(foreign.header, foreign.leaves[1], b"")
    rd.lie_to(
        1,
        "share",
        messages.Shared,
        lambda m: {"members": (0, *m.members)},
        outer_change=lambda f: {"deliveries": (delivery, *f.deliveries)},
    )
    rd.run()
    with pytest.raises(ServerFault, match=r"part of client 0 is not what it signed.*another round"):
        raise rd.errors[1]


def test_two_advertisements_of_a_colluder_split_the_round(new_round):
    """A colluder signs two advertisements; whoever is shown the other one has another T1 and is on its own."""
    rd = new_round(5, colluders=1)
    rd.show_u1(0, changed={4: lambda f: advert(rd, 4, f, seed_commitment=b"\1" * 32)})
    rd.run()
    rd.check((1, 2, 3, 4))
    assert rd.session.result.dropped == {0: "share"}


@pytest.mark.parametrize("key", ["channel_key", "mask_key"])
def test_swapped_keys_stop_the_client(new_round, key):
    """The server puts a key of its own in an advertisement: it can't sign for the owner."""
    rd = new_round()
    own = rd.server.sealing_key

    def swap(frame):
        payload = rd.payload(frame, messages.Advertise)
        return messages.seal(msgspec.structs.replace(payload, **{key: own}), rd.server.sign)

    rd.show_u1(0, changed={1: swap})
    rd.run()
    with pytest.raises(ServerFault, match=r"client 1 did not make for this round.*wrong signature"):
        raise rd.errors[0]


def test_a_key_that_makes_sealing_fail_is_the_servers_fault_and_names_its_owner(new_round):
    """A server that lets an all-zero key through, which it must not, harms its own round."""
    rd = new_round()
    rd.show_u1(0, changed={1: lambda f: advert(rd, 1, f, channel_key=bytes(32))})
    rd.run()
    rd.check((1, 2, 3))
    with pytest.raises(ServerFault, match="U1 has client 1, to whose key nobody can seal"):
        raise rd.errors[0]


def test_split_u2_gives_another_statement(new_round):
    """Client 0 is shown U2 without client 4: its signature is over another S and does not count."""
    rd = new_round(5, colluders=0)
    rd.lie_to(
        0,
        "share",
        messages.Shared,
        lambda m: {"members": m.members[:-1]},
        outer_change=lambda f: {"deliveries": f.deliveries[:-1]},
    )
    rd.lie_to(0, "mask", messages.Survivors, lambda _: {"members": (0, 1, 2, 3)})
    with pytest.raises(RoundError):
        rd.run()
    assert 0 in rd.sent["confirm"]
    assert isinstance(rd.session.rejected[0], SignatureError)


def signature(rd, client, u3):
    """A client's signature over a statement with this U3."""
    signed = statement(rd.view.transcript, rd.params.cohort, u3)
    return rd.identities[client].sign(Label.SIGNATURE_STATEMENT, signed)


def test_split_u3_never_opens_both_halves(new_round):
    """Seven clients, two colluders that sign everything: of two survivor sets at most one finds a quorum.

    Clients 0, 1, 4 are shown A and 5, 6 are shown B. With the colluders' help A has five signatures, B four of the five
    needed: 5 and 6 keep their shares, so nobody's b and R are both open.
    """
    a, b = (0, 1, 2, 3, 4), (2, 3, 4, 5, 6)
    rd = new_round(7, colluders=2)
    shown = {0: a, 1: a, 2: a, 3: a, 4: a, 5: b, 6: b}
    for i, u3 in shown.items():
        rd.lie_to(i, "mask", messages.Survivors, lambda _, u3=u3: {"members": u3})
    rd.run("confirm")
    rd.ask("confirm")
    honest = {
        i: messages.decode(f, messages.Confirm).signature for i, f in rd.sent["confirm"].items() if i not in (2, 3)
    }
    answers = {}
    for i, u3 in shown.items():
        signers = {j: honest[j] for j in honest if shown[j] == u3} | {j: signature(rd, j, u3) for j in (2, 3)}
        quorum = messages.Quorum(
            binding=rd.view.transcript, sender=SERVER_ID, signatures=tuple(sorted(signers.items()))
        )
        frame = messages.seal(quorum, rd.server.sign)
        if u3 == b:
            with pytest.raises(ServerFault, match="quorum has 4 signatures, 5 are needed"):
                rd.clients[i].receive(frame)
        else:
            answers[i] = rd.clients[i].receive(frame)
    kinds = {}
    for frame in answers.values():
        for answer in rd.payload(frame, messages.Unmask).answers:
            kinds.setdefault(answer.owner, set()).add(type(answer))
    assert all(len(k) == 1 for k in kinds.values())


@pytest.mark.parametrize(("n", "c"), [(4, 1), (5, 1), (7, 2), (10, 3)])
def test_arcs_of_survivors_never_have_two_quorums(params_of, n, c):
    """However the honest clients are split between two statements, the colluders signing both: never two quorums."""
    q = params_of(n, colluders=c).quorum(n)
    for honest_a in range(n - c + 1):
        assert min(honest_a + c, n - c - honest_a + c) < q


def test_a_dropped_clients_self_seed_stays_closed(new_round):
    """The server has client 3's vector and leaves it out of U3: it gets R of 3, and nobody reveals a share of b."""
    rd = new_round()
    for i in range(3):
        rd.lie_to(i, "mask", messages.Survivors, lambda _: {"members": (0, 1, 2)})
    rd.lie_to(3, "mask", messages.Survivors, lambda _: {"members": (0, 1, 2)})
    rd.run("confirm")
    rd.ask("confirm")
    with pytest.raises(ServerFault, match="U3 leaves out client 3"):
        raise rd.errors[3]
    signers = tuple((i, messages.decode(rd.sent["confirm"][i], messages.Confirm).signature) for i in range(3))
    quorum = messages.seal(
        messages.Quorum(binding=rd.view.transcript, sender=SERVER_ID, signatures=signers), rd.server.sign
    )
    for i in range(3):
        kinds = {a.owner: type(a) for a in rd.payload(rd.clients[i].receive(quorum), messages.Unmask).answers}
        assert kinds[3] is messages.RootShare
        assert {kinds[j] for j in range(3)} == {messages.SelfShare}


def test_s9_nothing_that_the_server_sends_is_a_request_list(new_round):
    """No server message has a field to ask for shares: the answers follow from the signed statement."""
    fields = {
        kind: {f.name for f in msgspec.structs.fields(kind)} - {"version", "binding", "sender"}
        for kind in (
            messages.Advertised,
            messages.AdvertisedFrame,
            messages.Shared,
            messages.SharedFrame,
            messages.Survivors,
            messages.Quorum,
        )
    }
    assert fields == {
        messages.Advertised: {"transcript"},
        messages.AdvertisedFrame: {"header", "digests", "frames"},
        messages.Shared: {"members"},
        messages.SharedFrame: {"header", "deliveries"},
        messages.Survivors: {"members"},
        messages.Quorum: {"signatures"},
    }
    rd = new_round()
    rd.lie_to(0, "confirm", messages.Quorum, lambda m: {"signatures": (*m.signatures, *m.signatures)})
    rd.run()
    assert isinstance(rd.errors[0], ServerFault)


@pytest.mark.parametrize("phase", PHASES[:4])
def test_s27_an_answer_of_another_session_is_refused(new_round, phase):
    """What the server signed in another session of the same cohort is bound to that one."""
    old = new_round()
    old.run()
    rd = new_round()
    rd.down[phase, 0] = lambda _: old.answered[phase][0]
    rd.run()
    with pytest.raises(ServerFault, match="another round, cohort or application context"):
        raise rd.errors[0]


@pytest.mark.parametrize("phase", PHASES[1:4])
def test_s27_an_answer_of_an_earlier_phase_is_refused(new_round, phase):
    """A repeated answer is of the wrong kind."""
    before = PHASES[PHASES.index(phase) - 1]
    rd = new_round()
    rd.down[phase, 0] = lambda _: rd.answered[before][0]
    rd.run()
    assert isinstance(rd.errors[0], ServerFault)


@pytest.mark.parametrize("phase", PHASES[:4])
def test_an_answer_that_the_server_did_not_sign_is_refused(new_round, phase):
    """Another party's signature under the server's name."""
    kinds = dict(zip(PHASES, (messages.Advertised, messages.Shared, messages.Survivors, messages.Quorum), strict=False))
    rd = new_round()
    again = rd.head if phase in PHASES[:2] else rd.resign
    rd.down[phase, 0] = lambda f: again(f, kinds[phase], by=1)
    rd.run()
    with pytest.raises(ServerFault, match="wrong signature"):
        raise rd.errors[0]


def test_a_box_of_the_servers_own_making_blames_the_server(new_round):
    """The server replaces shares by its own: the dealer's signed root does not have them."""
    rd = new_round()
    rd.run("mask")

    def forge(frame):
        first = frame.deliveries[0]
        forged = dataclasses.replace(rd.part(1, 0, first.leaf), share_box=rd.seal(Purpose.SHARES, 1, 0, b"\0" * 72))
        return {"deliveries": (msgspec.structs.replace(first, leaf=forged.encode()), *frame.deliveries[1:])}

    rd.lie_to(0, "share", messages.Shared, lambda _: {}, outer_change=forge)
    rd.run()
    with pytest.raises(ServerFault, match="part of client 1 is not what it signed"):
        raise rd.errors[0]


@pytest.mark.parametrize("phase", PHASES[:4])
def test_silence_of_the_server_towards_one_is_a_dropout(new_round, phase):
    """A client that gets no answer sends nothing more, and the others' sum is exact."""
    rd = new_round()
    rd.down[phase, 2] = lambda _: None
    rd.run()
    assert rd.session.result.dropped == {2: PHASES[PHASES.index(phase) + 1]}
    rd.check((0, 1, 3) if phase in ("advertise", "share") else (0, 1, 2, 3))


FUZZ = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(
    lies=st.lists(
        st.tuples(st.sampled_from(PHASES[:4]), st.integers(0, 3), st.booleans()), min_size=1, max_size=3, unique=True
    ),
    rnd=st.randoms(use_true_random=False),
)
def test_whatever_the_server_answers_a_client_only_ever_stops(new_round, distortions, lies, rnd):
    """Damaged or distorted answers give `SecaggError`s that blame no client, and never a wrong sum."""
    flip, lie = distortions
    rd = new_round()
    for phase, client, signed in lies:
        rd.down[phase, client] = lambda f, signed=signed: lie(rd, f, rd.server, rnd) if signed else flip(f, rnd)
    try:
        rd.run()
    except BelowThresholdError:
        pass
    else:
        rd.check(rd.session.result.survivors)
    assert not [e for e in rd.errors.values() if isinstance(e, PeerFault | LocalError)]
    assert all(isinstance(e, SecaggError) for e in rd.errors.values())


def test_no_client_unmasks_under_another_statement_than_its_own(new_round):
    """Over every way to show two survivor sets to four clients: all that unmask, unmask under the same one."""
    sets = ((0, 1, 2, 3), (0, 1, 2))
    for shown in itertools.product(sets, repeat=3):
        rd = new_round()
        for i, u3 in enumerate(shown):
            rd.lie_to(i, "mask", messages.Survivors, lambda _, u3=u3: {"members": u3})
        try:
            rd.run()
        except SecaggError:
            assert rd.raised is not None
        kinds = {}
        for frame in rd.sent["unmask"].values():
            for answer in rd.payload(frame, messages.Unmask).answers:
                kinds.setdefault(answer.owner, set()).add(type(answer))
        assert all(len(k) == 1 for k in kinds.values())


RING = {"degree": 4, "threshold": 4, "colluders": 0, "dropouts": 2, "adversary": "curious"}


def split_ring(new_round, left):
    """A round, and two clients without whom, in U1, client 0 has so many neighbours on the ring that follows.

    One round in six hundred has no such pair for two neighbours, so there are some more to look at.
    """
    for _ in range(10):
        rd = new_round(12, **RING)
        sent = rd.ask("advertise")
        for hidden in itertools.combinations(range(1, 12), 2):
            members = tuple(i for i in range(12) if i not in hidden)
            digests = b"".join(i.to_bytes(8, "big") + advertisement_digest(sent[i]) for i in members)
            ring = graph.build(rd.params.cohort, members, 4, digest(Label.TRANSCRIPT, rd.params.context, digests))
            if len(ring.neighbours(0)) == left:
                return rd, hidden
    raise LookupError("no such pair on any of 550 rings")


@pytest.mark.parametrize(("left", "stops"), [(3, False), (2, True)])
def test_u1_must_leave_a_client_its_holders(new_round, left, stops):
    """On a sparse graph of t = 4: with three neighbours and itself a client goes on, with two it blames the server."""
    rd, hidden = split_ring(new_round, left)
    rd.show_u1(0, without=hidden)
    rd.run("share")
    rd.ask("share")
    assert (0 in rd.sent["share"]) != stops
    assert set(rd.errors) == ({0} if stops else set())
    if stops:
        with pytest.raises(ServerFault, match="U1 leaves client 0 with 2 neighbours, t = 4 shares are needed"):
            raise rd.errors[0]


@pytest.mark.parametrize(("hidden", "stops"), [(1, False), (2, True)])
def test_u2_must_leave_a_client_its_holders(new_round, hidden, stops):
    """Neighbours that the server hides in U2: one of four is a dropout like any other, two are too many."""
    rd = new_round(12, **RING)
    rd.run("share")
    near = rd.view.graph.neighbours(0)
    gone = set(near[:hidden])
    rd.lie_to(
        0,
        "share",
        messages.Shared,
        lambda m: {"members": tuple(i for i in m.members if i not in gone)},
        outer_change=lambda f: {
            "deliveries": tuple(d for i, d in zip(near, f.deliveries, strict=True) if i not in gone)
        },
    )
    rd.run("mask")
    rd.ask("mask")
    assert (0 in rd.sent["mask"]) != stops
    assert set(rd.errors) == ({0} if stops else set())
    if stops:
        with pytest.raises(ServerFault, match="U2 leaves client 0 with 2 neighbours, t = 4 shares are needed"):
            raise rd.errors[0]


@pytest.mark.parametrize(("hidden", "stops"), [(1, False), (2, True)])
def test_u3_must_leave_a_client_its_holders(new_round, hidden, stops):
    """The same in U3: a client signs no statement under which fewer than t could open it."""
    rd = new_round(12, **RING)
    rd.run("share")
    gone = set(rd.view.graph.neighbours(0)[:hidden])
    rd.lie_to(0, "mask", messages.Survivors, lambda m: {"members": tuple(i for i in m.members if i not in gone)})
    rd.run("confirm")
    rd.ask("confirm")
    assert (0 in rd.sent["confirm"]) != stops
    assert set(rd.errors) == ({0} if stops else set())
    if stops:
        with pytest.raises(ServerFault, match="U3 leaves client 0 with fewer than t = 4 holders"):
            raise rd.errors[0]
