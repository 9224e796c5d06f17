"""Where masked vectors wait until it is settled whose are in the sum."""

import contextlib
import errno
import os
import tempfile
import weakref
from typing import IO, Protocol

from secagg.errors import SpoolError


class Spool(Protocol):
    """Keeps one body a client; masked, so that it has no secret that its frame did not have."""

    def put(self, client: int, body: memoryview) -> None:
        """Keeps a body, in place of an earlier one of this client.

        Raises:
            SpoolError: It could not be kept. All is as it was, and a second try may succeed.
        """
        ...

    def get(self, client: int) -> memoryview:
        """The body that was kept for a client.

        Raises:
            SpoolError: It cannot be read back.
        """
        ...

    def close(self) -> None:
        """Lets go of all of them."""
        ...


class MemorySpool:
    """Keeps what it is given where it lies: for rounds whose frames are in this process anyway."""

    def __init__(self) -> None:
        self._bodies: dict[int, memoryview] = {}

    def put(self, client: int, body: memoryview) -> None:
        """Keeps a reference; the frame below must not change."""
        self._bodies[client] = body

    def get(self, client: int) -> memoryview:
        """The body."""
        return self._bodies[client]

    def close(self) -> None:
        """Forgets all of them."""
        self._bodies.clear()


class FileSpool:
    """Keeps bodies in an unnamed temporary file, so that memory does not grow with the cohort.

    Args:
        folder: Where the file is made. None: the system's folder for temporary files.

    Guarantees:
        A body that the disk did not take whole costs no other body, leaves nothing behind, and can be put again.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._places: dict[int, tuple[int, int]] = {}
        self._end = 0

    def put(self, client: int, body: memoryview) -> None:
        """Writes a body at the end of the file.

        Raises:
            SpoolError: The disk is full, or the file cannot be made or written; has the folder, the client and the reason.
        """
        try:
            if self._file is None:
                # Without a buffer, which would keep a body that was refused and write it later, over another one.
                self._file = tempfile.TemporaryFile(buffering=0, dir=self._folder)  # noqa: SIM115 - closed by close()
                weakref.finalize(
                    self, _close, self._file
                )  # a session that fails or is dropped does not come to close()
            _write(self._file.fileno(), body, self._end)
        except OSError as error:
            if self._file is not None:
                with contextlib.suppress(OSError):  # what is left of it is written over
                    os.ftruncate(self._file.fileno(), self._end)
            raise self._error(f"the vector of client {client} could not be kept: {error.strerror}") from None
        self._places[client] = (self._end, len(body))
        self._end += len(body)

    def get(self, client: int) -> memoryview:
        """Reads a body back.

        Raises:
            SpoolError: The file cannot be read, or has lost a part of the body; has the folder, the client and the reason.
        """
        start, length = self._places[client]
        body = memoryview(bytearray(length))
        try:
            done = _read(self._file.fileno(), body, start) if self._file else 0
        except OSError as error:
            raise self._error(f"the vector of client {client} cannot be read back: {error.strerror}") from None
        if done != length:
            raise self._error(f"the vector of client {client} was lost: {done} of {length} bytes are left")
        return body.toreadonly()

    def close(self) -> None:
        """Deletes the file."""
        if self._file is not None:
            _close(self._file)
            self._file = None
        self._places.clear()
        self._end = 0

    def _error(self, message: str) -> SpoolError:
        folder = "the system's folder for temporary files" if self._folder is None else os.fspath(self._folder)
        return SpoolError(f"spool in {folder}: {message}")


def _write(file: int, body: memoryview, place: int) -> None:
    """All of a body at a place; a system takes it in parts when it is long (2 GiB on Linux) or the disk nearly full."""
    done = 0
    while done < len(body):
        written = os.pwrite(file, body[done:], place + done)
        if written == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done += written


def _read(file: int, room: memoryview, place: int) -> int:
    """How many bytes from a place on were there to fill the room."""
    done = 0
    while done < len(room) and (got := os.preadv(file, [room[done:]], place + done)):
        done += got
    return done


def _close(file: IO[bytes]) -> None:
    with contextlib.suppress(OSError):  # what could fail is to keep what nobody wants any more
        file.close()
