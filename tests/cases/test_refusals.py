import dataclasses

import msgspec
import numpy as np
import pytest

from secagg import Block, ClientPolicy, ClientSession, RoundParams, run_round
from secagg.engines.inprocess import InProcessEngine
from secagg.errors import (
    DecodeError,
    InputError,
    ParameterError,
    PolicyError,
    SecaggError,
    ServerFault,
    SignatureError,
    StateError,
)
from secagg.identity import Identity
from secagg.params import PHASES
from secagg.protocols.pairwise import decline
from secagg.testing import client_handler, parties, simulate_round

UPDATE = Block("update", 7, 20, 1000)
POLICY = ClientPolicy(suites={"classical"}, blocks=(UPDATE,))
WIRE = ("version", "suite", "session", "round", "cohort", "threshold", "degree", "colluders", "dropouts", "blocks")


def in_sum(dropped):
    """Whether a client that is silent from this phase on has its vector in the sum."""
    return dropped in PHASES[3:]


def is_sum(outcome, inputs, survivors):
    """Whether a round gave exactly the sum over these clients."""
    expected = {name: sum(inputs[i][name] for i in survivors) for name in inputs[survivors[0]]}
    same = all(np.array_equal(outcome.sums[name], x) for name, x in expected.items())
    return same and outcome.survivors == tuple(survivors) and set(outcome.sums) == set(expected)


def proposal(params, **changes):
    """What a server sends to open a round, with fields changed behind the back of `RoundParams`."""
    fields = msgspec.msgpack.decode(params.encode())
    for name, value in changes.items():
        fields[WIRE.index(name)] = value
    return msgspec.msgpack.encode(fields)


class Meddling(InProcessEngine):
    """An engine in which `meddle(phase, client, answer)` gives what reaches the server in place of an answer: (sender, frame) pairs."""

    def __init__(self, handlers, meddle):
        super().__init__(handlers)
        self.meddle = meddle

    def exchange(self, phase, frames, *, deadline_s):
        """What the meddler makes of each answer."""
        for client, answer in super().exchange(phase, frames, deadline_s=deadline_s):
            yield from self.meddle(phase, client, answer)


def meddled_round(params, inputs, meddle):
    """A whole round over a meddling engine."""
    identities, server, roster = parties(params.cohort, params.suite)
    handlers = {i: client_handler(ClientSession(params, identities[i], roster, inputs[i])) for i in params.cohort}
    return run_round(Meddling(handlers, meddle), params, server, roster)


def nothing_is_drawn(_size):
    """An entropy source for a client that must not get as far as needing one."""
    raise AssertionError("a secret was drawn for a round that the policy forbids")


@pytest.mark.case("S10")
@pytest.mark.parametrize(
    ("change", "limits", "rule"),
    [
        ({"threshold": 1}, {}, "parameters"),
        ({"threshold": 0}, {}, "parameters"),
        ({"cohort": [0, 1]}, {}, "parameters"),
        ({"cohort": [0]}, {}, "parameters"),
        ({"blocks": [["update", 7, 2, 1000]]}, {}, "parameters"),
        ({"blocks": [["update", 7, 1, 0]]}, {}, "parameters"),
        ({"blocks": [["update", 7, 2, 0]]}, {}, "blocks"),
        ({"blocks": [["update", 7, 20, 999]]}, {}, "blocks"),
        ({"blocks": [["update", 7, 64, 1000]]}, {}, "blocks"),
        ({"blocks": [["update", 7, 20, 1000], ["rows", 1, 20, 1]]}, {}, "blocks"),
        ({}, {"min_threshold": 5}, "min_threshold"),
        ({}, {"min_cohort": 7}, "min_cohort"),
        ({}, {"known_peers": {1, 2}, "min_cohort": 4}, "min_known_peers"),
        ({}, {"min_survivors": 6}, "min_survivors"),
        ({}, {"min_colluders": 2}, "min_colluders"),
        ({}, {"suites": {"hybrid"}}, "suites"),
        ({"cohort": [0, 1, 2, 3, 4, 99]}, {}, "cohort"),
        ({"cohort": [1, 2, 3, 4, 5, 6]}, {}, "cohort"),
    ],
)
def test_a_server_proposes_what_the_policy_forbids(params_of, inputs_of, change, limits, rule):
    """Before a secret is drawn the client refuses by the name of the rule: in parameters that are unsound, and in sound ones too."""
    params = params_of(6, (UPDATE,), colluders=1, dropouts=1)
    identities, _, roster = parties(params.cohort, params.suite)
    policy = dataclasses.replace(POLICY, **limits)
    with pytest.raises(PolicyError) as caught:
        ClientSession.join(
            proposal(params, **change), policy, identities[0], roster, inputs_of(params)[0], entropy=nothing_is_drawn
        )
    assert caught.value.rule == rule


@pytest.mark.case("S10")
@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"threshold": 2, "adversary": "curious"}, "min_threshold"),
        ({"adversary": "curious", "threshold": 4}, "adversaries"),
        ({"adversary": "curious", "threshold": 4, "degree": 4}, "adversaries"),
    ],
)
def test_a_server_proposes_a_weaker_round(params_of, inputs_of, fields, rule):
    """A sound round against a weaker adversary, or with the smallest threshold, is the client's to refuse."""
    params = params_of(6, (UPDATE,), dropouts=1, **fields)
    identities, _, roster = parties(params.cohort, params.suite)
    policy = dataclasses.replace(POLICY, min_threshold=3)
    with pytest.raises(PolicyError) as caught:
        ClientSession.join(params.encode(), policy, identities[0], roster, inputs_of(params)[0])
    assert caught.value.rule == rule
    with pytest.raises(PolicyError) as caught:
        ClientSession(params, identities[0], roster, inputs_of(params)[0], policy=policy)
    assert caught.value.rule == rule


@pytest.mark.case("S10")
def test_the_server_learns_why(params_of, inputs_of):
    """A client that declines is a dropout, and the outcome has the rule; the others, whose policy allows it, have their sum."""
    params = params_of(6, (UPDATE,), dropouts=1)
    inputs = inputs_of(params)
    identities, server, roster = parties(params.cohort, params.suite)

    def handler(client):
        policy = dataclasses.replace(POLICY, min_cohort=7 if client == 4 else 6)
        sessions = []

        def handle(phase, frame):
            if phase != PHASES[0]:
                return sessions[0].receive(frame)
            try:
                sessions.append(ClientSession.join(frame, policy, identities[client], roster, inputs[client]))
            except PolicyError as error:
                return decline(frame, identities[client], error)
            return sessions[0].start()

        return handle

    outcome = run_round(InProcessEngine({i: handler(i) for i in params.cohort}), params, server, roster)
    assert is_sum(outcome, inputs, [0, 1, 2, 3, 5])
    assert outcome.dropped == {4: "advertise"}
    assert "policy min_cohort: 6 clients are proposed, at least 7 are needed" in outcome.rejected[4]


@pytest.mark.case("S15")
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    "content",
    [b"", None, "error", {}, [], 0, object()],
    ids=["empty", "None", "text", "dict", "list", "zero", "object"],
)
def test_an_answer_without_content(params_of, inputs_of, phase, content):
    """Whatever an engine hands over in place of a frame, its sender is a dropout from then on, and the sum is the others'."""
    params = params_of(5, (UPDATE,), dropouts=1)
    inputs = inputs_of(params)

    def meddle(now, client, answer):
        yield client, content if (now, client) == (phase, 2) else answer

    outcome = meddled_round(params, inputs, meddle)
    assert is_sum(outcome, inputs, [i for i in range(5) if i != 2 or in_sum(phase)])
    assert outcome.dropped == {2: phase}
    assert outcome.ignored == ((phase, 2, f"client 2 answered without content in phase {phase}"),)


@pytest.mark.case("S15")
@pytest.mark.parametrize("phase", PHASES)
def test_content_may_still_come(params_of, inputs_of, phase):
    """An empty answer does not use up its sender's turn: the right frame behind it counts."""
    params = params_of(5, (UPDATE,), dropouts=1)
    inputs = inputs_of(params)

    def meddle(now, client, answer):
        if (now, client) == (phase, 2):
            yield client, b""
        yield client, answer

    outcome = meddled_round(params, inputs, meddle)
    assert is_sum(outcome, inputs, range(5))
    assert outcome.dropped == {}


@pytest.mark.case("S19")
@pytest.mark.parametrize("number", [0, 1, 2**63, 2**64 - 1])
def test_round_numbers(params_of, inputs_of, number):
    """Round 0 is a round like any other, up to the largest u64."""
    params = params_of(4, (UPDATE,), round=number)
    inputs = inputs_of(params)
    assert is_sum(simulate_round(params, inputs), inputs, range(4))


@pytest.mark.case("S19")
@pytest.mark.parametrize("number", [-1, 2**64, 1.0, None, True, "0"])
def test_what_is_no_round_number(params_of, number):
    """Anything else is refused by name when the parameters are made."""
    with pytest.raises(ParameterError, match="round"):
        params_of(4, (UPDATE,), round=number)


@pytest.mark.case("S19")
@pytest.mark.parametrize("phase", PHASES)
def test_key_material_of_an_earlier_round(params_of, inputs_of, by_hand, phase):
    """A frame of the round before is refused as such in every exchange; its sender is a dropout, and no later error is cryptic."""
    params = params_of(5, (UPDATE,), dropouts=1, session=bytes(16))
    old, new = (by_hand(dataclasses.replace(params, round=number), inputs_of(params)) for number in (0, 1))
    for rd in (old, new):
        rd.run(until=phase)
    stale = old.ask()[2]
    new.deliver(new.ask() | {2: stale})
    [(_, sender, error)] = new.refused
    assert sender == 2
    assert isinstance(error, DecodeError)
    assert "bound to another round" in str(error)
    new.close()
    new.run()
    assert new.session.result.dropped == {2: phase}
    survivors = [i for i in range(5) if i != 2 or in_sum(phase)]
    assert is_sum(new.session.result, new.inputs, survivors)


@pytest.mark.case("S19")
def test_an_identity_that_was_replaced(params_of, inputs_of, by_hand):
    """An old key is refused by its owner's own session where the roster has the new one, and by everybody else as a signature."""
    params = params_of(5, (UPDATE,), dropouts=1)
    inputs = inputs_of(params)
    rd = by_hand(params, inputs)
    old = Identity.generate(2)
    with pytest.raises(ParameterError, match="the roster has another key, or none, for client 2"):
        ClientSession(params, old, rd.roster, inputs[2])
    before = dataclasses.replace(rd.roster, clients=dict(rd.roster.clients) | {2: old.public_key})
    rd.clients[2] = ClientSession(params, old, before, inputs[2])
    result = rd.run()
    [(phase, sender, error)] = rd.refused
    assert (phase, sender, type(error)) == ("advertise", 2, SignatureError)
    assert is_sum(result, inputs, [0, 1, 3, 4])


@pytest.mark.case("S19")
@pytest.mark.parametrize("dtype", ["i2", "i4", "i8", "u2", "u4", "u8", ">i4"])
def test_a_bound_smaller_than_the_data(params_of, dtype):
    """Data beyond the agreed bound is refused before the round, by client, block, values and bound, in every integer type."""
    params = params_of(4, (UPDATE, Block("count", 1, 10, 100)))
    inputs = {i: {"update": np.zeros(7, dtype), "count": np.array([100], dtype)} for i in range(4)}
    simulate_round(params, inputs)
    inputs[1]["count"] = np.array([101], dtype)
    with pytest.raises(InputError, match=r"client 1: block 'count': values 101\.\.101 are outside \+-100"):
        simulate_round(params, inputs)
    with pytest.raises(ParameterError, match="block 'count': bound = 100 does not fit into signed 7-bit values"):
        Block("count", 1, 7, 100)


@pytest.mark.case("S27")
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("field", ["session", "round", "app_context", "phase", "sender"])
def test_a_frame_that_belongs_elsewhere(params_of, inputs_of, by_hand, phase, field):
    """A frame of another session, round, application, phase or sender is refused and listed, and the right one behind it counts."""
    params = params_of(5, (UPDATE,), dropouts=1, session=bytes(16))
    others = {"session": b"\x01" * 16, "round": 7, "app_context": b"\x01" * 32}
    inputs = inputs_of(params)
    other = by_hand(dataclasses.replace(params, **{k: v for k, v in others.items() if k == field}), inputs)
    place = PHASES.index(phase)
    other.run(until=PHASES[place - 1] if field == "phase" else phase)  # before the first comes the last
    stray = other.ask()[3 if field == "sender" else 2]

    def meddle(now, client, answer):
        if (now, client) == (phase, 2):
            yield 2, stray
        yield client, answer

    outcome = meddled_round(params, inputs, meddle)
    assert is_sum(outcome, inputs, range(5))
    assert [(where, sender) for where, sender, _ in outcome.ignored] == [(phase, 2)]
    assert outcome.rejected == {}


@pytest.mark.case("S27")
def test_late_and_second_frames(params_of, inputs_of):
    """Frames of closed phases, second ones and those of strangers are listed by phase and sender, and change nothing."""
    params = params_of(5, (UPDATE,), dropouts=1)
    inputs = inputs_of(params)
    kept = {}

    def meddle(now, client, answer):
        kept[now, client] = answer
        yield client, answer
        if client == 1:
            yield client, answer
            yield 77, answer
        if client == 4 and now != PHASES[0]:
            yield 2, kept[PHASES[PHASES.index(now) - 1], 2]

    outcome = meddled_round(params, inputs, meddle)
    assert is_sum(outcome, inputs, range(5))
    assert outcome.dropped == outcome.rejected == {}
    expected = [(phase, sender) for phase in PHASES for sender in (1, 77, 2) if (phase, sender) != (PHASES[0], 2)]
    assert [(phase, sender) for phase, sender, _ in outcome.ignored] == expected
    assert {reason.partition(": ")[2] for _, _, reason in outcome.ignored} == {"is a second one", "is not awaited"}


@pytest.mark.case("S27")
@pytest.mark.parametrize("phase", PHASES)
def test_a_late_frame_of_one_that_was_silent(params_of, inputs_of, by_hand, phase):
    """A right frame that comes after its phase was closed is not awaited any more, in any later phase or after the end."""
    params = params_of(5, (UPDATE,), dropouts=1)
    rd = by_hand(params, inputs_of(params))
    rd.run(until=phase)
    late = rd.ask()
    rd.deliver({i: frame for i, frame in late.items() if i != 2})
    rd.close()
    while rd.session.phase:
        rd.deliver([(2, late[2])])
        rd.deliver(rd.ask())
        rd.close()
    with pytest.raises(StateError, match="the round is over"):
        rd.session.receive(2, late[2])
    later = PHASES[PHASES.index(phase) + 1 :]
    assert [(where, sender, "is not awaited" in str(error)) for where, sender, error in rd.refused] == [
        (where, 2, True) for where in later
    ]
    assert is_sum(rd.session.result, rd.inputs, [i for i in range(5) if i != 2 or in_sum(phase)])


@pytest.mark.case("S27")
@pytest.mark.parametrize("phase", PHASES[1:])
def test_a_servers_frame_of_another_session(params_of, inputs_of, by_hand, phase):
    """A client takes no answer of another session, of another phase, or a second time, and is spent by the attempt."""
    params = params_of(4, (UPDATE,), session=bytes(16))
    rd = by_hand(params, inputs_of(params)).run(until=phase)
    other = by_hand(dataclasses.replace(params, session=b"\x01" * 16), rd.inputs).run(until=phase)
    with pytest.raises(ServerFault):
        rd.clients[0].receive(other.answers[0])
    with pytest.raises(StateError):
        rd.clients[0].receive(rd.answers[0])
    rd.clients[1].receive(rd.answers[1])
    with pytest.raises(SecaggError):
        rd.clients[1].receive(rd.answers[1])


@pytest.mark.case("S10", "S19")
def test_a_proposal_is_read_as_it_was_sent(params_of):
    """The wire form that these tests change is the real one."""
    params = params_of(6, (UPDATE,))
    assert proposal(params) == params.encode()
    assert RoundParams.decode(proposal(params, round=3)) == dataclasses.replace(params, round=3)
