import gc
import io
import os
import tempfile
import warnings

import numpy as np
import pytest

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


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    """A write that fails is an error, and earlier bodies are still readable."""
    spool = FileSpool(str(tmp_path))
    spool.put(1, memoryview(b"first"))
    real = spool._file

    class Full:
        def __getattr__(self, name):
            return getattr(real, name)

        def write(self, _body):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(spool, "_file", Full())
    with pytest.raises(OSError, match="No space left"):
        spool.put(2, memoryview(b"second"))
    assert bytes(spool.get(1)) == b"first"
    with pytest.raises(KeyError):
        spool.get(2)


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


class Disk(io.FileIO):
    """A file on a disk with so much room."""

    room = 0

    def write(self, data):
        """As much as there is room for."""
        if self.tell() + len(data) > self.room:
            raise OSError(28, "No space left on device")
        return super().write(data)


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """The disk on which the spools of this test keep their file."""
    raw = Disk(tmp_path / "disk", "w+b")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: io.BufferedRandom(raw))
    yield raw
    raw.room = 10**9


@pytest.mark.parametrize("length", [500, 50_000])
def test_a_body_that_only_partly_fits_is_not_there(disk, length):
    """Buffered or not, it costs nobody else's body, and when there is room again the next one is whole."""
    spool = FileSpool()
    disk.room = 600
    spool.put(1, memoryview(b"a" * 400))
    with pytest.raises(OSError, match="No space left"):
        spool.put(2, memoryview(b"b" * length))
    assert bytes(spool.get(1)) == b"a" * 400
    disk.room = 10**9
    spool.put(3, memoryview(b"c" * 300))
    assert (bytes(spool.get(1)), bytes(spool.get(3))) == (b"a" * 400, b"c" * 300)
    with pytest.raises(KeyError):
        spool.get(2)
    spool.close()


def test_a_vector_that_the_disk_did_not_take_is_not_in_the_sum(new_round, disk):
    """The client's turn is not over then: its frame is taken when there is room again, and counts once."""
    rd = new_round()
    rd.run("mask")
    frames = rd.ask("mask")
    with pytest.raises(OSError, match="No space left"):
        rd.session.receive(1, frames[1])
    disk.room = 10**9
    rd.run()
    rd.check((0, 1, 2, 3))


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
    """A folder that is not there is an error, not a file somewhere else."""
    with pytest.raises(FileNotFoundError):
        FileSpool(str(tmp_path / "nowhere")).put(1, memoryview(b"masked"))


def test_a_body_that_the_disk_lost_is_named(tmp_path):
    """A file that is shorter than what was put there is an error with the client, never a shorter body."""
    spool = FileSpool(str(tmp_path))
    spool.put(7, memoryview(b"masked"))
    os.ftruncate(spool._file.fileno(), 3)
    with pytest.raises(OSError, match="the spool lost the vector of client 7"):
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
