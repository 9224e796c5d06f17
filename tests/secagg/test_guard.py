import math
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg.errors import GuardError, ParameterError, PolicyError, StateError
from secagg.guard import FileGuard, MemoryGuard, RoundLimit, check_limits
from secagg.params import PHASES

SESSION, OTHER = bytes(16), b"\1" * 16
CONTEXT, ELSEWHERE = bytes(32), b"\2" * 32


def record(guard, phase, *, session=SESSION, number=0, context=CONTEXT, reservation=b""):
    """One step."""
    guard.record(session, number, phase, context, reservation)


@pytest.fixture(params=["memory", "file"])
def guard(request, tmp_path):
    """Either kind of guard, with a clock that stands still."""
    if request.param == "memory":
        yield MemoryGuard(clock=lambda: 100.0)
        return
    with FileGuard(tmp_path / "guard.jsonl", clock=lambda: 100.0) as store:
        yield store


def test_each_phase_once_and_never_back(guard):
    """A step that is on record is refused, and so is an earlier one of its round; other rounds and sessions are their own."""
    for phase in PHASES[:2]:
        record(guard, phase)
    for phase in PHASES[:2]:
        with pytest.raises(GuardError, match=f"phase {phase} of round 0.*was answered before"):
            record(guard, phase)
    record(guard, PHASES[0], number=1)
    record(guard, PHASES[0], session=OTHER)
    record(guard, PHASES[4])
    with pytest.raises(GuardError):
        record(guard, PHASES[3])


def test_one_vector_under_one_context(guard):
    """A second masked vector under an application context is refused in any session and round, and allowed under a new reservation."""
    record(guard, "mask")
    for place in ({"session": OTHER}, {"number": 1}):
        with pytest.raises(GuardError, match=r"application context 0000.*new reservation"):
            record(guard, "mask", **place)
    record(guard, "mask", session=OTHER, reservation=b"again")
    with pytest.raises(GuardError):
        record(guard, "mask", number=2, reservation=b"again")
    record(guard, "mask", number=3, context=ELSEWHERE)


def test_rounds_are_counted(guard):
    """What a policy counts is rounds that were begun."""
    record(guard, "advertise")
    record(guard, "share")
    record(guard, "advertise", number=1)
    assert (guard.rounds(100.0), guard.rounds(100.5), guard.now()) == (2, 0, 100.0)


@pytest.mark.parametrize("phase", PHASES)
def test_a_restarted_client_never_answers_a_phase_twice(tmp_path, new_round, phase):
    """Killed after any frame left: a new session on the same file is refused at its first step, and the client is a dropout."""
    rd = new_round()
    path = tmp_path / "guard.jsonl"
    with FileGuard(path) as store:
        rd.clients[1] = rd.client(1, guard=store)
        rd.run(phase)
        rd.ask(phase)
    with FileGuard(path) as store, pytest.raises(GuardError, match="phase advertise of round 0"):
        rd.client(1, guard=store).start()


def test_a_retry_without_a_client_is_refused_unless_it_was_reserved(tmp_path, new_round):
    """A server that aborts after exchange 3 and asks for the same input in another session gets no vector; a new reservation is the way."""
    first = new_round()
    with FileGuard(tmp_path / "guard.jsonl") as store:
        first.clients[1] = first.client(1, guard=store)
        first.run("confirm")
        again = new_round()
        again.clients[1] = again.client(1, guard=store)
        again.run()
        again.check((0, 2, 3))
        assert isinstance(again.errors[1], GuardError)
        reserved = new_round()
        reserved.clients[1] = reserved.client(1, guard=store, on_release=lambda: b"reservation 2")
        reserved.run()
        reserved.check((0, 1, 2, 3))


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(PHASES),
            st.integers(0, 1),
            st.sampled_from([SESSION, OTHER]),
            st.sampled_from([CONTEXT, ELSEWHERE]),
            st.sampled_from([b"", b"r"]),
        ),
        max_size=15,
    ),
    reopen=st.sets(st.integers(0, 14)),
)
def test_a_file_remembers_what_memory_does(tmp_path_factory, steps, reopen):
    """Over any steps, with restarts anywhere, the two kinds of guard allow and refuse the same."""
    path = tmp_path_factory.mktemp("guard") / "guard.jsonl"
    memory, store = MemoryGuard(), FileGuard(path)

    def attempt(guard, step):
        phase, number, session, context, reservation = step
        try:
            record(guard, phase, number=number, session=session, context=context, reservation=reservation)
        except GuardError as error:
            return str(error)
        return None

    for place, step in enumerate(steps):
        if place in reopen:
            store.close()
            store = FileGuard(path)
        assert attempt(memory, step) == attempt(store, step)
        assert memory.rounds(0) == store.rounds(0)
    store.close()


@pytest.mark.parametrize("phase", PHASES)
def test_even_a_client_that_kept_its_secrets_never_repeats_a_frame(tmp_path, new_round, phase):
    """Against a restored memory image: a second session that reaches the same phase is stopped by the file, and is spent."""
    path = tmp_path / "guard.jsonl"
    first = new_round(session=SESSION)
    with FileGuard(path) as store:
        first.clients[1] = first.client(1, guard=store)
        first.run(phase)
        assert 1 in first.ask(phase)
    second = new_round(session=SESSION)
    second.run(phase)
    with FileGuard(path) as store:
        second.clients[1]._guard = store
        assert 1 not in second.ask(phase)
    assert isinstance(second.errors[1], GuardError)
    assert f"phase {phase} of round 0" in str(second.errors[1])
    with pytest.raises(StateError):
        second.clients[1].receive(b"x")


def test_the_context_on_record_is_that_of_the_round(new_round):
    """A session records its own application context: under another one a vector leaves without a reservation, under the same not."""
    guard = MemoryGuard()
    for context, expected in ((CONTEXT, (0, 1, 2, 3)), (ELSEWHERE, (0, 1, 2, 3)), (CONTEXT, (0, 2, 3))):
        rd = new_round(app_context=context)
        rd.clients[1] = rd.client(1, guard=guard)
        rd.run()
        rd.check(expected)
    assert guard.rounds(0) == 3


NO_STEPS = [
    *(("phase", value) for value in ("", "Advertise", "asvertise", "masked", b"mask", 2, None, ["mask"])),
    *(("session", value) for value in (b"", bytes(15), bytes(17), bytearray(16), "0" * 32, None)),
    *(("app_context", value) for value in (b"", bytes(16), bytes(33), bytearray(32), "0" * 64, None)),
    *(("round", value) for value in (-1, 2**64, 1.0, True, "0", None)),
    *(("reservation", value) for value in ("again", None, 0, bytearray(b"r"), ["r"])),
]


@pytest.mark.parametrize(("name", "value"), NO_STEPS)
def test_what_is_no_step_is_refused_by_name(guard, name, value):
    """Nothing is recorded that could not be read again: the error is the library's own and names what is wrong."""
    step = {"session": SESSION, "round": 0, "phase": "mask", "app_context": CONTEXT, "reservation": b""} | {name: value}
    with pytest.raises(ParameterError, match=name):
        guard.record(*step.values())
    record(guard, "advertise")
    record(guard, "mask")
    assert guard.rounds(0) == 1


def test_a_reservation_of_another_kind_stops_the_session(new_round):
    """What a hook gives in place of bytes is an error with its kind and not with its content; no vector leaves, and the others go on."""
    rd = new_round()
    rd.clients[1] = rd.client(1, on_release=lambda: "reservation 4711")
    rd.run()
    rd.check((0, 2, 3))
    assert isinstance(rd.errors[1], ParameterError)
    assert "must be bytes, not str" in str(rd.errors[1])
    assert "4711" not in str(rd.errors[1])


# Limits on rounds.


def begin(guard, number, *limits):
    """The first step of a round under some limits."""
    guard.record(SESSION, number, PHASES[0], CONTEXT, b"", limits=limits)


def test_a_round_beyond_a_limit_is_refused_when_it_would_be_counted(guard):
    """The last allowed round is recorded, the next one is not and does not count; only the first step of a round is limited."""
    two, rate = RoundLimit("max_rounds", 2, math.inf), RoundLimit("max_rate", 2, 60.0)
    begin(guard, 0, two, rate)
    begin(guard, 1, two, rate)
    check_limits(guard, [RoundLimit("max_rounds", 3, math.inf)])
    for limits, words in (
        ((two,), "policy max_rounds: 2 rounds were begun, 2 are allowed"),
        ((rate,), "policy max_rate: 2 rounds were begun within 60.0 s, 2 are allowed"),
        ((RoundLimit("max_rounds", 9, math.inf), rate), "policy max_rate"),
    ):
        with pytest.raises(PolicyError, match=words) as caught:
            begin(guard, 2, *limits)
        assert caught.value.rule == limits[-1].rule
        with pytest.raises(PolicyError, match=words):
            check_limits(guard, limits)
    assert guard.rounds(0) == 2
    for phase in PHASES[1:]:
        guard.record(SESSION, 1, phase, CONTEXT, b"", limits=(two, rate))
    with pytest.raises(GuardError, match="answered before"):  # a step twice is worse than a round too many
        begin(guard, 1, two)
    begin(guard, 2)
    assert guard.rounds(0) == 3


def test_a_rate_is_over_the_last_stretch_of_time(tmp_path):
    """What began just as long ago counts, what is older does not, and a restart changes nothing."""
    now, path, rate = [1000.0], tmp_path / "guard.jsonl", RoundLimit("max_rate", 1, 60.0)

    def attempt(number):
        with FileGuard(path, clock=lambda: now[0]) as store:
            begin(store, number, rate)

    attempt(0)
    now[0] += 60
    with pytest.raises(PolicyError, match="max_rate"):
        attempt(1)
    now[0] += 0.5
    attempt(1)
    now[0] -= 30  # a clock that was set back lets no more rounds through
    with pytest.raises(PolicyError, match="max_rate"):
        attempt(2)


def hurried(kind):
    """A guard whose threads meet between their check and their record, if nothing keeps them apart."""

    class Hurried(kind):
        """Waits for company before it writes."""

        meeting = threading.Barrier(2)

        def _keep(self, step):
            try:
                self.meeting.wait(0.2)
            except threading.BrokenBarrierError:
                self.meeting.reset()
            super()._keep(step)

    return Hurried


@pytest.mark.parametrize("same", [True, False], ids=["one step", "two rounds"])
@pytest.mark.parametrize("kind", [MemoryGuard, FileGuard])
def test_threads_do_not_come_between_check_and_record(tmp_path, kind, same):
    """Two threads take one step, or begin the last round that is allowed: one does, and the other one is told."""
    arguments = () if kind is MemoryGuard else (tmp_path / "guard.jsonl",)
    store, results = hurried(kind)(*arguments), []

    def attempt(number):
        try:
            begin(store, number, RoundLimit("max_rounds", 2 if same else 1, math.inf))
        except (GuardError, PolicyError) as error:
            results.append(type(error))
        else:
            results.append(None)

    threads = [threading.Thread(target=attempt, args=(0 if same else number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(results) == {None, GuardError if same else PolicyError}
    assert store.rounds(0) == 1
