import dataclasses
import itertools
import types

import msgspec
import numpy as np
import pytest

from secagg import ClientPolicy, messages, session
from secagg.crypto.kdf import Label
from secagg.engines.inprocess import InProcessEngine
from secagg.errors import (
    BelowThresholdError,
    DeclinedError,
    DecodeError,
    DisputeError,
    LocalError,
    ParameterError,
    PeerFault,
    PolicyError,
    SpoolError,
)
from secagg.params import PHASES, Block, RoundParams
from secagg.protocols.pairwise import ClientSession, decline, share
from secagg.protocols.pairwise.evidence import check
from secagg.protocols.pairwise.parties import statement
from secagg.session import RoundOutcome, faults, faults_of, run_round
from secagg.spool import MemorySpool
from secagg.testing import client_handler, parties


class Wrapped:
    """An engine that changes the replies of another one, as a transport might."""

    def __init__(self, engine, change):
        self.engine, self.change, self.peers = engine, change, engine.peers

    @property
    def client_seconds(self):
        """What the engine knows."""
        return self.engine.client_seconds

    def exchange(self, phase, frames, *, deadline_s):
        """The changed replies."""
        return self.change(phase, dict(self.engine.exchange(phase, frames, deadline_s=deadline_s))).items()

    def close(self):
        """Nothing to close."""


@pytest.fixture
def start(params_of, inputs_of):
    """`start(drops, tap, **fields)`: an engine with fresh clients, and what `run_round` takes with it."""

    def build(drops=None, tap=None, n=4, **fields):
        p = params_of(n, **fields)
        identities, server, roster = parties(p.cohort, p.suite)
        inputs = inputs_of(p)
        handlers = {
            i: client_handler(ClientSession(p, identities[i], roster, inputs[i]), (drops or {}).get(i))
            for i in p.cohort
        }
        return InProcessEngine(handlers, tap), p, server, roster, inputs

    return build


def total(inputs, survivors, name="update"):
    """The sum of some clients' inputs."""
    return sum(inputs[i][name] for i in survivors)


@pytest.mark.parametrize("suite", ["classical", "hybrid"])
def test_a_round_gives_the_exact_sum(start, suite):
    """Sums, survivors, transcript, and nobody dropped or rejected."""
    engine, p, server, roster, inputs = start(suite=suite)
    out = run_round(engine, p, server, roster)
    assert out.survivors == out.sharers == p.cohort
    assert (out.dropped, out.rejected) == ({}, {})
    for block in p.blocks:
        assert out.sums[block.name].dtype == np.int64
        assert np.array_equal(out.sums[block.name], total(inputs, p.cohort, block.name))


def test_the_outcome_accounts_for_exactly_the_five_phases(start):
    """Seconds and bytes have the five phases and no other key; client bytes are those that the tap saw."""
    seen = dict.fromkeys(PHASES, 0)

    def tap(phase, _sender, frame):
        seen[phase] += len(frame)

    engine, p, server, roster, _ = start(tap=tap)
    out = run_round(engine, p, server, roster)
    assert {f.name for f in dataclasses.fields(RoundOutcome)} == {
        "sums",
        "survivors",
        "dropped",
        "rejected",
        "faults",
        "ignored",
        "seconds",
        "bytes_up",
        "bytes_down",
        "transcript",
        "sharers",
        "signatures",
    }
    assert set(out.seconds) == {"server", "client"}
    for table in (*out.seconds.values(), out.bytes_up, out.bytes_down):
        assert tuple(table) == PHASES
    assert all(seconds > 0 for table in out.seconds.values() for seconds in table.values())
    assert out.bytes_up == seen
    assert out.bytes_down["advertise"] == 4 * len(p.encode())


def test_an_engine_that_knows_no_times_gives_zeros(start):
    """The client's seconds are 0 where the engine does not measure them, and a silent phase has no median."""
    engine, p, server, roster, _ = start()
    engine._seconds = {"mask": {1: 3.0, 2: 1.0, 3: 2.0}}
    engine.exchange = lambda phase, frames, *, deadline_s: [  # noqa: ARG005 - the signature of an engine
        (i, x) for i in frames if (x := engine._handlers[i](phase, frames[i])) is not None
    ]
    assert run_round(engine, p, server, roster).seconds["client"] == dict.fromkeys(PHASES, 0.0) | {"mask": 2.0}


def test_the_signatures_prove_the_survivors(start):
    """Anybody with the roster can check that a quorum signed (T1, U2, U3)."""
    engine, p, server, roster, _ = start({2: "mask"})
    out = run_round(engine, p, server, roster)
    assert len(out.signatures) >= p.quorum(4)
    for client, signature in out.signatures.items():
        signed = statement(out.transcript, out.sharers, out.survivors)
        roster.verify(client, Label.SIGNATURE_STATEMENT, signed, signature)


@pytest.mark.parametrize("phase", PHASES)
def test_a_silent_client_is_listed_with_its_phase(start, phase):
    """Whoever falls silent is in `dropped` with the phase, and in the sum exactly if its vector arrived."""
    engine, p, server, roster, inputs = start({1: phase})
    out = run_round(engine, p, server, roster)
    assert out.dropped == {1: phase}
    assert out.survivors == ((0, 1, 2, 3) if phase in ("confirm", "unmask") else (0, 2, 3))
    assert np.array_equal(out.sums["update"], total(inputs, out.survivors))


def test_s1_one_of_six_never_answers(start):
    """Sum of five."""
    engine, p, server, roster, inputs = start({3: "advertise"}, n=6)
    out = run_round(engine, p, server, roster)
    assert out.survivors == (0, 1, 2, 4, 5)
    assert np.array_equal(out.sums["update"], total(inputs, out.survivors))


def test_s2_one_stops_after_its_keys(start):
    """One advertises and deals no shares: the sum of the others."""
    engine, p, server, roster, inputs = start({3: "share"}, n=6)
    out = run_round(engine, p, server, roster)
    assert out.sharers == out.survivors == (0, 1, 2, 4, 5)
    assert np.array_equal(out.sums["update"], total(inputs, out.survivors))


def test_f15_zero_replies_are_a_named_error(start):
    """Nobody answers: the error says how many were needed, in which phase."""
    engine, p, server, roster, _ = start(dict.fromkeys(range(4), "advertise"))
    with pytest.raises(BelowThresholdError, match="advertise: 0 of at least 3") as caught:
        run_round(engine, p, server, roster)
    assert (caught.value.phase, caught.value.needed, caught.value.alive) == ("advertise", 3, ())


@pytest.mark.parametrize("empty", [b"", None, "error", 500])
@pytest.mark.parametrize("phase", PHASES)
def test_s15_an_error_reply_without_content_is_a_dropout(start, empty, phase):
    """A transport that hands over an empty or broken reply has a silent client there, and the round goes on."""
    engine, p, server, roster, inputs = start()
    broken = Wrapped(engine, lambda at, replies: replies | ({2: empty} if at == phase and 2 in replies else {}))
    out = run_round(broken, p, server, roster)
    assert out.dropped == {2: phase}
    assert 2 in out.rejected
    assert np.array_equal(out.sums["update"], total(inputs, out.survivors))


@pytest.mark.parametrize("stranger", [9, 2**64 - 1])
def test_s27_a_reply_of_one_who_was_not_asked_is_rejected(start, stranger):
    """A frame of somebody outside the phase is recorded and changes nothing."""
    engine, p, server, roster, inputs = start({1: "share"})
    noisy = Wrapped(engine, lambda at, replies: replies | {stranger: b"frame"} | ({1: b"late"} if at == "mask" else {}))
    out = run_round(noisy, p, server, roster)
    assert out.survivors == (0, 2, 3)
    assert {(phase, sender) for phase, sender, _ in out.ignored} == {(p, stranger) for p in PHASES} | {("mask", 1)}
    assert (out.rejected, out.faults) == ({}, ())
    assert np.array_equal(out.sums["update"], total(inputs, out.survivors))


def test_s27_another_sessions_frame_is_rejected(start):
    """A client's frame of another session of the same cohort makes it a dropout, not a summand."""
    first, p, server, roster, _ = start()
    recorded = {}
    keeping = Wrapped(first, lambda at, replies: recorded.update({at: replies.get(2)}) or replies)
    run_round(keeping, p, server, roster)
    for phase in PHASES:
        engine, q, server, roster, inputs = start()
        assert q.session != p.session
        replaying = Wrapped(
            engine, lambda at, replies, phase=phase: replies | ({2: recorded[at]} if at == phase else {})
        )
        out = run_round(replaying, q, server, roster)
        assert out.dropped == {2: phase}
        assert 2 in out.rejected
        assert np.array_equal(out.sums["update"], total(inputs, out.survivors))


def test_a_member_that_cannot_be_reached_is_refused(start):
    """The engine must know the cohort; the error names who is missing."""
    engine, p, server, roster, _ = start()
    engine._handlers.pop(2)
    with pytest.raises(ParameterError, match=r"clients \[2\]"):
        run_round(engine, p, server, roster)


def test_the_deadline_reaches_the_engine(start):
    """Each of the five exchanges has the deadline of the round."""
    engine, p, server, roster, _ = start()
    deadlines = []
    exchange = engine.exchange
    engine.exchange = lambda phase, frames, *, deadline_s: (
        deadlines.append(deadline_s) or exchange(phase, frames, deadline_s=None)
    )
    run_round(engine, p, server, roster, deadline_s=7.0)
    assert deadlines == [7.0] * 5


@pytest.mark.parametrize("length", [0, 1, 2, 255, 256, 257, 32767, 32768, 32769])
def test_s22_every_length_around_a_boundary_is_exact(length):
    """Lengths 0, 1, 2 and around the sizes that packing and masking work in."""
    p = RoundParams(cohort=range(3), blocks=(Block("x", length, 11, 300), Block("y", length, 32, 5)), suite="classical")
    identities, server, roster = parties(p.cohort, p.suite)
    rng = np.random.default_rng(length)
    inputs = {i: {b.name: rng.integers(-b.bound, b.bound + 1, length) for b in p.blocks} for i in p.cohort}
    handlers = {i: client_handler(ClientSession(p, identities[i], roster, inputs[i])) for i in p.cohort}
    out = run_round(InProcessEngine(handlers), p, server, roster)
    for block in p.blocks:
        assert np.array_equal(out.sums[block.name], total(inputs, p.cohort, block.name))


@pytest.mark.parametrize(("bits", "bound"), [(2, 0), (3, 1), (9, 85), (17, 21845), (33, 2**30), (64, 2**61)])
def test_s18_values_at_the_bound_do_not_carry_into_their_neighbours(bits, bound):
    """Alternating extremes in every ring width: the sum is exact entry by entry."""
    p = RoundParams(cohort=range(3), blocks=(Block("x", 65, bits, bound),), suite="classical")
    identities, server, roster = parties(p.cohort, p.suite)
    extreme = np.where(np.arange(65) % 2, bound, -bound)
    handlers = {i: client_handler(ClientSession(p, identities[i], roster, {"x": extreme})) for i in p.cohort}
    out = run_round(InProcessEngine(handlers), p, server, roster)
    assert np.array_equal(out.sums["x"], 3 * extreme)


def test_s14_ids_above_2_to_the_63_work(start):
    """The largest ids go through every exchange."""
    ids = (0, 2**63, 2**63 + 1, 2**64 - 2)
    engine, p, server, roster, inputs = start({2**63: "mask"}, cohort=ids)
    out = run_round(engine, p, server, roster)
    assert out.survivors == (0, 2**63 + 1, 2**64 - 2)
    assert np.array_equal(out.sums["update"], total(inputs, out.survivors))


def test_a_rejected_answer_says_why(start):
    """The reason of a rejection is in the outcome as text, with the client."""
    engine, p, server, roster, _ = start()
    out = run_round(
        Wrapped(engine, lambda at, replies: replies | ({1: replies[1][:-1]} if at == "mask" else {})), p, server, roster
    )
    assert out.dropped == {1: "mask"}
    assert "client 1 sent a mask frame of" in out.rejected[1]


def test_a_duplicate_changes_nothing(start):
    """Every frame comes twice: the second ones are listed, the sum is exact, and nobody is blamed."""
    engine, p, server, roster, inputs = start()
    exchange = engine.exchange
    engine.exchange = lambda phase, frames, *, deadline_s: [
        reply for reply in exchange(phase, frames, deadline_s=deadline_s) for _ in range(2)
    ]
    out = run_round(engine, p, server, roster)
    assert (out.survivors, out.dropped, out.rejected, out.faults) == (p.cohort, {}, {}, ())
    assert [(phase, sender) for phase, sender, _ in out.ignored] == [(phase, i) for phase in PHASES for i in p.cohort]
    assert np.array_equal(out.sums["update"], total(inputs, p.cohort))


def test_a_wrong_frame_is_a_fault_with_its_evidence(start):
    """A client that signs a wrong share is named in `faults`; the evidence is there and does not print."""
    engine, p, server, roster, inputs = start()
    identities, _, _ = parties(p.cohort, p.suite)

    def lie(at, replies):
        if at != "unmask":
            return replies
        message = messages.decode(messages.decode(replies[1], messages.Signed).payload, messages.Unmask)
        wrong = msgspec.structs.replace(message.answers[0], share=bytes(36))
        message = msgspec.structs.replace(message, answers=(wrong, *message.answers[1:]))
        return replies | {1: messages.seal(message, identities[1].sign)}

    out = run_round(Wrapped(engine, lie), p, server, roster)
    assert np.array_equal(out.sums["update"], total(inputs, p.cohort))
    (fault,) = out.faults
    assert fault.parties == (1,)
    assert "wrong share of the self secret of client 0" in fault.message
    assert "proves" in check(fault.evidence, 1, p, roster)
    assert not [value for value in fault.evidence.values() if repr(value)[2:20] in repr(out)]


def wrong_key(p, client, frame):
    """An advertisement that its owner signed, with a key that is none."""
    identities, _, _ = parties(p.cohort, p.suite)
    message = messages.decode(messages.decode(frame, messages.Signed).payload, messages.Advertise)
    return messages.seal(msgspec.structs.replace(message, mask_key=b"short"), identities[client].sign)


@pytest.mark.parametrize("at", PHASES[1:])
def test_what_was_found_before_a_round_failed_is_in_its_error(start, at):
    """A wrong key in exchange 1, then too few answers in any later one: the error has the first finding, with its evidence."""
    engine, p, server, roster, _ = start(n=6, colluders=1, dropouts=2)

    def change(phase, replies):
        if phase == "advertise":
            return replies | {4: wrong_key(p, 4, replies[4])}
        return dict(list(replies.items())[:1]) if phase == at else replies

    with pytest.raises(BelowThresholdError, match=rf"{at}: 1 of at least .*client 4: advertised a mask key") as caught:
        run_round(Wrapped(engine, change), p, server, roster)
    (fault,) = faults_of(caught.value)
    assert fault.parties == (4,)
    assert "proves" in check(fault.evidence, 4, p, roster)


def test_a_corrupt_dealer_does_not_hide_the_others(start, monkeypatch):
    """A round that ends with a provably corrupt dealer names, beside it, the client that was found before; without both the next gives the sum."""
    engine, p, server, roster, inputs = start(n=7, colluders=1, dropouts=2)

    def change(phase, replies):
        return replies | {4: wrong_key(p, 4, replies[4])} if phase == "advertise" else replies

    real = share.shamir.share
    dealt = itertools.count()

    def bent(secrets, threshold, points, entropy):
        shares = real(secrets, threshold, points, entropy)
        if next(dealt) == 2:  # the third dealer, client 2: its shares lie on no polynomial of degree t - 1
            shares[1, 0] ^= 1
        return shares

    monkeypatch.setattr(share.shamir, "share", bent)
    with pytest.raises(PeerFault, match="client 2: dealt shares") as caught:
        run_round(Wrapped(engine, change), p, server, roster)
    found = faults_of(caught.value)
    assert [fault.parties for fault in found] == [(4,), (2,)]
    assert all("proves" in check(fault.evidence, fault.parties[0], p, roster) for fault in found)
    left = tuple(i for i in p.cohort if i not in (2, 4))
    engine, p, server, roster, inputs = start(n=7, cohort=left, colluders=1, dropouts=1)
    out = run_round(engine, p, server, roster)
    assert (out.survivors, out.faults) == (left, ())
    assert np.array_equal(out.sums["update"], total(inputs, left))


def test_the_rounds_opening_is_the_encoded_parameters(start):
    """What each client is told first decodes to the parameters."""
    first = {}
    engine, p, server, roster, _ = start()
    exchange = engine.exchange

    def recording(phase, frames, *, deadline_s):
        first.setdefault(phase, dict(frames))
        return exchange(phase, frames, deadline_s=deadline_s)

    engine.exchange = recording
    run_round(engine, p, server, roster)
    assert {RoundParams.decode(x) for x in first["advertise"].values()} == {p}
    kinds = (messages.AdvertisedFrame, messages.SharedFrame, messages.Signed, messages.Signed)
    for phase, kind in zip(PHASES[1:], kinds, strict=True):
        assert all(messages.decode(x, kind) for x in first[phase].values())


def refusing(frame, identity, *dealers):
    """A mask frame whose header, signed anew, says that its sender refused these dealers."""
    end = 4 + int.from_bytes(frame[:4], "big")
    header = messages.decode(messages.decode(frame[4:end], messages.Signed).payload, messages.MaskHeader)
    front = messages.seal(msgspec.structs.replace(header, refused=dealers), identity.sign)
    front = len(front).to_bytes(4, "big") + front
    return front.ljust(messages.body_start(len(front)), b"\0") + frame[messages.body_start(end) :]


@pytest.mark.parametrize("method", ["put", "get"])
def test_what_was_found_before_a_spool_failed_is_in_its_error(start, method):
    """A wrong key in exchange 1, then a disk that takes no vector or gives none back: the error has the finding, with its evidence."""
    engine, p, server, roster, _ = start(n=10, colluders=1, dropouts=3)
    identities, _, _ = parties(p.cohort, p.suite)

    def change(phase, replies):
        if phase == "advertise":
            return replies | {4: wrong_key(p, 4, replies[4])}
        if phase != "mask":
            return replies
        # Client 0 says that it refused three dealers with c = 1; client 1 refuses one, so that a vector that was added is wanted again.
        refused = {
            client: refusing(replies[client], identities[client], *who) for client, who in ((0, (1, 2, 3)), (1, (2,)))
        }
        return replies | refused

    def fail(*_):
        raise SpoolError("the disk is gone")

    spool = MemorySpool()
    setattr(spool, method, fail)
    with pytest.raises(LocalError, match=r"^the disk is gone$") as caught:
        run_round(Wrapped(engine, change), p, server, roster, spool=spool)
    found = faults_of(caught.value)
    assert [fault.parties for fault in found] == [(4,), (0,)]
    assert all("proves" in check(fault.evidence, fault.parties[0], p, roster) for fault in found)
    assert isinstance(caught.value.__cause__, SpoolError)


def test_a_dispute_is_a_fault_of_both_sides():
    """Of the reasons why clients are missing, a dispute names both parties, the dropped one first; declining and rubbish are no faults."""
    error = DisputeError((1, 3), "dropped the first to end the dispute", {"mask header 3": b"\x5e" * 99})
    (fault,) = faults({1: error, 2: DeclinedError(2, "mask", "min_cohort", "no"), 4: DecodeError("rubbish")})
    assert (fault.parties, fault.message, fault.evidence) == ((1, 3), str(error), error.evidence)
    assert repr(fault) == f"Fault(parties=(1, 3), message={str(error)!r}, evidence=['mask header 3'])"


def test_bytes_down_are_those_of_answers_that_were_looked_up(start):
    """An engine that never sends one client its answer has not sent it: exactly that frame is missing in the account."""
    engine, p, server, roster, _ = start()
    seen = dict.fromkeys(PHASES, 0)
    exchange = engine.exchange

    def recording(phase, frames, *, deadline_s):
        sent = {i: frames[i] for i in frames if (phase, i) != ("confirm", 2)}
        seen[phase] = sum(map(len, sent.values()))
        assert len(sent) == (3 if phase in ("confirm", "unmask") else 4)
        return exchange(phase, sent, deadline_s=deadline_s)

    engine.exchange = recording
    out = run_round(engine, p, server, roster)
    assert out.dropped == {2: "confirm"}
    assert out.bytes_down == seen


def test_a_client_that_declines_is_in_the_outcome_with_its_rule(start):
    """A policy that refuses the round answers with a frame: the sum is that of the others, and it is nobody's fault."""
    engine, p, server, roster, inputs = start()
    identities, _, _ = parties(p.cohort, p.suite)
    policy = ClientPolicy(suites={"classical"}, min_cohort=5)

    def refusing(phase, frame):
        assert phase == "advertise"
        with pytest.raises(PolicyError) as caught:
            ClientSession.join(frame, policy, identities[2], roster, inputs[2])
        return decline(frame, identities[2], caught.value)

    engine._handlers[2] = refusing
    out = run_round(engine, p, server, roster)
    assert (out.survivors, out.dropped, out.faults, out.ignored) == ((0, 1, 3), {2: "advertise"}, (), ())
    assert "client 2 declined in phase advertise (min_cohort)" in out.rejected[2]
    assert np.array_equal(out.sums["update"], total(inputs, out.survivors))


def test_vectors_wait_in_the_spool_that_was_given(start):
    """Each vector goes to it once, in the clients' order, and it is closed in the end."""
    engine, p, server, roster, inputs = start()
    calls = []

    class Recording(MemorySpool):
        def put(self, client, body):
            calls.append(client)
            super().put(client, body)

        def close(self):
            calls.append("closed")
            super().close()

    out = run_round(engine, p, server, roster, spool=Recording())
    assert calls == [0, 1, 2, 3, "closed"]
    assert np.array_equal(out.sums["update"], total(inputs, p.cohort))


def test_the_servers_time_is_that_of_taking_closing_and_answering(start, monkeypatch):
    """By a clock that ticks at each look: one for every two frames that were taken, one for closing, one for every answer made."""
    engine, p, server, roster, _ = start({3: "confirm"})
    monkeypatch.setattr("secagg.session._BATCH_FRAMES", 2)
    clock = itertools.count()
    monkeypatch.setattr("secagg.session.time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    seconds = run_round(engine, p, server, roster).seconds["server"]
    assert seconds == {
        "advertise": 4 + 2 + 1 + 4,  # the opening is made for four, too
        "share": 2 + 1 + 4,
        "mask": 2 + 1 + 4,
        "confirm": 2 + 1 + 3,
        "unmask": 2 + 1,
    }


@pytest.mark.parametrize(
    ("sizes", "batches"),
    [
        ([10] * 70, [32, 32, 6]),
        ([2**20] * 5, [2, 2, 1]),
        ([2**19, 2**19 - 1, 1, 5], [3, 1]),
        ([2**20, 1, 1], [2, 1]),
        ([], []),
    ],
)
def test_small_frames_are_taken_together_and_vectors_by_two(sizes, batches):
    """At most 32 frames, and two where they come to a mebibyte: what waits does not grow with the cohort."""
    assert [len(batch) for batch in session._batches((0, bytes(size)) for size in sizes)] == batches
    assert [frame for batch in session._batches(enumerate(map(bytes, sizes))) for frame in batch] == list(
        enumerate(map(bytes, sizes))
    )


def test_a_spool_that_fails_ends_the_round_with_its_reason(start):
    """It is our own disk and nobody's fault: no client is made a dropout of."""
    engine, p, server, roster, _ = start()

    class Full(MemorySpool):
        def put(self, client, body):  # noqa: ARG002 - the signature of a spool
            raise LocalError(f"the vector of client {client} could not be kept: no space")

    with pytest.raises(LocalError, match="the vector of client 0 could not be kept"):
        run_round(engine, p, server, roster, spool=Full())
