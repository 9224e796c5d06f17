"""Where masked vectors wait until it is settled whose are in the sum."""

import os
import tempfile
import weakref
from typing import IO, Protocol


class Spool(Protocol):
    """Keeps one body a client; masked, so that it has no secret that its frame did not have."""

    def put(self, client: int, body: memoryview) -> None:
        """Keeps a body."""
        ...

    def get(self, client: int) -> memoryview:
        """The body that was kept for a client."""
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
    """

    def __init__(self, folder: str | None = None) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._places: dict[int, tuple[int, int]] = {}
        self._end = 0

    def put(self, client: int, body: memoryview) -> None:
        """Writes a body at the end of the file.

        Raises:
            OSError: The disk is full, or cannot be written.
        """
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed by close()
            weakref.finalize(self, self._file.close)  # a session that fails or is dropped does not come to close()
        self._file.seek(self._end)
        self._file.write(body)
        self._file.flush()
        self._places[client] = (self._end, len(body))
        self._end += len(body)

    def get(self, client: int) -> memoryview:
        """Reads a body back.

        Raises:
            OSError: The file cannot be read.
        """
        start, length = self._places[client]
        body = os.pread(self._file.fileno(), length, start) if self._file else b""
        if len(body) != length:
            raise OSError(f"the spool lost the vector of client {client}")
        return memoryview(body)

    def close(self) -> None:
        """Deletes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._places.clear()
        self._end = 0
