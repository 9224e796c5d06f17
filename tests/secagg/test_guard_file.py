import fcntl
import json
import os
import stat
import subprocess
import sys
import threading

import pytest

from secagg.errors import GuardError, LocalError, StateError
from secagg.guard import FileGuard
from secagg.params import PHASES

SESSION, OTHER = bytes(16), b"\1" * 16
CONTEXT = bytes(32)


def record(guard, phase, *, session=SESSION, number=0, reservation=b""):
    """One step."""
    guard.record(session, number, phase, CONTEXT, reservation)


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

    def broken(*_, **__):
        raise OSError(5, "Input/output error")

    store = FileGuard(tmp_path / "guard.jsonl")
    monkeypatch.setattr(os, "fsync", broken)
    monkeypatch.setattr(os, "ftruncate", broken)
    with pytest.raises(GuardError, match="Input/output error; nothing may leave"):
        record(store, "advertise")
    monkeypatch.undo()
    with pytest.raises(GuardError, match="the guard is closed"):
        record(store, "advertise")


def test_every_step_can_be_read_again(tmp_path):
    """The largest round and a long reservation are known to the next guard on the file."""
    path = tmp_path / "guard.jsonl"
    with FileGuard(path) as store:
        for phase in PHASES:
            record(store, phase, number=2**64 - 1, reservation=bytes(5000))
    with FileGuard(path) as store:
        with pytest.raises(GuardError, match=f"round {2**64 - 1}"):
            record(store, PHASES[-1], number=2**64 - 1)
        with pytest.raises(GuardError, match="has left before"):
            record(store, "mask", reservation=bytes(5000))


PROCESS = """
import math, sys
from secagg.errors import SecaggError
from secagg.guard import FileGuard, RoundLimit

try:
    with FileGuard(sys.argv[1]) as guard:
        limits = [RoundLimit("max_rounds", 3, math.inf)]
        guard.record(bytes(16), int(sys.argv[2]), "advertise", bytes(32), b"", limits=limits)
        print("begun", flush=True)
        sys.stdin.read()
except SecaggError as error:
    print(type(error).__name__)
"""


def test_processes_on_one_file_begin_no_more_rounds_than_allowed(tmp_path):
    """Some at once and some one after the other, each in a round of its own: as many as the limit begin one."""
    path, said = tmp_path / "guard.jsonl", []
    for turn in range(5):
        crowd = [
            subprocess.Popen(
                [sys.executable, "-c", PROCESS, str(path), str(2 * turn + place)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for place in range(2)
        ]
        said.append(sorted(process.stdout.readline().strip() for process in crowd))
        for process in crowd:
            process.communicate()
    assert said[:3] == [["GuardError", "begun"]] * 3
    assert "PolicyError" in said[3]
    assert said[4] in (["GuardError", "PolicyError"], ["PolicyError", "PolicyError"])
    assert path.read_bytes().count(b"\n") == 3


FORK = """
import os, sys
from secagg.errors import GuardError
from secagg.guard import FileGuard

with FileGuard(sys.argv[1]) as guard:
    guard.record(bytes(16), 0, "advertise", bytes(32), b"")
    if os.fork() == 0:
        try:
            guard.record(bytes(16), 0, "share", bytes(32), b"")
        except GuardError as error:
            print(error)
            sys.exit(0)
    os.wait()
    guard.record(bytes(16), 0, "share", bytes(32), b"")
"""


def test_a_forked_process_records_nothing(tmp_path):
    """It inherits the file and with it the lock, but would not know what its parent records: it is refused, and the parent goes on."""
    path = tmp_path / "guard.jsonl"
    done = subprocess.run([sys.executable, "-c", FORK, str(path)], capture_output=True, text=True, check=True)
    assert "guard.jsonl: was opened by process" in done.stdout
    assert [json.loads(line)["phase"] for line in path.read_text().splitlines()] == ["advertise", "share"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666, 0o644, 0o700, 0o4600])
def test_a_file_that_others_could_use_is_refused(tmp_path, mode):
    """A mode wider than 0600 is named and left as it is; somebody else could have cut the record, and the owner must decide."""
    path = tmp_path / "guard.jsonl"
    FileGuard(path).close()
    path.chmod(mode)
    with pytest.raises(GuardError, match=rf"guard\.jsonl: mode {mode:04o} is wider than 0600"):
        FileGuard(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    path.chmod(0o600)
    FileGuard(path).close()


def test_a_file_of_another_user_is_refused(tmp_path, monkeypatch):
    """Whoever owns it can change what this client remembers."""
    path = tmp_path / "guard.jsonl"
    FileGuard(path).close()
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(GuardError, match=r"guard\.jsonl: belongs to user"):
        FileGuard(path)


def test_a_folder_where_everybody_can_replace_the_file_is_refused(tmp_path):
    """No file is made there; under the sticky bit only the owner can replace it, so that is a place for it."""
    path = tmp_path / "open" / "guard.jsonl"
    path.parent.mkdir()
    path.parent.chmod(0o777)
    with pytest.raises(GuardError, match=r"guard\.jsonl: mode 0777 of its folder"):
        FileGuard(path)
    assert not path.exists()
    path.parent.chmod(0o1777)
    FileGuard(path).close()


def test_what_is_not_a_file_is_refused(tmp_path):
    """A folder, a link, and a pipe, at whose other end nobody may be: refused at once."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "file").touch(0o600)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    caught = []

    def attempt():
        for name in ("pipe", "", "link"):
            try:
                FileGuard(tmp_path / name)
            except GuardError as error:
                caught.append(str(error).rpartition(": ")[2])

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(30)
    assert caught == ["not a regular file", "Is a directory", "a link, not a file"]


@pytest.mark.parametrize("call", ["fsync", "ftruncate", "fstat", "fdopen"])
def test_a_disk_that_fails_while_the_file_is_opened_is_named(tmp_path, monkeypatch, call):
    """Each step on the way may fail; the error has the file and the reason, and its lock is let go."""
    path = tmp_path / "guard.jsonl"
    path.touch(0o600)
    path.write_bytes(b"torn")

    def broken(*_, **__):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as failing:
        failing.setattr(os, call, broken)
        with pytest.raises(GuardError, match=r"guard\.jsonl: Input/output error"):
            FileGuard(path)
    FileGuard(path).close()


def test_a_lock_that_the_system_cannot_give_has_its_reason(tmp_path, monkeypatch):
    """A file system without locks is not another process."""

    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(GuardError, match="No locks available"):
        FileGuard(tmp_path / "guard.jsonl")


def replaced(path):
    """Another file takes its name, with the same content."""
    copy = path.with_name("copy")
    copy.touch(0o600)
    copy.write_bytes(path.read_bytes())
    copy.replace(path)


def linked(path):
    """Its name becomes a link to it."""
    path.rename(path.with_name("moved"))
    path.symlink_to(path.with_name("moved"))


def folder_moved(path):
    """Another folder takes its folder's name."""
    path.parent.rename(path.parent.with_name("moved"))
    path.parent.mkdir()


def appended(path):
    """Somebody who does not ask for the lock writes a step."""
    path.write_bytes(path.read_bytes() * 2)


def cut(path):
    """Somebody empties it, as a rotation of logs does."""
    os.truncate(path, 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (os.unlink, "No such file"),
        (lambda path: path.rename(path.with_name("old")), "No such file"),
        (replaced, "another file than the one that was opened"),
        (linked, "another file than the one that was opened"),
        (folder_moved, "No such file"),
        (appended, "somebody else wrote to it"),
        (cut, "somebody else wrote to it"),
    ],
)
def test_a_file_that_lost_its_name_or_was_changed_records_nothing(tmp_path, change, words):
    """The lock is on the file and not on its name, where the next process looks: no step is taken, and the guard is closed."""
    path = tmp_path / "folder" / "guard.jsonl"
    path.parent.mkdir()
    with FileGuard(path) as store:
        record(store, "advertise")
        change(path)
        before = path.read_bytes() if path.exists() else None
        with pytest.raises(GuardError, match=rf"guard\.jsonl: .*{words}.*nothing may leave|{words}; nothing may leave"):
            record(store, "share")
        with pytest.raises(GuardError, match="the guard is closed"):
            record(store, "share")
        assert (path.read_bytes() if path.exists() else None) == before
        assert store.rounds(0) == 1


def test_a_replaced_file_stops_a_session_before_its_frame(tmp_path, new_round):
    """The client falls silent in the middle of a round, and the sum is that of the others."""
    rd = new_round()
    path = tmp_path / "guard.jsonl"
    with FileGuard(path) as store:
        rd.clients[1] = rd.client(1, guard=store)
        rd.run("mask")
        replaced(path)
        rd.run()
    rd.check((0, 2, 3))
    assert isinstance(rd.errors[1], LocalError)
    assert "another file" in str(rd.errors[1])


def test_a_process_may_change_its_folder(tmp_path, monkeypatch):
    """A relative path is that of the moment in which the guard was made."""
    monkeypatch.chdir(tmp_path)
    with FileGuard("guard.jsonl") as store:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        record(store, "advertise")
    assert (tmp_path / "guard.jsonl").read_bytes().count(b"\n") == 1
