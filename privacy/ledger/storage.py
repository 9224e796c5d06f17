"""Files that must survive a crash and be written by one process at a time, and lines of any file that is offered.

Everything that changes a file goes through `os.open`, `os.write`, `os.pwrite`, `os.fsync` and `os.replace`, so that a
test can stop the machine before and after each of them.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from privacy.errors import LedgerError
from privacy.ledger.chain import MAX_LINE, ChainError

_CHUNK = 1 << 20  # bytes read at once
_SMALL = 1 << 22  # bytes; no signed head is nearly as large


def open_locked(path: Path) -> int:
    """Open a file for reading and writing, making it if it is not there, and lock it for this descriptor.

    A symbolic link is refused: a ledger with two names would have two heads.

    Raises:
        LedgerError: it is locked elsewhere, is no plain file, or cannot be opened.

    Guarantees:
        A new file's name is on the disk when this returns.
    """
    try:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        else:
            _sync_folder(path.parent)
    except (OSError, ValueError) as error:
        raise LedgerError(f"{path}: cannot be opened: {_why(error)}") from error
    try:
        _require_plain(descriptor, path)
        _lock(descriptor, path, fcntl.LOCK_EX)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a plain file for reading.

    Raises:
        LedgerError: it is a folder, a pipe or a device, or cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for its writer
    except (OSError, ValueError) as error:
        raise LedgerError(f"{path}: cannot be read: {_why(error)}") from error
    try:
        _require_plain(descriptor, path)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Open a file for reading while nobody writes it.

    Raises:
        LedgerError: somebody is writing it, it is no plain file, or it cannot be opened.
    """
    with opened(path) as descriptor:
        _lock(descriptor, path, fcntl.LOCK_SH)
        yield descriptor


class Lines:
    """The whole lines of an open file, without their newlines, one at a time.

    Attributes:
        end: Bytes in the lines so far, newlines included.
        torn: Once they are all read: the bytes after the last newline.

    Raises:
        ChainError: a line is longer than any entry.
        LedgerError: the file cannot be read.

    Guarantees:
        At most two chunks and one line are in memory, whatever the file is.
    """

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self._path = path
        self.end = 0
        self.torn = b""

    def __iter__(self) -> Iterator[bytes]:
        number, rest, offset = 0, b"", 0
        while part := _read(self._descriptor, self._path, _CHUNK, offset):
            offset += len(part)
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                number += 1
                self._require_short(line, number)
                self.end += len(line) + 1
                yield line
            self._require_short(rest, number + 1)
        self.torn = rest

    def _require_short(self, line: bytes, number: int) -> None:
        if len(line) > MAX_LINE:
            raise ChainError(f"{self._path}, line {number}: more than {MAX_LINE} bytes, which no entry has")


def read_small(path: Path) -> bytes | None:
    """Return the bytes of a small plain file, or None where there is none.

    Raises:
        LedgerError: it is no plain file, is too large, or cannot be read.
    """
    if not os.path.lexists(path):
        return None
    with opened(path) as descriptor:
        data = bytearray()
        while part := _read(descriptor, path, _CHUNK, len(data)):
            data += part
            if len(data) > _SMALL:
                raise LedgerError(f"{path}: cannot be read: it has more than {_SMALL} bytes")
    return bytes(data)


def write_at(descriptor: int, data: bytes, offset: int) -> None:
    """Write, and return when it is on the disk.

    Raises:
        OSError: it is not, or not all of it.
    """
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
    os.fsync(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file by another: whoever opens it, also after a crash, finds all of the old or all of the new bytes.

    Raises:
        OSError: it could not be written; the old file stands.
    """
    partial = path.with_name(f".{path.name}.partial")
    # Never through a link that somebody left there.
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(partial, path)  # noqa: PTH105 - see the module's text
    _sync_folder(path.parent)


def _read(descriptor: int, path: Path, length: int, offset: int) -> bytes:
    try:
        return os.pread(descriptor, length, offset)
    except OSError as error:
        raise LedgerError(f"{path}: cannot be read: {error.strerror}") from error


def _require_plain(descriptor: int, path: Path) -> None:
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISDIR(mode):
        raise LedgerError(f"{path}: cannot be read: {os.strerror(errno.EISDIR)}")
    if not stat.S_ISREG(mode):
        raise LedgerError(f"{path}: cannot be read: not a plain file")


def _why(error: OSError | ValueError) -> str:
    if not isinstance(error, OSError):  # a zero byte in the name
        return str(error)
    return "it is a symbolic link" if error.errno == errno.ELOOP else str(error.strerror)


def _lock(descriptor: int, path: Path, kind: int) -> None:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        raise LedgerError(f"{path}: in use: somebody else has this ledger open") from error


def _sync_folder(folder: Path) -> None:
    """Make a file's name as durable as its bytes."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
