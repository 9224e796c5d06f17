import os

import pytest

from privacy.errors import LedgerError
from privacy.ledger.storage import locked, open_locked, read_all, replace_file, write_at


def test_file_is_written_and_read_in_full(tmp_path, monkeypatch):
    """Writes that the system cuts short are continued."""
    descriptor = open_locked(tmp_path / "x")
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:3], offset))
    write_at(descriptor, b"0123456789", 0)
    write_at(descriptor, b"abc", 8)
    assert read_all(descriptor, tmp_path / "x") == b"01234567abc"
    os.close(descriptor)


def test_writes_are_flushed_before_they_return(tmp_path, monkeypatch):
    """The file after each write, and the folder after creation and replacement, go to the disk."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    folder = tmp_path.stat().st_ino
    descriptor = open_locked(tmp_path / "x")
    assert synced == [folder]
    write_at(descriptor, b"x", 0)
    assert synced == [folder, os.fstat(descriptor).st_ino]
    os.close(descriptor)
    replace_file(tmp_path / "y", b"new")
    assert synced[2:] == [(tmp_path / "y").stat().st_ino, folder]


def test_lock_is_exclusive_for_writers_and_shared_for_readers(tmp_path):
    """A writer shuts out everybody; readers shut out writers only; closing lets the next one in."""
    path = tmp_path / "x"
    descriptor = open_locked(path)
    with pytest.raises(LedgerError, match="in use"):
        open_locked(path)
    with pytest.raises(LedgerError, match="in use"), locked(path):
        pass
    os.close(descriptor)
    with locked(path), locked(path), pytest.raises(LedgerError, match="in use"):
        open_locked(path)
    os.close(open_locked(path))


def test_replacement_is_whole(tmp_path, monkeypatch):
    """A replacement that fails leaves the old bytes."""
    path = tmp_path / "x"
    replace_file(path, b"old")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
