import copy
import dataclasses
import os
import pickle

import numpy as np
import pytest

from secagg import messages
from secagg.errors import InputError, ParameterError, PeerFault, SecaggError, ServerFault, StateError
from secagg.identity import Identity, Roster
from secagg.protocols.pairwise import ClientSession
from secagg.testing import parties


class Refusal(Exception):  # noqa: N818 - stands for an application's own exception
    """What an application's hook raises."""


def refuse(*_):
    """A hook that stops the session."""
    raise Refusal


@pytest.fixture
def given_client(params_of, inputs_of):
    """`given_client(i, **changes)`: the arguments of a session of client i, some replaced."""

    def build(i=0, **changes):
        p = changes.pop("params", params_of())
        identities, _, roster = parties(p.cohort, p.suite)
        arguments = {"params": p, "identity": identities[i], "roster": roster, "inputs": inputs_of(p)[i]}
        return ClientSession(**(arguments | changes))

    return build


def test_an_identity_outside_cohort_or_roster_is_refused(given_client, params_of):
    """Not in the cohort, another key than on the roster, a member without a key, the other suite: each says so."""
    p = params_of()
    identities, server, roster = parties(p.cohort, p.suite)
    keys = dict(roster.clients)
    with pytest.raises(ParameterError, match="client 9 is not in the cohort"):
        given_client(identity=Identity.generate(9))
    with pytest.raises(ParameterError, match="another key, or none, for client 0"):
        given_client(identity=Identity.generate(0))
    short = Roster({i: keys[i] for i in (0, 1, 2)}, server.verify_key, server.sealing_key)
    with pytest.raises(ParameterError, match=r"clients \[3\] of the cohort are not on the roster"):
        given_client(roster=short)
    with pytest.raises(ParameterError, match="server key is not for suite 'hybrid'"):
        given_client(params=params_of(suite="hybrid"), identity=identities[0], roster=roster)


def test_inputs_are_checked_at_once(given_client):
    """A wrong input never starts a session; a callable is not called yet."""
    with pytest.raises(InputError, match="block 'update'"):
        given_client(inputs={"update": np.zeros(4, int), "count": np.zeros(1, int)})
    given_client(inputs=refuse)


def test_inputs_are_checked_again_when_they_are_used(new_round):
    """An array that changed since is refused, and nothing leaves."""
    rd = new_round()
    rd.run("mask")
    rd.inputs[1]["update"][0] = 10**6
    rd.ask("mask")
    assert isinstance(rd.errors[1], InputError)
    assert 1 not in rd.sent["mask"]


def test_a_callable_gives_the_inputs_once_and_late(new_round):
    """The function is called exactly once, after exchange 2 and not before."""
    calls = []
    rd = new_round()
    values = rd.inputs[1]
    rd.clients[1] = rd.client(1, inputs=lambda: calls.append(rd.session.phase) or values)
    rd.run("mask")
    assert calls == []
    rd.run()
    assert calls == ["mask"]
    rd.check((0, 1, 2, 3))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros(5), "block 'update': an integer array is needed, got float64"),
        (np.zeros(4, int), r"block 'update': shape \(4,\)"),
        (np.full(5, -1001), r"block 'update': values -1001\.\.-1001"),
    ],
)
def test_s6_bad_inputs_of_a_callable_make_a_dropout(new_round, value, message):
    """The client stops with an error that names the block; the others' sum stands."""
    rd = new_round()
    count = rd.inputs[1]["count"]
    rd.clients[1] = rd.client(1, inputs=lambda: {"update": value, "count": count})
    rd.run()
    rd.check((0, 2, 3))
    with pytest.raises(InputError, match=message):
        raise rd.errors[1]
    with pytest.raises(StateError):
        rd.clients[1].receive(b"x")


def test_a_callable_that_raises_spends_the_session(new_round):
    """An application's own exception passes through and nothing leaves."""
    rd = new_round()
    rd.clients[1] = rd.client(1, inputs=refuse)
    rd.run("mask")
    with pytest.raises(Refusal):
        rd.clients[1].receive(rd.answers[1])
    with pytest.raises(StateError):
        rd.clients[1].receive(rd.answers[1])


def test_on_release_runs_just_before_the_vector_leaves(new_round):
    """Once, after exchange 2 was accepted and the inputs are good."""
    calls = []
    rd = new_round(hooks={1: {"on_release": lambda: calls.append(rd.session.phase)}})
    rd.run("mask")
    assert calls == []
    rd.run()
    assert calls == ["mask"]


def test_no_masked_vector_leaves_when_on_release_raises(new_round):
    """The ledger refuses: the client is spent, its vector is nowhere, the round goes on without it."""
    rd = new_round(hooks={1: {"on_release": refuse}})
    rd.run("mask")
    with pytest.raises(Refusal):
        rd.clients[1].receive(rd.answers[1])
    assert not rd.clients[1].waiting
    with pytest.raises(StateError):
        rd.clients[1].receive(rd.answers[1])
    rd.errors[1] = None
    rd.run()
    rd.check((0, 2, 3))


def test_on_release_does_not_run_for_bad_inputs(new_round):
    """What is not released is not reserved."""
    calls = []
    rd = new_round()
    rd.clients[1] = rd.client(1, inputs=dict, on_release=lambda: calls.append(1))
    rd.run()
    assert isinstance(rd.errors[1], InputError)
    assert calls == []


def test_on_survivors_gets_u3_before_any_share_leaves(new_round):
    """The hook sees the ids in the sum, once, after the quorum."""
    calls = []
    rd = new_round(hooks={0: {"on_survivors": lambda ids: calls.append((rd.session.phase, ids))}})
    rd.silence(2, "mask")
    rd.run("unmask")
    assert calls == []
    rd.run()
    assert calls == [("unmask", (0, 1, 3))]


def test_no_share_leaves_when_on_survivors_raises(new_round):
    """Shares are withheld, the session is spent, t others still open the sum."""
    rd = new_round(hooks={1: {"on_survivors": refuse}})
    rd.run("unmask")
    with pytest.raises(Refusal):
        rd.clients[1].receive(rd.answers[1])
    with pytest.raises(StateError):
        rd.clients[1].receive(rd.answers[1])
    rd.errors[1] = None
    rd.run()
    rd.check((0, 1, 2, 3))
    assert rd.session.result.dropped == {1: "unmask"}


def test_on_survivors_does_not_run_without_a_quorum(new_round):
    """A quorum that is none stops the session before the hook."""
    calls = []
    rd = new_round(hooks={0: {"on_survivors": calls.append}})
    rd.lie_to(0, "confirm", messages.Quorum, lambda _: {"signatures": ()})
    rd.run()
    assert isinstance(rd.errors[0], ServerFault)
    assert calls == []


def test_a_session_starts_once(given_client):
    """A second advertisement is never made, nor an answer before the first."""
    session = given_client()
    with pytest.raises(StateError):
        session.receive(b"x")
    session.start()
    assert session.waiting
    with pytest.raises(StateError, match="started already"):
        session.start()


def test_a_source_that_runs_short_spends_the_session(given_client):
    """Secrets are never padded, and a failed start is not tried again."""
    session = given_client(entropy=lambda n: os.urandom(n - 1))
    with pytest.raises(InputError, match="entropy"):
        session.start()
    with pytest.raises(StateError):
        session.start()


@pytest.mark.parametrize("phase", ["advertise", "share", "mask", "confirm"])
def test_each_answer_is_taken_once(new_round, phase):
    """The same frame a second time is refused, and so is everything after that."""
    rd = new_round()
    frame = None
    while frame is None:
        closed = rd.session.phase
        rd.step()
        if closed == phase:
            frame = rd.answers[0]
    assert rd.clients[0].receive(frame) is not None
    with pytest.raises((ServerFault, StateError)):
        rd.clients[0].receive(frame)
    with pytest.raises(StateError):
        rd.clients[0].receive(frame)
    assert not rd.clients[0].waiting


@pytest.mark.parametrize("phase", ["advertise", "share", "mask", "confirm"])
@pytest.mark.parametrize("bad", [b"", b"\xc1", None, bytearray(b"x"), "text"])
def test_after_an_error_a_session_is_spent(new_round, phase, bad):
    """Bad bytes are the server's fault; the good frame afterwards finds nobody."""
    rd = new_round()
    while rd.session.phase != phase:
        rd.step()
    rd.step()
    with pytest.raises(ServerFault):
        rd.clients[0].receive(bad)
    with pytest.raises(StateError, match="stopped by an error"):
        rd.clients[0].receive(rd.answers[0])


def test_a_finished_session_is_finished(new_round):
    """After exchange 5 nothing is answered any more."""
    rd = new_round()
    rd.run()
    for client in rd.clients.values():
        assert not client.waiting
        with pytest.raises(StateError):
            client.receive(b"x")


def test_s9_a_client_signs_one_statement_and_reveals_one_kind(new_round):
    """Shown one survivor set and then another, a client is spent: it never answers for both."""
    rd = new_round()
    rd.run("confirm")
    other = rd.resign(rd.answers[0], messages.Survivors, members=(0, 1, 2))
    rd.ask("confirm")
    with pytest.raises(ServerFault):
        rd.clients[0].receive(other)
    with pytest.raises(StateError):
        rd.clients[0].receive(rd.answers[0])
    rd.errors[0] = None
    rd.run()
    assert 0 not in rd.sent["unmask"]


def test_the_secrets_are_gone_when_they_are_not_needed(new_round):
    """After exchange 3 neither R, b nor the channel key hang on the session; after the last nothing does."""
    rd = new_round()
    rd.run("mask")
    secrets = {rd.clients[0]._state.secrets.root, rd.clients[0]._state.secrets.self_seed}
    rd.ask("mask")
    state = rd.clients[0]._state
    assert not hasattr(state, "secrets")
    assert not secrets & {s for h in state.near.held.values() for s in (h.root, h.self_seed)}
    rd.run()
    assert rd.clients[0]._state is None


def test_a_session_is_never_pickled(new_round):
    """In no phase does a session, ours or the server's, leave by pickle."""
    rd = new_round()
    while rd.session.phase is not None:
        for session in (rd.clients[0], rd.session):
            with pytest.raises(TypeError):
                pickle.dumps(session)
        rd.step()


def test_s26_a_session_is_never_copied(new_round):
    """A copy would answer a phase a second time, with the same masks and the other shares."""
    rd = new_round()
    rd.run("confirm")
    for make in (copy.copy, copy.deepcopy):
        for session in (rd.clients[0], rd.session):
            with pytest.raises(TypeError):
                make(session)


def test_a_session_prints_its_type(new_round):
    """Nothing else is in the representation."""
    rd = new_round()
    rd.run("mask")
    assert repr(rd.clients[0]) == "<ClientSession>"
    assert repr(rd.session) == "<ServerSession>"


def test_another_model_stops_the_client(new_round):
    """A client that was shown another app_context is a dropout; it never gets as far as an input."""
    rd = new_round()
    other = dataclasses.replace(rd.params, app_context=b"\1" * 32)
    rd.clients[1] = rd.client(1, params=other, on_release=refuse)
    rd.run()
    rd.check((0, 2, 3))
    assert "another round, cohort or application context" in str(rd.session.result.rejected[1])


@pytest.mark.parametrize("fault", [PeerFault(1, "x"), ServerFault("x"), StateError("x"), InputError("x")])
def test_every_error_of_a_session_is_ours(fault):
    """One base class for whoever runs a session."""
    assert isinstance(fault, SecaggError)
