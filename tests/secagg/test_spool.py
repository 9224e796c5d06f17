import gc
import os
import resource
import warnings

import numpy as np
import pytest

from secagg.errors import LocalError
from secagg.protocols.pairwise import ServerSession
from secagg.spool import FileSpool, MemorySpool

SPOOLS = pytest.mark.parametrize("make", [MemorySpool, FileSpool])


@SPOOLS
def test_what_was_put_comes_back(make):
    """Bodies of any length, the empty one too, in any order and as often as asked."""
    spool = make()
    bodies = {9: b"", 2**64 - 2: os.urandom(100_000), 0: b"x"}
    for client, body in bodies.items():
        spool.put(client, memoryview(body))
    for client in (0, 2**64 - 2, 9, 0):
        assert bytes(spool.get(client)) == bodies[client]
    with pytest.raises(KeyError):
        spool.get(5)
    spool.close()


def test_the_file_has_no_name(tmp_path):
    """Nothing is left in the folder, not even while the spool is in use, and closing lets the file go."""
    spool = FileSpool(str(tmp_path))
    spool.put(1, memoryview(b"masked"))
    assert not list(tmp_path.iterdir())
    file = spool._file
    spool.close()
    assert file.closed


def test_a_dropped_spool_closes_its_file(tmp_path):
    """A session that ends with an error never comes to close its spool: the file goes with it."""
    spool = FileSpool(str(tmp_path))
    spool.put(1, memoryview(b"masked"))
    file = spool._file
    del spool
    assert file.closed


@SPOOLS
def test_a_dispute_is_subtracted_again_from_either_spool(new_round, make):
    """The vector of whoever loses a dispute is read back and taken out of the sum, and the spool is closed then."""
    rd = new_round()
    spool = make()
    rd.session = ServerSession(rd.params, rd.server, rd.roster, spool=spool)
    rd.redeal(1, 0, lambda part: type(part)(part.share_box, bytes(32), *(getattr(part, n) for n in part.__slots__[2:])))
    rd.run()
    rd.check((0, 2, 3))
    assert np.array_equal(rd.session.result.sums["count"], rd.expected((0, 2, 3), "count"))
    assert not getattr(spool, "_bodies", None)
    assert getattr(spool, "_file", None) is None


@SPOOLS
def test_the_last_body_of_a_client_counts(make):
    """A second body of a client takes the place of its first, shorter or longer, and touches nobody else's."""
    spool = make()
    spool.put(1, memoryview(b"first"))
    spool.put(2, memoryview(b"other"))
    for body in (b"a longer second", b"", b"third"):
        spool.put(1, memoryview(body))
        assert bytes(spool.get(1)) == body
        assert bytes(spool.get(2)) == b"other"
    spool.close()


def test_a_server_that_is_dropped_midway_closes_its_file(new_round):
    """A round that is given up while vectors arrive leaves no open file, and no warning about one."""
    rd = new_round()
    rd.run("mask")
    for client, frame in rd.ask("mask").items():
        rd.session.receive(client, frame)
    file = rd.session._spool._file
    assert not file.closed
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rd.session = ServerSession(rd.params, rd.server, rd.roster)
        gc.collect()
    assert file.closed
    assert not [w for w in caught if w.category is ResourceWarning]


class Disk:
    """A disk with so much room, that takes and gives so much at a time."""

    def __init__(self, room):
        self.room, self.part = room, 10**9
        self._write, self._read = os.pwrite, os.preadv

    def write(self, file, data, place):
        """As much as there is room for, and an error where there is none."""
        part = bytes(data[: min(self.part, self.room - place)])
        if not part:
            raise OSError(28, "No space left on device")
        return self._write(file, part, place)

    def read(self, file, rooms, place):
        """A part of what was asked for."""
        return self._read(file, [rooms[0][: self.part]], place)


@pytest.fixture
def disk(monkeypatch):
    """The disk on which the spools of this test keep their file, full at first."""
    made = Disk(0)
    monkeypatch.setattr(os, "pwrite", made.write)
    monkeypatch.setattr(os, "preadv", made.read)
    return made


@pytest.mark.parametrize("room", [400, 401, 600, 50_399])
def test_a_body_that_only_partly_fits_is_not_there(disk, tmp_path, room):
    """It is an error with folder, client and reason, costs nobody else's body, leaves nothing on the disk, and can be put again."""
    spool = FileSpool(tmp_path)
    disk.room = room
    spool.put(1, memoryview(b"a" * 400))
    with pytest.raises(LocalError, match=rf"{tmp_path}: the vector of client 2 could not be kept: No space left"):
        spool.put(2, memoryview(b"b" * 50_000))
    assert os.fstat(spool._file.fileno()).st_size == 400
    assert bytes(spool.get(1)) == b"a" * 400
    with pytest.raises(KeyError):
        spool.get(2)
    disk.room = 10**9
    spool.put(3, memoryview(b"c" * 300))
    spool.put(2, memoryview(b"b" * 50_000))
    assert [bytes(spool.get(i)) for i in (1, 3, 2)] == [b"a" * 400, b"c" * 300, b"b" * 50_000]
    spool.close()


@pytest.mark.parametrize("part", [1, 7, 999, 1000, 1001])
def test_a_disk_that_takes_and_gives_parts(disk, part):
    """A long body goes there and comes back in as many parts as the system makes of it."""
    spool = FileSpool()
    disk.room, disk.part = 10**9, part
    bodies = {1: os.urandom(1000), 2: os.urandom(500)}
    for client, body in bodies.items():
        spool.put(client, memoryview(body))
    assert {client: bytes(spool.get(client)) for client in bodies} == bodies
    spool.close()


def test_a_real_short_write_is_undone():
    """The system's own limit on a file's size: it takes a part, refuses the rest, and nothing of it stays."""
    spool = FileSpool()
    spool.put(1, memoryview(b"a" * 400))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
    try:
        with pytest.raises(LocalError, match="the vector of client 2 could not be kept: File too large"):
            spool.put(2, memoryview(b"b" * 500))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.fstat(spool._file.fileno()).st_size == 400
    spool.put(2, memoryview(b"b" * 500))
    assert [bytes(spool.get(i)) for i in (1, 2)] == [b"a" * 400, b"b" * 500]
    spool.close()


def test_a_system_that_takes_nothing_is_a_full_disk(monkeypatch):
    """A write of no bytes is the end of the attempt, not another one for ever."""
    spool = FileSpool()
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    with pytest.raises(LocalError, match=r"spool in the system's folder for temporary files: .*No space left"):
        spool.put(1, memoryview(b"masked"))
    spool.close()


def test_a_disk_that_fails_to_read_is_an_error_with_the_client(monkeypatch):
    """What cannot be read back is named, with the reason; the body is still there when the disk comes back."""
    spool = FileSpool()
    spool.put(7, memoryview(b"masked"))

    def broken(*_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as failing:
        failing.setattr(os, "preadv", broken)
        with pytest.raises(LocalError, match="the vector of client 7 cannot be read back: Input/output error"):
            spool.get(7)
    assert bytes(spool.get(7)) == b"masked"
    spool.close()


def test_a_file_that_does_not_close_takes_nothing_with_it(monkeypatch):
    """Some systems report a full disk only then; the bodies are not wanted any more, and the sum is."""
    spool = FileSpool()
    spool.put(1, memoryview(b"masked"))
    real, file = spool._file, spool._file.fileno()

    class Stuck:
        def fileno(self):
            return file

        def close(self):
            real.close()
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(spool, "_file", Stuck())
    spool.close()
    assert real.closed
    assert spool._file is None


@pytest.mark.parametrize("room", [0, 20])
def test_a_vector_that_the_disk_did_not_take_is_not_in_the_sum(new_round, disk, room):
    """The client's turn is not over then: the same frame is taken when there is room again, and counts once."""
    rd = new_round()
    rd.run("mask")
    frames = rd.ask("mask")
    disk.room = room
    for _ in range(2):
        with pytest.raises(LocalError, match=r"spool in .*: the vector of client 1 could not be kept: No space left"):
            rd.session.receive(1, frames[1])
    assert not rd.session.rejected
    disk.room = 10**9
    rd.run()
    rd.check((0, 1, 2, 3))
    assert not rd.session.result.rejected
    assert not rd.refused


def test_a_vector_that_never_found_room_is_a_dropout(new_round, disk):
    """The phase closes without it, and the sum is that of the others, exactly."""
    rd = new_round()
    rd.run("mask")
    frames = rd.ask("mask")
    disk.room = 10**9
    for client in (0, 2, 3):
        rd.session.receive(client, frames[client])
    disk.room = 0
    with pytest.raises(LocalError):
        rd.session.receive(1, frames[1])
    rd.silence(1, "mask")
    rd.run()
    rd.check((0, 2, 3))


def test_either_spool_gives_the_same_sum_after_a_dispute(new_round):
    """The same inputs and the same lie: what is subtracted again is the same from memory and from a file."""
    sums = []
    for make in (MemorySpool, FileSpool):
        rd = new_round(session=bytes(16))
        rd.session = ServerSession(rd.params, rd.server, rd.roster, spool=make())
        rd.redeal(3, 1, _without_pair_box)
        sums.append(rd.run())
    memory, file = sums
    assert memory.survivors == file.survivors != (0, 1, 2, 3)
    for name, total in memory.sums.items():
        assert np.array_equal(total, file.sums[name])


def _without_pair_box(part):
    """A part whose first commitment fits nothing."""
    return type(part)(part.share_box, bytes(32), *(getattr(part, name) for name in part.__slots__[2:]))


@SPOOLS
def test_a_closed_spool_has_forgotten_everything(make):
    """What was put before is gone, and not found as other bytes later."""
    spool = make()
    spool.put(1, memoryview(b"masked"))
    spool.close()
    spool.put(2, memoryview(b"other"))
    with pytest.raises(KeyError):
        spool.get(1)
    assert bytes(spool.get(2)) == b"other"
    spool.close()


def test_the_file_is_in_the_folder_that_was_given(tmp_path):
    """A folder that is not there is an error with its name, not a file somewhere else, and can be made before the next try."""
    spool = FileSpool(tmp_path / "nowhere")
    with pytest.raises(LocalError, match="nowhere: the vector of client 1 could not be kept: No such file"):
        spool.put(1, memoryview(b"masked"))
    (tmp_path / "nowhere").mkdir()
    spool.put(1, memoryview(b"masked"))
    assert bytes(spool.get(1)) == b"masked"
    spool.close()


def test_a_body_that_the_disk_lost_is_named(tmp_path):
    """A file that is shorter than what was put there is an error with the client, never a shorter body."""
    spool = FileSpool(str(tmp_path))
    spool.put(7, memoryview(b"masked"))
    os.ftruncate(spool._file.fileno(), 3)
    with pytest.raises(LocalError, match="the vector of client 7 was lost: 3 of 6 bytes are left"):
        spool.get(7)
    spool.close()


def test_a_server_puts_vectors_where_it_is_told(new_round):
    """Each vector that was taken is in the spool that the session was given, as it stands in its frame."""
    rd = new_round()
    spool = MemorySpool()
    rd.session = ServerSession(rd.params, rd.server, rd.roster, spool=spool)
    rd.run("mask")
    for client, frame in rd.ask("mask").items():
        rd.session.receive(client, frame)
        assert frame.endswith(bytes(spool.get(client)))
