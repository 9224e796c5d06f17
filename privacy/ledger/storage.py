"""Files that must survive a crash and be written by one process at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from privacy.errors import LedgerError


def open_locked(path: Path) -> int:
    """Open a file for reading and writing, making it if it is not there, and lock it for this descriptor.

    Raises:
        LedgerError: it is locked elsewhere, or cannot be opened.

    Guarantees:
        A new file's name is on the disk when this returns.
    """
    try:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            descriptor = os.open(path, os.O_RDWR)
        else:
            _sync_folder(path.parent)
    except OSError as error:
        raise LedgerError(f"{path}: cannot be opened: {error.strerror}") from error
    try:
        _lock(descriptor, path, fcntl.LOCK_EX)
    except LedgerError:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Open a file for reading while nobody writes it.

    Raises:
        LedgerError: somebody is writing it, or it cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise LedgerError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        _lock(descriptor, path, fcntl.LOCK_SH)
        yield descriptor
    finally:
        os.close(descriptor)


def read_all(descriptor: int, path: Path) -> bytes:
    """Return the whole file.

    Raises:
        LedgerError: it is a folder, or cannot be read.
    """
    data = bytearray()
    try:
        while part := os.pread(descriptor, 1 << 24, len(data)):
            data += part
    except OSError as error:
        raise LedgerError(f"{path}: cannot be read: {error.strerror}") from error
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
    with partial.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
    _sync_folder(path.parent)


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
