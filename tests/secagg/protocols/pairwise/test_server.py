import contextlib
import dataclasses
import sys

import pytest

from secagg import messages
from secagg.crypto import prg
from secagg.errors import (
    BelowThresholdError,
    DeclinedError,
    DecodeError,
    InputError,
    LocalError,
    ParameterError,
    PeerFault,
    PolicyError,
    SecaggError,
    SelfTestError,
    ServerFault,
    StateError,
    UnexpectedFrameError,
)
from secagg.identity import Roster, ServerIdentity
from secagg.params import PHASES, RoundParams
from secagg.protocols.pairwise import Result, ServerSession, decline
from secagg.testing import parties


def test_the_roster_must_fit(params_of):
    """A member without a key, another server's keys, the other suite: each says so."""
    p = params_of()
    _, server, roster = parties(p.cohort, p.suite)
    short = Roster({i: k for i, k in roster.clients.items() if i != 3}, server.verify_key, server.sealing_key)
    with pytest.raises(ParameterError, match=r"clients \[3\]"):
        ServerSession(p, server, short)
    with pytest.raises(ParameterError, match="other keys for the server"):
        ServerSession(p, ServerIdentity.generate("classical"), roster)
    with pytest.raises(ParameterError, match="not for suite 'hybrid'"):
        ServerSession(params_of(suite="hybrid"), server, roster)


def test_the_opening_is_the_parameters_for_everybody(new_round):
    """Each member of the cohort is sent the canonical encoding."""
    rd = new_round()
    opening = rd.session.open()
    assert sorted(opening) == [0, 1, 2, 3]
    assert all(RoundParams.decode(frame) == rd.params for frame in opening.values())


def test_the_phases_come_in_order(new_round):
    """Five phases, then none; the last has no answers."""
    rd = new_round()
    seen = []
    while rd.session.phase is not None:
        seen.append(rd.session.phase)
        rd.step()
    assert tuple(seen) == PHASES
    assert rd.answers == {}


def test_the_result_has_its_documented_fields(new_round):
    """What an application reads, no more."""
    rd = new_round()
    rd.silence(3, "confirm")
    result = rd.run()
    assert [f.name for f in dataclasses.fields(Result)] == [
        "sums",
        "survivors",
        "dropped",
        "rejected",
        "transcript",
        "signatures",
        "sharers",
    ]
    assert (result.survivors, result.sharers, result.dropped) == ((0, 1, 2, 3), (0, 1, 2, 3), {3: "confirm"})
    assert sorted(result.signatures) == [0, 1, 2]
    assert result.transcript == rd.view.transcript if rd.session._state else result.transcript


def test_there_is_no_result_before_the_end(new_round):
    """Asking early is an error, not None."""
    rd = new_round()
    while rd.session.phase is not None:
        with pytest.raises(StateError, match="no result"):
            _ = rd.session.result
        rd.step()
    assert rd.session.result.survivors == (0, 1, 2, 3)


def test_a_closed_round_takes_nothing(new_round):
    """After the last phase neither a frame nor another closing is taken, and the result stays."""
    rd = new_round()
    rd.run()
    with pytest.raises(StateError, match="over"):
        rd.session.receive(0, b"x")
    with pytest.raises(StateError, match="over"):
        rd.session.close_phase()
    rd.check((0, 1, 2, 3))


def test_after_an_error_a_session_is_spent(new_round):
    """Below the threshold the round is over for good: no phase, no result."""
    rd = new_round()
    rd.silence(0, "share")
    rd.silence(1, "share")
    with pytest.raises(BelowThresholdError):
        rd.run()
    assert rd.session.phase is None
    for call in (rd.session.close_phase, lambda: rd.session.receive(2, b"x"), lambda: rd.session.result):
        with pytest.raises(StateError):
            call()


@pytest.mark.parametrize("phase", PHASES)
def test_s27_a_duplicate_is_rejected(new_round, phase):
    """The first frame of a sender counts, the second is refused, and the round is as it would have been."""
    rd = new_round()
    while rd.session.phase != phase:
        rd.step()
    frame = rd.ask(phase)[1]
    rd.session.receive(1, frame)
    for again in (frame, b"other"):
        with pytest.raises(UnexpectedFrameError, match=f"client 1 in phase {phase}: is a second one"):
            rd.session.receive(1, again)
    rd.run()
    rd.check((0, 1, 2, 3))
    assert rd.session.result.dropped == {}


@pytest.mark.parametrize("phase", PHASES[1:])
def test_s27_a_late_frame_of_a_dropped_client_is_rejected(new_round, phase):
    """Who was silent in one phase is not expected in the next ones."""
    before = PHASES[PHASES.index(phase) - 1]
    rd = new_round()
    rd.silence(1, before)
    while rd.session.phase != phase:
        rd.step()
    assert 1 not in rd.session.expected
    with pytest.raises(UnexpectedFrameError, match=f"client 1 in phase {phase}: is not awaited"):
        rd.session.receive(1, rd.sent[before][1])
    rd.run()
    assert rd.session.result.dropped == {1: before}


@pytest.mark.parametrize("phase", PHASES[1:])
def test_s27_a_repeated_frame_of_the_last_phase_does_not_displace_the_next(new_round, phase):
    """A transport delivers a frame of the phase before once more, ahead of the right one: the right one counts."""
    before = PHASES[PHASES.index(phase) - 1]
    rd = new_round()
    while rd.session.phase != phase:
        rd.step()
    with contextlib.suppress(SecaggError):
        rd.session.receive(1, rd.sent[before][1])
    rd.run()
    rd.check((0, 1, 2, 3))
    assert rd.session.result.dropped == {}


def test_s27_another_sessions_frame_does_not_displace_the_right_one(new_round):
    """A frame of an earlier session arrives first: it is not of this round, so the right one counts."""
    old = new_round()
    old.run()
    for phase in PHASES:
        rd = new_round()
        while rd.session.phase != phase:
            rd.step()
        with contextlib.suppress(SecaggError):
            rd.session.receive(1, old.sent[phase][1])
        rd.run()
        rd.check((0, 1, 2, 3))
        assert rd.session.result.dropped == {}


@pytest.mark.parametrize("sender", [9, 2**64 - 1, -1])
def test_s27_a_stranger_is_rejected(new_round, sender):
    """Nobody outside the cohort is expected."""
    rd = new_round()
    with pytest.raises(UnexpectedFrameError, match=f"client {sender} in phase advertise: is not awaited"):
        rd.session.receive(sender, b"x")


@pytest.mark.parametrize("frame", [b"", None, "text", 5])
def test_s15_an_answer_without_content_is_no_answer(new_round, frame):
    """An empty or broken reply is refused and does not take the place of a good one."""
    rd = new_round()
    with pytest.raises(DecodeError, match="client 1 answered without content in phase advertise"):
        rd.session.receive(1, frame)
    rd.run()
    rd.check((0, 1, 2, 3))


def test_the_rejected_have_their_reason(new_round):
    """Who was rejected in which phase, and why."""
    rd = new_round(5, colluders=0)
    rd.up["share", 1] = lambda f: f[:-1]
    rd.up["mask", 2] = lambda f: f[:-1]
    rd.run()
    rd.check((0, 3, 4))
    assert rd.session.result.dropped == {1: "share", 2: "mask"}
    assert sorted(rd.session.result.rejected) == [1, 2]


def test_a_round_that_ends_below_the_threshold_says_why_answers_were_not_taken(new_round):
    """Two clients send garbage under a valid frame: the error that ends the round has both reasons."""
    rd = new_round()
    for client in (2, 3):
        rd.up["advertise", client] = lambda frame, by=client: rd.resign(
            frame, messages.Advertise, by=by, mask_key=b"short"
        )
    with pytest.raises(BelowThresholdError, match=r"client 2 was not taken.*client 3 was not taken") as caught:
        rd.run()
    assert set(caught.value.rejected) == {2, 3}


@pytest.mark.parametrize("phase", PHASES)
def test_rubbish_under_a_clients_name_does_not_cost_it_its_place(new_round, phase):
    """Garbage, a cut frame, another's signature come first: nothing changes, and the right frame is still taken."""
    rd = new_round()
    while rd.session.phase != phase:
        rd.step()
    right = rd.ask(phase)[2]
    for wrong in (b"rubbish", right[:-1], right[:-1] + bytes([right[-1] ^ 1]), rd.ask(phase)[1], right + b"\0"):
        with pytest.raises(DecodeError):
            rd.session.receive(2, wrong)
    rd.run()
    rd.check((0, 1, 2, 3))
    assert (rd.session.result.dropped, rd.session.result.rejected) == ({}, {})


@pytest.mark.parametrize("phase", [*PHASES[:3], PHASES[4]])
def test_a_signed_wrong_frame_ends_its_senders_turn(new_round, phase):
    """What a client signed and is wrong cannot be taken back: the right frame comes too late, and the fault has evidence."""
    rd = new_round()
    while rd.session.phase != phase:
        rd.step()
    right = rd.ask(phase)[2]
    if phase == "advertise":
        wrong = rd.resign(right, messages.Advertise, by=2, mask_key=b"short")
    elif phase == "share":
        wrong = rd.share_frame(2, [b"leaf"])
    elif phase == "unmask":
        wrong = rd.resign(right, messages.Unmask, by=2, answers=())
    else:
        end = 4 + int.from_bytes(right[:4], "big")
        header = rd.resign(right[4:end], messages.MaskHeader, by=2, refused=(9,))
        front = len(header).to_bytes(4, "big") + header
        wrong = front + bytes(-len(front) % 16) + right[end + -end % 16 :]
    with pytest.raises(PeerFault) as caught:
        rd.session.receive(2, wrong)
    assert caught.value.party == 2
    assert caught.value.evidence
    with pytest.raises(UnexpectedFrameError, match="turn has ended"):
        rd.session.receive(2, right)
    rd.up[phase, 2] = lambda _: None
    rd.run()
    rd.check((0, 1, 2, 3) if phase == "unmask" else (0, 1, 3))
    assert rd.session.result.dropped == {2: phase}
    assert rd.session.result.rejected[2] is caught.value


@pytest.mark.parametrize("phase", PHASES)
def test_a_client_that_declines_is_missing_with_its_reason(new_round, phase):
    """A signed word of its own in place of a frame: the server learns the rule and the reason, the others go on."""
    rd = new_round()
    while rd.session.phase != phase:
        rd.step()
    frame = rd.clients[2].decline(ServerFault("U3 leaves out client 9"))
    with pytest.raises(DecodeError):
        rd.session.receive(1, frame)
    rd.session.receive(2, frame)
    rd.up[phase, 2] = lambda _: None
    rd.run()
    assert rd.session.result.dropped == {2: phase}
    declined = rd.session.result.rejected[2]
    assert isinstance(declined, DeclinedError)
    assert (declined.party, declined.phase, declined.rule) == (2, phase, "ServerFault")
    assert "U3 leaves out client 9" in str(declined)


def test_an_error_of_the_clients_own_stays_with_it(new_round):
    """What is wrong with a client's data is nothing that the server learns: it hears the kind of error only."""
    rd = new_round()
    frame = rd.clients[2].decline(InputError("block 'update': values 0..77777 are outside +-1000"))
    assert b"77777" not in frame
    rd.session.receive(2, frame)
    rd.run()
    rd.check((0, 1, 3))
    assert rd.session.result.rejected[2].rule == "InputError"


FRAME_KINDS = dict(zip(PHASES, ("Advertise", "ShareHeader", "MaskHeader", "Confirm", "Unmask"), strict=True))


def made_by_another(rd, phase, right):
    """Frames of the right form that name client 2 as their sender and that it did not make."""
    if phase == "confirm":
        signature = messages.decode(rd.ask(phase)[1], messages.Confirm).signature
        return [messages.encode(messages.Confirm(binding=rd.view.transcript, sender=2, signature=signature))]
    if phase == "share":
        shares, other = (messages.decode(rd.ask(phase)[i], messages.ShareFrame) for i in (2, 1))
        header = rd.resign(shares.header, messages.ShareHeader, by=1)
        frames = [messages.ShareFrame(header, shares.leaves), messages.ShareFrame(shares.header, other.leaves)]
        return [messages.encode(frame) for frame in frames]
    kind = getattr(messages, FRAME_KINDS[phase])
    if phase != "mask":
        return [rd.resign(right, kind, by=1), rd.resign(right, kind)]
    end = 4 + int.from_bytes(right[:4], "big")
    forged = rd.resign(right[4:end], kind, by=1)
    rest = right[end:]
    return [right[:4] + forged + rest, right[: end + -end % 16] + rd.ask(phase)[1][end + -end % 16 :]]


@pytest.mark.parametrize("phase", PHASES)
def test_frames_forged_under_a_clients_name_do_not_cost_it_its_place(new_round, phase):
    """Well-formed frames that others signed, or that are of another phase or session, come first; then the right one is summed."""
    old, rd = new_round(), new_round()
    old.run()
    while rd.session.phase != phase:
        rd.step()
    right = rd.ask(phase)[2]
    others = [rd.sent[earlier][2] for earlier in PHASES[: PHASES.index(phase)]]
    for wrong in (*made_by_another(rd, phase, right), old.sent[phase][2], *others):
        assert wrong != right
        with pytest.raises(DecodeError):
            rd.session.receive(2, wrong)
    rd.session.receive(2, right)
    rd.up[phase, 2] = lambda _: None
    rd.run()
    rd.check((0, 1, 2, 3))
    assert (rd.session.result.dropped, rd.session.result.rejected) == ({}, {})


@pytest.mark.parametrize("phase", PHASES)
def test_a_declining_that_is_not_the_clients_own_does_not_count(new_round, phase):
    """Signed by another, for another phase, or in another session: nothing changes, and the right frame is still taken."""
    old, rd = new_round(), new_round()
    while rd.session.phase != phase:
        rd.step()
        old.step()
    rd.ask(phase)
    old.ask(phase)
    own = rd.client(2).decline(ServerFault("no"))
    for wrong in (
        rd.resign(own, messages.Decline, by=1, phase=phase),
        rd.resign(own, messages.Decline, phase=phase),
        rd.resign(own, messages.Decline, by=2, phase=PHASES[PHASES.index(phase) - 1]),
        rd.resign(own, messages.Decline, by=2, phase=phase, sender=1),
        old.clients[2].decline(ServerFault("no")),
    ):
        with pytest.raises(DecodeError):
            rd.session.receive(2, wrong)
    rd.run()
    rd.check((0, 1, 2, 3))
    assert (rd.session.result.dropped, rd.session.result.rejected) == ({}, {})


def test_who_has_declined_has_had_its_turn(new_round):
    """Neither its right frame nor a second word is taken, and its own session answers nothing any more."""
    rd = new_round()
    rd.run("share")
    right = rd.ask("share")[2]
    declined = rd.resign(rd.clients[2].decline(ServerFault("no")), messages.Decline, by=2, phase="share")
    rd.session.receive(2, declined)
    for late in (right, declined):
        with pytest.raises(
            UnexpectedFrameError, match="client 2 in phase share: comes after the client's turn has ended"
        ):
            rd.session.receive(2, late)
    with pytest.raises(StateError):
        rd.clients[2].receive(rd.answers[2])
    with pytest.raises(StateError):
        rd.clients[2].start()
    rd.up["share", 2] = lambda _: None
    rd.run()
    rd.check((0, 1, 3))


def test_a_client_that_does_not_join_says_which_rule_forbids_it(new_round):
    """`decline` answers a proposal that no session was made for, even one that cannot be read, with the policy's rule."""
    rd = new_round()
    proposal = rd.session.open()[2]
    rd.session.receive(2, decline(proposal, rd.identities[2], PolicyError("min_cohort", "4 are fewer than 10")))
    with pytest.raises(DecodeError):
        rd.session.receive(3, decline(b"another", rd.identities[3], PolicyError("min_cohort", "4 are fewer than 10")))
    rd.up["advertise", 2] = lambda _: None
    rd.run()
    rd.check((0, 1, 3))
    declined = rd.session.result.rejected[2]
    assert type(declined) is DeclinedError
    assert (declined.party, declined.phase, declined.rule) == (2, "advertise", "min_cohort")
    assert "4 are fewer than 10" in str(declined)


@pytest.mark.parametrize("kind", sorted(LocalError.__subclasses__(), key=lambda kind: kind.__name__))
def test_no_error_of_a_clients_own_is_told(new_round, kind):
    """Whatever kind of `LocalError` stops a client, before it joins or in the round, the frame has its kind and never its text."""
    rd = new_round()
    error = kind("/home/a/secret.key holds 77777")
    for frame in (
        rd.clients[2].decline(error),
        decline(rd.session.open()[2], rd.identities[2], error),
    ):
        told = rd.payload(frame, messages.Decline)
        assert (told.rule, told.reason) == (kind.__name__, "an error on this client's side")
        assert b"secret" not in frame
        assert b"77777" not in frame


def test_rubbish_of_an_earlier_phase_is_no_reason_of_a_later_one(new_round):
    """What came under a client's name before its right frame is forgotten with the phase: its silence later has no reason."""
    rd = new_round()
    rd.ask("advertise")
    with pytest.raises(DecodeError):
        rd.session.receive(2, b"rubbish")
    rd.step()
    rd.silence(2, "share")
    rd.run()
    rd.check((0, 1, 3))
    assert (rd.session.result.dropped, rd.session.result.rejected) == ({2: "share"}, {})


@pytest.mark.parametrize("phase", PHASES)
def test_the_order_of_arrival_does_not_matter(new_round, phase):
    """Frames that arrive last client first give the same sets, the same sum, and answers that every client takes."""
    rd = new_round()
    rd.run(phase)
    for client, frame in reversed(rd.ask(phase).items()):
        rd.session.receive(client, frame)
        rd.up[phase, client] = lambda _: None
    rd.run()
    rd.check((0, 1, 2, 3))
    assert (rd.session.result.dropped, rd.errors) == ({}, {})
    assert list(rd.session.result.signatures) == sorted(rd.session.result.signatures)


def test_who_declines_before_it_begins_never_begins(new_round):
    """A fresh session that has told the server that it takes no part is spent."""
    client = new_round().clients[2]
    client.decline(ServerFault("no"))
    with pytest.raises(StateError):
        client.start()


def test_a_long_reason_is_cut_and_not_lost(new_round):
    """The server reads at most 512 characters of a reason, and a client sends no more."""
    rd = new_round()
    rd.session.receive(2, rd.clients[2].decline(ServerFault("x" * 511 + "yz")))
    rd.up["advertise", 2] = lambda _: None
    rd.run()
    assert str(rd.session.result.rejected[2]).endswith("x" * 511 + "y")


def test_frames_that_come_together_are_taken_as_one_by_one(new_round):
    """In one call: rubbish before the right frame, a second one, a stranger's, another's name, a signed wrong one and the right one after it."""
    rd = new_round(5, colluders=1, dropouts=1)
    sent = rd.ask("advertise")
    wrong = rd.resign(sent[3], messages.Advertise, by=3, mask_key=b"short")
    frames = [
        (0, b"rubbish"),
        (0, sent[0]),
        (0, sent[0]),
        (9, sent[1]),
        (1, sent[2]),
        (1, sent[1]),
        (2, None),
        (3, wrong),
    ]
    frames += [
        (3, sent[3]),
        (2, sent[2]),
        (4, decline(rd.session.open()[4], rd.identities[4], ServerFault("no"))),
        (4, sent[4]),
    ]
    errors = rd.session.receive_many(frames)
    kinds = [DecodeError, None, UnexpectedFrameError, UnexpectedFrameError, DecodeError, None, DecodeError, PeerFault]
    kinds += [UnexpectedFrameError, None, None, UnexpectedFrameError]
    assert [error and type(error) for error in errors] == kinds
    with pytest.raises(BelowThresholdError) as caught:
        rd.session.close_phase()
    assert caught.value.alive == (0, 1, 2)
    assert {i: type(error) for i, error in caught.value.rejected.items()} == {3: PeerFault, 4: DeclinedError}


def test_a_vector_that_is_not_taken_is_let_go(new_round):
    """What is kept of a refused frame is the reason: with the error's way through the code the whole vector would stay as long as the round."""
    rd = new_round()
    rd.run("mask")
    sent = rd.ask("mask")
    end = 4 + int.from_bytes(sent[1][:4], "big")
    header = rd.resign(sent[2][4:end], messages.MaskHeader, by=2, refused=(9,))
    front = len(header).to_bytes(4, "big") + header
    wrong = front + bytes(-len(front) % 16) + sent[2][end + -end % 16 :]
    frames = [(1, sent[1][:-1]), (1, sent[1][:-1] + bytes([sent[1][-1] ^ 1])), (2, wrong)]
    del wrong
    before = [sys.getrefcount(frame) for _, frame in frames]
    errors = rd.session.receive_many(frames)
    assert [type(error) for error in errors] == [DecodeError, DecodeError, PeerFault]
    assert [sys.getrefcount(frame) for _, frame in frames] == before


def test_nothing_comes_of_nothing(new_round):
    """No frames are no error while the round runs, and an error when it is over."""
    rd = new_round()
    assert rd.session.receive_many([]) == []
    rd.run()
    with pytest.raises(StateError):
        rd.session.receive_many([])


def test_a_long_rule_is_cut_and_not_lost(new_round):
    """The same for the kind of error, of which an application's own can have any name: 64 characters."""
    rd = new_round()
    rd.session.receive(2, rd.clients[2].decline(type("E" * 99, (SecaggError,), {})("no")))
    rd.up["advertise", 2] = lambda _: None
    rd.run()
    assert rd.session.result.rejected[2].rule == "E" * 64


def test_an_installation_that_fails_its_self_test_takes_no_part(new_round, monkeypatch):
    """Neither side of a round is made where the generator does not give its known answer."""
    rd = new_round()

    def broken():
        raise SelfTestError("another answer")

    monkeypatch.setattr(prg, "self_test", broken)
    with pytest.raises(SelfTestError):
        ServerSession(rd.params, rd.server, rd.roster)
    with pytest.raises(SelfTestError):
        rd.client(1)
