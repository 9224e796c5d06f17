import contextlib
import dataclasses

import pytest

from secagg import messages
from secagg.errors import BelowThresholdError, DecodeError, ParameterError, PeerFault, SecaggError, StateError
from secagg.identity import Roster, ServerIdentity
from secagg.params import PHASES, RoundParams
from secagg.protocols.pairwise import Result, ServerSession
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
        "disputed",
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
        with pytest.raises(SecaggError, match=f"client 1.*{phase}|twice"):
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
    with pytest.raises(SecaggError, match=f"client 1: is not expected in phase {phase}"):
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
    with pytest.raises(PeerFault, match=f"client {sender}: is not expected in phase advertise"):
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
