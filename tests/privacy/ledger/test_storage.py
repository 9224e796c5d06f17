import os

import pytest

from privacy.errors import LedgerError
from privacy.ledger.chain import MAX_LINE, ChainError
from privacy.ledger.storage import Lines, locked, open_locked, opened, read_small, replace_file, write_at


def test_file_is_written_in_full(tmp_path, monkeypatch):
    """Writes that the system cuts short are continued, in place and in a replacement."""
    descriptor = open_locked(tmp_path / "x")
    pwrite, write = os.pwrite, os.write
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:3], offset))
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:3]))
    write_at(descriptor, b"0123456789", 0)
    write_at(descriptor, b"abc", 8)
    replace_file(tmp_path / "y", b"0123456789")
    monkeypatch.undo()
    assert (tmp_path / "x").read_bytes() == b"01234567abc"
    assert (tmp_path / "y").read_bytes() == b"0123456789"
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


def test_links_are_not_written_through(tmp_path):
    """Neither a ledger nor the file that will replace a head is written through a link that somebody left."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / "x").symlink_to(victim)
    (tmp_path / ".y.partial").symlink_to(victim)
    with pytest.raises(LedgerError, match="x: cannot be opened: it is a symbolic link"):
        open_locked(tmp_path / "x")
    with pytest.raises(OSError, match="symbolic"):
        replace_file(tmp_path / "y", b"new")
    assert victim.read_bytes() == b"mine"


def test_what_is_no_plain_file_is_refused(tmp_path):
    """A pipe would wait for ever, a device has no end, a folder no bytes, and no file has a zero byte in its name."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path):
        with pytest.raises(LedgerError, match=str(path)):
            open_locked(path)
    for path in (pipe, tmp_path, tmp_path / "missing", tmp_path / "a\0b"):
        with pytest.raises(LedgerError, match="cannot be read"), opened(path):
            pass
    with pytest.raises(LedgerError, match="cannot be opened"):
        open_locked(tmp_path / "a\0b")


def lines_of(path):
    """The lines, what is torn, and where the last whole line ends."""
    with opened(path) as descriptor:
        lines = Lines(descriptor, path)
        return list(lines), lines.torn, lines.end


@pytest.mark.parametrize("data", [b"", b"\n", b"a", b"a\nbc\n", b"a\n\nbc", b"x" * 70_000 + b"\n" + b"y" * 70_000])
def test_lines_are_those_of_the_bytes(tmp_path, monkeypatch, data):
    """However the reads fall, lines and the bytes after the last newline are what they are."""
    path = tmp_path / "x"
    path.write_bytes(data)
    *whole, torn = data.split(b"\n")
    for chunk in (1 << 20, 3, 1):
        if len(data) > 1000 and chunk < 1000:
            continue
        real = os.pread
        monkeypatch.setattr(os, "pread", lambda fd, size, at, real=real, chunk=chunk: real(fd, min(size, chunk), at))
        assert lines_of(path) == (whole, torn, len(data) - len(torn))
        monkeypatch.undo()


@pytest.mark.parametrize("start", [b"", b"a\nb\n"])
def test_endless_line_is_refused_at_once(tmp_path, start):
    """A terabyte without a newline is refused after two megabytes, with its line."""
    path = tmp_path / "x"
    with path.open("wb") as stream:
        stream.write(start)
        stream.truncate(1 << 40)
    with pytest.raises(ChainError, match=rf"x, line {start.count(10) + 1}: more than {MAX_LINE} bytes"):
        lines_of(path)


def test_small_file_or_none(tmp_path):
    """A small file is read whole; none is None."""
    assert read_small(tmp_path / "x") is None
    (tmp_path / "x").write_bytes(b"abc")
    assert read_small(tmp_path / "x") == b"abc"
