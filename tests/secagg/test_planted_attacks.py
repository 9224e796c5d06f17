"""The attacks that the protocol's design plants against itself: each must fail, and it is said here at what."""

import pytest

from secagg import messages
from secagg.crypto import shamir
from secagg.crypto.kdf import Label
from secagg.crypto.sealing import SERVER_ID
from secagg.errors import BelowThresholdError, GuardError, PeerFault, ServerFault
from secagg.guard import FileGuard
from secagg.protocols.pairwise.parties import statement

SPARSE = {"degree": 4, "threshold": 3, "adversary": "curious", "dropouts": 0, "min_survivors": 7}


@pytest.fixture
def ring_round(new_round, monkeypatch):
    """A sparse round of twelve on a ring of degree four, up to exchange 4, with whatever each client is shown as U3.

    Its bounds are switched off: no graph of twelve keeps them, and the quorum, which is under test, has none.
    """
    monkeypatch.setattr("secagg.params.RoundParams._check_sparse", lambda *_: None)

    def build(survivors_of):
        rd = new_round(12, **SPARSE)
        rd.run("mask")
        ring = rd.view.graph.ring
        shown = {i: tuple(sorted(survivors_of(i, ring))) for i in ring}
        for i, u3 in shown.items():
            rd.lie_to(i, "mask", messages.Survivors, lambda _, u3=u3: {"members": u3})
        rd.run("confirm")
        rd.ask("confirm")
        return rd, shown

    return build


def quorum_for(rd, i, shown, colluders=()):
    """A quorum frame of every signature over the statement of client i that the server can have."""
    mine = statement(rd.view.transcript, rd.params.cohort, shown[i])
    signers = {
        j: messages.decode(frame, messages.Confirm).signature
        for j, frame in rd.sent["confirm"].items()
        if shown[j] == shown[i]
    } | {j: rd.identities[j].sign(Label.SIGNATURE_STATEMENT, mine) for j in colluders if j in shown[i]}
    quorum = messages.Quorum(binding=rd.view.transcript, sender=SERVER_ID, signatures=tuple(sorted(signers.items())))
    return messages.seal(quorum, rd.server.sign)


def test_arcs_of_the_ring_are_no_survivors(ring_round):
    """Each half of the ring is told that it alone survived: half is fewer than a client agrees to."""
    rd, _ = ring_round(lambda i, ring: ring[:6] if i in ring[:6] else ring[6:])
    assert set(rd.errors) == set(range(12))
    assert all(isinstance(e, ServerFault) and "fewer than the agreed minimum" in str(e) for e in rd.errors.values())
    assert not rd.sent["confirm"]


def test_arcs_that_overlap_have_no_two_quorums(ring_round):
    """Each half is told that it and as much of the other as it wants to see survived: neither finds a quorum of the whole cohort.

    Nobody's neighbours alone are asked: six of six neighbourhoods can agree and still be six of the seven that are needed.
    """
    rd, shown = ring_round(lambda i, ring: ring[:7] if i in ring[:6] else ring[5:])
    assert len(rd.sent["confirm"]) == 12
    for i in range(12):
        with pytest.raises(ServerFault, match="quorum has 6 signatures, 7 are needed"):
            rd.clients[i].receive(quorum_for(rd, i, shown))


def test_a_stretch_of_the_ring_that_is_dropped_is_dropped_for_everybody(ring_round):
    """The middle of a stretch is told that it survived, everybody else that it did not: it never sees a quorum, and stays closed."""
    stretch = {}

    def survivors(i, ring):
        stretch["members"] = set(ring[:4])
        return ring if i in ring[1:3] else ring[4:]

    rd, shown = ring_round(survivors)
    kinds, unmasked = {}, []
    for i in rd.sent["confirm"]:
        frame = quorum_for(rd, i, shown)
        try:
            out = rd.clients[i].receive(frame)
        except ServerFault as error:
            assert shown[i] == tuple(range(12)), error  # noqa: PT017 - some are shown one set, some the other
            continue
        unmasked.append(i)
        for answer in rd.payload(out, messages.Unmask).answers:
            kinds.setdefault(answer.owner, set()).add(type(answer))
    assert len(unmasked) == 8
    assert all(len(kind) == 1 for kind in kinds.values())
    assert all(kinds[j] == {messages.RootShare} for j in stretch["members"] & set(kinds))


def test_a_replayed_confirmation_does_not_count(new_round):
    """A server with every signature of an earlier round of the same cohort over the same sets cannot open this one with them."""
    old = new_round()
    old.run()
    rd = new_round()
    rd.run("confirm")
    rd.ask("confirm")
    stale = {j: messages.decode(old.sent["confirm"][j], messages.Confirm).signature for j in range(4)}
    frame = messages.Quorum(binding=rd.view.transcript, sender=SERVER_ID, signatures=tuple(sorted(stale.items())))
    for i in range(4):
        with pytest.raises(ServerFault, match="client 0 did not sign the statement"):
            rd.clients[i].receive(messages.seal(frame, rd.server.sign))
    for i in range(4):
        rd.up["confirm", i] = lambda _, i=i: old.sent["confirm"][i]
    with pytest.raises(BelowThresholdError, match="quorum"):
        rd.step()


@pytest.mark.parametrize("restarted", [False, True])
def test_a_retry_without_one_client_gets_no_second_vector(new_round, tmp_path, restarted):
    """The server ends a round after the vectors and asks for them again without client 3: the difference would be its input."""
    context = b"\5" * 32
    guards = {i: FileGuard(tmp_path / f"{i}") for i in range(5)}
    first = new_round(5, app_context=context, hooks={i: {"guard": guards[i]} for i in range(5)})
    first.run("mask")
    first.ask("mask")
    if restarted:
        for i, guard in guards.items():
            guard.close()
            guards[i] = FileGuard(tmp_path / f"{i}")
    retry = new_round(4, app_context=context, hooks={i: {"guard": guards[i]} for i in range(4)})
    with pytest.raises(BelowThresholdError):
        retry.run()
    assert {type(error) for error in retry.errors.values()} == {GuardError}
    assert not retry.sent["mask"]
    for guard in guards.values():
        guard.close()


def test_an_inconsistent_polynomial_names_its_dealer(new_round, monkeypatch):
    """A dealer's shares come from no polynomial of degree t - 1: every share fits its commitment, and the secret is another one."""
    rd = new_round(5, threshold=3, dropouts=1)
    rd.run("share")
    root, real = rd.clients[2]._state.secrets.root, shamir.share
    monkeypatch.setattr(shamir, "share", lambda s, t, points, entropy: real(s, t + (s[0] == root), points, entropy))
    with pytest.raises(PeerFault, match="dealt shares of") as caught:
        rd.run()
    assert caught.value.party == 2
    assert len([name for name in caught.value.evidence if name.startswith("share ") and name != "share header"]) == 3


@pytest.mark.parametrize("silent", [False, True])
def test_a_choosers_false_seed_harms_its_chooser(new_round, silent):
    """A seed that its chooser's root does not give: used by both ends it cancels; with both ends gone the root shows who lied."""
    rd = new_round(5, threshold=3, dropouts=2)
    rd.run("share")
    chooser, peer = next((i, j) for i in range(5) for j in range(5) if i != j and rd.view.graph.is_chooser(i, j))
    rd.redeal(chooser, peer, rd.false_seed(chooser, peer))
    rd.silence(chooser, "mask")
    if silent:
        rd.silence(peer, "unmask")
        with pytest.raises(PeerFault, match="committed to another pair seed than it used") as caught:
            rd.run()
        assert caught.value.party == chooser
        return
    rd.run()
    rd.check([i for i in range(5) if i != chooser])


def test_a_key_that_nobody_can_seal_to_costs_its_owner_alone(new_round):
    """An all-zero key passes every check of its form: the server finds out before anybody else meets it."""
    for key in ("channel_key", "mask_key"):
        rd = new_round()
        rd.up["advertise", 2] = lambda f, rd=rd, key=key: rd.resign(f, messages.Advertise, by=2, **{key: bytes(32)})
        rd.run()
        rd.check((0, 1, 3))
        assert rd.session.result.rejected[2].party == 2
        assert rd.errors == {}
