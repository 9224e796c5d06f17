import os

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
