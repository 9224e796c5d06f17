import collections
import copy
import dataclasses
import itertools
import pickle  # to show that a session cannot be
import subprocess
import sys

import numpy as np
import pytest

from secagg import Block, messages
from secagg.crypto import merkle
from secagg.crypto.kdf import Label
from secagg.crypto.sealing import SERVER_ID, SUITES
from secagg.errors import DecodeError, GuardError, PeerFault, ServerFault, StateError
from secagg.guard import FileGuard, MemoryGuard
from secagg.messages import RootShare, SelfShare
from secagg.params import PHASES
from secagg.protocols.pairwise.parties import statement

UPDATE = Block("update", 7, 20, 1000)


def is_sum(result, inputs, survivors):
    """Whether a round gave exactly the sum over these clients."""
    expected = sum(inputs[i]["update"] for i in survivors)
    return result.survivors == tuple(survivors) and np.array_equal(result.sums["update"], expected)


def say(rd, kind, **fields):
    """A frame that the server of a round signs."""
    transcript = rd.clients[min(rd.clients)].transcript
    return messages.seal(kind(binding=transcript, sender=SERVER_ID, **fields), rd.server.sign)


def signed_again(rd, frame, kind, sender, **changes):
    """A frame whose own sender changed some fields and signed the result."""
    message = messages.decode(messages.decode(frame, messages.Signed).payload, kind)
    fields = {name: getattr(message, name) for name in message.__struct_fields__} | changes
    return messages.seal(kind(**fields), rd.identities[sender].sign)


def shares_of(victim, frames):
    """Which kinds of the victim's shares are in unmasking frames."""
    found = set()
    for frame in frames:
        answers = messages.decode(messages.decode(frame, messages.Signed).payload, messages.Unmask).answers
        found |= {type(answer) for answer in answers if answer.owner == victim}
    return found


@pytest.mark.case("S9")
@pytest.mark.parametrize("seeing", [s for k in range(4) for s in itertools.combinations((1, 2, 3), k)])
def test_a_server_that_wants_both_kinds_of_share(params_of, inputs_of, by_hand, seeing):
    """Client 4 is alive for some and dropped for the others, client 0 signs whatever the server likes: no honest two give both kinds."""
    params = params_of(5, (UPDATE,), colluders=1, dropouts=1)
    rd = by_hand(params, inputs_of(params)).run(until="mask")
    rd.ask()
    alive, dropped = (0, 1, 2, 3, 4), (0, 1, 2, 3)
    shown = {i: alive if i in {*seeing, 4} else dropped for i in range(1, 5)}
    signatures = collections.defaultdict(dict)
    for client, members in shown.items():
        frame = rd.clients[client].receive(say(rd, messages.Survivors, members=members))
        signatures[members][client] = messages.decode(frame, messages.Confirm).signature
    for members in (alive, dropped):
        signed = statement(rd.clients[1].transcript, alive, members)
        signatures[members][0] = rd.identities[0].sign(Label.SIGNATURE_STATEMENT, signed)
    given = []
    for client, members in shown.items():
        quorum = say(rd, messages.Quorum, signatures=tuple(sorted(signatures[members].items())))
        if len(signatures[members]) >= params.quorum(5):
            given.append(rd.clients[client].receive(quorum))
        else:
            with pytest.raises(ServerFault, match=r"the quorum has \d signatures, 4 are needed"):
                rd.clients[client].receive(quorum)
        other = dropped if members == alive else alive
        for again in (quorum, say(rd, messages.Quorum, signatures=tuple(sorted(signatures[other].items())))):
            with pytest.raises(StateError):
                rd.clients[client].receive(again)
    assert len(shares_of(4, given)) <= 1
    assert shares_of(4, given) == ({SelfShare} if len(seeing) >= 2 else {RootShare} if not seeing else set())


@pytest.mark.case("S9")
@pytest.mark.parametrize(
    ("members", "message"),
    [
        ((0, 1, 2, 3, 4, 4), "names a client twice"),
        ((0, 1, 2, 4, 3), "is not sorted"),
        ((1, 2, 3, 4), "leaves out client 0"),
        ((0, 1, 2), "fewer than the agreed minimum 4"),
        ((0, 1, 2, 3, 9), "who were not there before"),
    ],
)
def test_a_list_that_cannot_be(params_of, inputs_of, by_hand, members, message):
    """A list of survivors that names somebody twice, or cannot be, is refused before a statement is signed, once and for all."""
    params = params_of(5, (UPDATE,), colluders=1, dropouts=1)
    rd = by_hand(params, inputs_of(params)).run(until="confirm")
    with pytest.raises(ServerFault, match=message):
        rd.clients[0].receive(say(rd, messages.Survivors, members=members))
    with pytest.raises(StateError):
        rd.clients[0].receive(rd.answers[0])


@pytest.mark.case("S9")
def test_an_answer_with_both_kinds(params_of, inputs_of, by_hand):
    """A client that hands out both kinds of one share is refused with its name; the sum does without it."""
    params = params_of(6, (UPDATE,), colluders=1, dropouts=1)
    rd = by_hand(params, inputs_of(params)).run(until="mask")
    rd.deliver({i: frame for i, frame in rd.ask().items() if i != 4})
    rd.close()
    rd.run(until="unmask")
    frames = rd.ask()
    right = messages.decode(messages.decode(frames[1], messages.Signed).payload, messages.Unmask).answers
    both = tuple(sorted([*right, SelfShare(4, right[-1].share)], key=lambda answer: answer.owner))
    rd.deliver(frames | {1: signed_again(rd, frames[1], messages.Unmask, 1, answers=both)})
    rd.close()
    [(_, sender, error)] = rd.refused
    assert (sender, type(error)) == (1, PeerFault)
    assert is_sum(rd.session.result, rd.inputs, [0, 1, 2, 3, 5])


@pytest.mark.case("S26")
@pytest.mark.parametrize("phase", PHASES)
def test_a_client_restarts_in_a_round(params_of, inputs_of, by_hand, tmp_path, phase):
    """A client that comes up again after any step cannot take the round's steps a second time: it is a dropout, and nothing else."""
    params = params_of(5, (UPDATE,), dropouts=1)
    inputs, path = inputs_of(params), tmp_path / "steps"
    guard = FileGuard(path)
    rd = by_hand(params, inputs, {2: {"guard": guard}})
    rd.run(until=phase)
    rd.deliver(rd.ask())  # the phase's frame has left, and the process dies
    guard.close()
    guard = FileGuard(path)
    rd.clients[2] = rd.client(2, guard=guard)
    with pytest.raises(GuardError, match=r"phase advertise of round 0, session [0-9a-f]{32}, was answered before"):
        rd.clients[2].start()
    rd.close()
    if rd.session.phase:
        rd.run()
    assert all(isinstance(error, StateError) for error in rd.errors.values())
    later = PHASES[PHASES.index(phase) + 1 :]
    assert rd.session.result.dropped == ({2: later[0]} if later else {})
    survivors = [i for i in range(5) if i != 2 or phase in PHASES[2:]]
    assert is_sum(rd.session.result, inputs, survivors)


@pytest.mark.case("S26")
@pytest.mark.parametrize("phase", PHASES)
def test_a_second_session_in_one_process(params_of, inputs_of, by_hand, phase):
    """The same where the process lives on and only the session is made anew: a guard in memory is enough."""
    params, guard = params_of(4, (UPDATE,)), MemoryGuard()
    rd = by_hand(params, inputs_of(params), {2: {"guard": guard}}).run(until=phase)
    rd.ask()
    with pytest.raises(GuardError, match="phase advertise of round 0"):
        rd.client(2, guard=guard).start()


@pytest.mark.case("S26")
@pytest.mark.parametrize("phase", PHASES)
def test_another_process_takes_over(params_of, inputs_of, by_hand, tmp_path, phase):
    """What one process recorded binds the next one: it is refused every step up to that one, of this round only."""
    params = params_of(4, (UPDATE,), session=bytes(16))
    path = tmp_path / "steps"
    with FileGuard(path) as guard:
        rd = by_hand(params, inputs_of(params), {2: {"guard": guard}})
        rd.run(until=phase)
        rd.ask()
    refused = subprocess.run(
        [sys.executable, "-c", SECOND_PROCESS, str(path), phase], capture_output=True, text=True, check=True
    )
    assert refused.stdout.split() == [*PHASES[: PHASES.index(phase) + 1]]


SECOND_PROCESS = """
import sys
from secagg.errors import GuardError
from secagg.guard import FileGuard
from secagg.params import PHASES

with FileGuard(sys.argv[1]) as guard:
    for phase in PHASES[: PHASES.index(sys.argv[2]) + 1]:
        try:
            guard.record(bytes(16), 0, phase, bytes(32), b"")
        except GuardError:
            print(phase)
    guard.record(bytes(16), 1, "advertise", bytes(32), b"")
"""


@pytest.mark.case("S26")
def test_two_processes_at_once(params_of, inputs_of, by_hand, tmp_path):
    """While one session acts for a client, a second one on the same store is refused before it can draw a secret."""
    params = params_of(4, (UPDATE,))
    path = tmp_path / "steps"
    with FileGuard(path) as guard:
        rd = by_hand(params, inputs_of(params), {2: {"guard": guard}})
        rd.run(until="mask")
        with pytest.raises(GuardError, match="another process acts for this client"):
            FileGuard(path)
        assert is_sum(rd.run(), rd.inputs, range(4))


@pytest.mark.case("S26")
def test_a_retry_after_the_vector_left(params_of, inputs_of, by_hand, tmp_path):
    """A new session for the same application context sends no second vector, after a restart either, but under a new reservation."""
    params = params_of(4, (UPDATE,), app_context=b"\x05" * 32, round=3)
    again = params_of(4, (UPDATE,), app_context=b"\x05" * 32, round=3)
    inputs, path = inputs_of(params), tmp_path / "steps"
    with FileGuard(path) as guard:
        by_hand(params, inputs, {2: {"guard": guard}}).run(until="confirm")
    for reservation, refused in ((None, True), (b"second", False), (b"second", True)):
        with FileGuard(path) as guard:
            rd = by_hand(again, inputs, {2: {"guard": guard, "on_release": lambda: reservation}})  # noqa: B023 - used at once
            result = rd.run()
            assert isinstance(rd.errors.get(2), GuardError) == refused
            assert is_sum(result, inputs, [0, 1, 3] if refused else range(4))
        again = params_of(4, (UPDATE,), app_context=b"\x05" * 32, round=3)


@pytest.mark.case("S26")
@pytest.mark.parametrize("phase", PHASES)
def test_a_session_is_never_saved(params_of, inputs_of, by_hand, phase):
    """There is no checkpoint of a session that a restart could load: it is not copied and not pickled, at any step."""
    params = params_of(4, (UPDATE,))
    rd = by_hand(params, inputs_of(params)).run(until=phase)
    for session in (rd.clients[0], rd.session):
        for save in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="never pickled or copied"):
                save(session)


@pytest.mark.case("S28")
@pytest.mark.parametrize("phase", PHASES)
def test_a_copied_frame(params_of, inputs_of, by_hand, phase):
    """Another's frame under one's own name is refused in every exchange, and one's own right frame behind it still counts."""
    params = params_of(5, (UPDATE,), colluders=1, dropouts=1)
    rd = by_hand(params, inputs_of(params)).run(until=phase)
    frames = rd.ask()
    rd.deliver([(1, frames[0]), *frames.items()])
    rd.close()
    rd.run()
    [(_, sender, error)] = rd.refused
    assert sender == 1
    assert isinstance(error, DecodeError)
    assert is_sum(rd.session.result, rd.inputs, range(5))


@pytest.mark.case("S28")
@pytest.mark.parametrize("suite", ["classical", "hybrid"])
def test_a_copied_box_for_the_server(params_of, inputs_of, by_hand, suite):
    """Another's sealed key in one's own signed advertisement does not open: the copier is named, and the others have their sum."""
    params = params_of(5, (UPDATE,), colluders=1, dropouts=1, suite=suite)
    rd = by_hand(params, inputs_of(params))
    frames = rd.ask()
    theirs = messages.decode(messages.decode(frames[0], messages.Signed).payload, messages.Advertise)
    rd.deliver(frames | {1: signed_again(rd, frames[1], messages.Advertise, 1, mac_box=theirs.mac_box)})
    rd.close()
    rd.run()
    [(_, sender, error)] = rd.refused
    assert (sender, type(error), error.party) == (1, PeerFault, 1)
    assert rd.session.result.dropped == {1: "advertise"}
    assert is_sum(rd.session.result, rd.inputs, [0, 2, 3, 4])


@pytest.mark.case("S28")
@pytest.mark.parametrize("suite", ["classical", "hybrid"])
@pytest.mark.parametrize("field", ["share_box", "pair_box"])
def test_a_copied_box_for_a_neighbour(params_of, inputs_of, by_hand, suite, field):
    """Another dealer's ciphertext in one's own signed part does not open: its holder refuses, and the copier is out of the sum."""
    params = params_of(5, (UPDATE,), colluders=1, dropouts=1, suite=suite)
    rd = by_hand(params, inputs_of(params)).run(until="share")
    frames = rd.ask()
    copier, victim = 4, 2  # both choose the pair seed of their edge to client 0
    leaves = {i: list(messages.decode(frames[i], messages.ShareFrame).leaves) for i in (copier, victim)}

    def part(dealer, holder):
        overhead, leaf = SUITES[suite].box_overhead, leaves[dealer][holder]
        return messages.Part.decode(leaf, overhead, pair=len(leaf) == messages.Part.length(overhead, pair=True))

    copied = 0
    for holder in (0, 1, 3):
        theirs, mine = part(victim, holder), part(copier, holder)
        if getattr(theirs, field) is not None and getattr(mine, field) is not None:
            leaves[copier][holder] = dataclasses.replace(mine, **{field: getattr(theirs, field)}).encode()
            copied += 1
    assert copied == (3 if field == "share_box" else 1)
    header = messages.ShareHeader(
        binding=rd.clients[0].transcript, sender=copier, root=merkle.Tree(leaves[copier]).root
    )
    sealed = messages.seal(header, rd.identities[copier].sign)
    rd.deliver(frames | {copier: messages.encode(messages.ShareFrame(sealed, tuple(leaves[copier])))})
    rd.close()
    rd.run()
    assert rd.session.result.dropped == {copier: "mask"}
    assert rd.session.rejected[copier].parties[0] == copier
    assert is_sum(rd.session.result, rd.inputs, [0, 1, 2, 3])
