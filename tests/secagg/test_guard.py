import json
import os
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg.errors import GuardError, StateError
from secagg.guard import FileGuard, MemoryGuard
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


def test_a_restart_remembers(tmp_path):
    """A new guard on the same file knows every step and every release."""
    path = tmp_path / "guard.jsonl"
    with FileGuard(path) as first:
        for phase in PHASES[:3]:
            record(first, phase)
    with FileGuard(path) as second:
        for phase in PHASES[:3]:
            with pytest.raises(GuardError):
                record(second, phase)
        with pytest.raises(GuardError, match="has left before"):
            record(second, "mask", session=OTHER)
        record(second, "confirm")
        assert second.rounds(0) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_one_process_at_a_time(tmp_path):
    """While a guard is open another one is refused, and a closed one records nothing."""
    path = tmp_path / "guard.jsonl"
    with FileGuard(path) as first:
        with pytest.raises(GuardError, match="another process acts for this client"):
            FileGuard(path)
        record(first, "advertise")
    with pytest.raises(GuardError, match="closed"):
        record(first, "share")
    FileGuard(path).close()


def test_a_torn_last_line_is_the_write_of_a_frame_that_never_left(tmp_path):
    """It is cut off, and the step can be taken; any other line that is no step stops the client with its number."""
    path = tmp_path / "guard.jsonl"
    with FileGuard(path) as first:
        record(first, "advertise")
        record(first, "share")
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with FileGuard(path) as second:
        record(second, "share")
    assert path.read_bytes().count(b"\n") == 2
    good = whole.splitlines()[0].decode()
    for bad in (
        "{}",
        "rubbish",
        "",
        good.replace("advertise", "asvertise"),
        good.replace('"round":0', '"round":-1'),
        good[:-1] + ',"more":1}',
    ):
        path.write_text(f"{good}\n{bad}\n{good}\n")
        with pytest.raises(GuardError, match=r"guard\.jsonl, line 2: not a step"):
            FileGuard(path)


def test_a_link_or_a_missing_folder_is_refused(tmp_path):
    """The file is what it seems, and its folder exists."""
    (tmp_path / "real").touch()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for path in (tmp_path / "link", tmp_path / "nowhere" / "guard.jsonl"):
        with pytest.raises(GuardError, match=path.name):
            FileGuard(path)


def test_the_record_has_no_secret(tmp_path, new_round):
    """What a whole round writes is five steps, and nothing that the client held."""
    path = tmp_path / "guard.jsonl"
    rd = new_round()
    with FileGuard(path) as store:
        rd.clients[1] = rd.client(1, guard=store)
        rd.run()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["phase"] for line in lines] == list(PHASES)
    assert not [secret for secret in rd.secrets if secret.hex() in path.read_text()]


@pytest.mark.parametrize("phase", PHASES)
def test_nothing_leaves_before_it_is_on_the_disk(tmp_path, monkeypatch, new_round, phase):
    """If the disk does not take the step, no frame leaves and the session is spent."""
    rd = new_round()
    store = FileGuard(tmp_path / "guard.jsonl")
    rd.clients[1] = rd.client(1, guard=store)
    rd.run(phase)

    def full(_file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert 1 not in rd.ask(phase)
    assert isinstance(rd.errors[1], GuardError)
    assert "nothing may leave" in str(rd.errors[1])
    with pytest.raises(StateError):
        rd.clients[1].receive(b"x")
    monkeypatch.undo()
    store.close()


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


def test_a_line_torn_anywhere_is_cut_off(tmp_path):
    """From its first byte to all but its end: the lines before it count, and its step can be taken once."""
    path = tmp_path / "guard.jsonl"
    with FileGuard(path, clock=lambda: 100.0) as store:
        record(store, "advertise")
        before = path.read_bytes()
        record(store, "share")
    whole = path.read_bytes()
    for kept in (1, 2, (len(whole) - len(before)) // 2, len(whole) - len(before) - 1):
        path.write_bytes(whole[: len(before) + kept])
        with FileGuard(path, clock=lambda: 100.0) as store:
            assert path.read_bytes() == before
            with pytest.raises(GuardError):
                record(store, "advertise")
            record(store, "share")
            with pytest.raises(GuardError):
                record(store, "share")
        assert path.read_bytes() == whole


def test_the_step_is_on_the_disk_before_the_frame_is_there(tmp_path, monkeypatch, new_round):
    """At the moment of each fsync the file has the step, and the client has not answered yet."""
    path, order, real = tmp_path / "guard.jsonl", [], os.fsync
    rd = new_round()
    with FileGuard(path) as store:

        def watched(file):
            real(file)
            order.append(path.read_bytes().count(b"\n"))

        monkeypatch.setattr(os, "fsync", watched)
        rd.clients[1] = rd.client(1, guard=store)
        for place, phase in enumerate(PHASES, start=1):
            assert order == list(range(1, place))
            rd.ask(phase)
            assert order == list(range(1, place + 1))
            rd.step()


def test_a_line_that_failed_leaves_nothing_behind(tmp_path, monkeypatch):
    """A disk that does not take a long line: a shorter one after it is the file's last, and the file stays readable."""
    path, times = tmp_path / "guard.jsonl", iter((100.123456, 101.5))
    store = FileGuard(path, clock=lambda: next(times))
    real = os.fsync

    def full(_file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(GuardError, match="nothing may leave"):
        record(store, "advertise")
    monkeypatch.setattr(os, "fsync", real)
    record(store, "mask", session=OTHER)
    store.close()
    with FileGuard(path) as again:
        record(again, "advertise")
    assert path.read_bytes().count(b"\n") == 2


def test_the_context_on_record_is_that_of_the_round(new_round):
    """A session records its own application context: under another one a vector leaves without a reservation, under the same not."""
    guard = MemoryGuard()
    for context, expected in ((CONTEXT, (0, 1, 2, 3)), (ELSEWHERE, (0, 1, 2, 3)), (CONTEXT, (0, 2, 3))):
        rd = new_round(app_context=context)
        rd.clients[1] = rd.client(1, guard=guard)
        rd.run()
        rd.check(expected)
    assert guard.rounds(0) == 3


def test_a_reservation_belongs_to_a_release(tmp_path):
    """The file has it beside the vector that it was made for, in hex, and beside no other step."""
    path = tmp_path / "guard.jsonl"
    with FileGuard(path) as store:
        for phase in PHASES:
            record(store, phase, reservation=b"\xab")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {line["phase"]: line["reservation"] for line in lines} == dict.fromkeys(PHASES, "") | {"mask": "ab"}


def test_a_new_file_is_durable_before_its_first_step(tmp_path, monkeypatch):
    """The folder's entry is written, too: a file that a crash takes away would forget everything."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file)))
    with FileGuard(tmp_path / "guard.jsonl"):
        assert [(entry.st_dev, entry.st_ino) for entry in synced] == [((found := tmp_path.stat()).st_dev, found.st_ino)]


def test_half_a_line_is_no_record(tmp_path, monkeypatch):
    """A disk that takes a part of a line: the step is refused and not remembered, and can be taken when there is room again."""
    path, real = tmp_path / "guard.jsonl", os.pwrite
    with FileGuard(path) as store:
        monkeypatch.setattr(os, "pwrite", lambda file, data, at: real(file, data[:20], at))
        with pytest.raises(GuardError, match=r"guard\.jsonl: the disk is full"):
            record(store, "advertise")
        assert store.rounds(0) == 0
        monkeypatch.undo()
        record(store, "advertise")
        assert store.rounds(0) == 1
    assert path.read_bytes().count(b"\n") == 1
    with FileGuard(path) as again, pytest.raises(GuardError, match="answered before"):
        record(again, "advertise")


def test_a_guard_that_cannot_take_a_line_back_is_closed(tmp_path, monkeypatch):
    """Neither written nor undone: what is in the file is not known any more, so nothing is recorded through this guard."""

    def broken(*_):
        raise OSError(5, "Input/output error")

    store = FileGuard(tmp_path / "guard.jsonl")
    monkeypatch.setattr(os, "fsync", broken)
    monkeypatch.setattr(os, "ftruncate", broken)
    with pytest.raises(GuardError, match="Input/output error; nothing may leave"):
        record(store, "advertise")
    monkeypatch.undo()
    with pytest.raises(GuardError, match="the guard is closed"):
        record(store, "advertise")
