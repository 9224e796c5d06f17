"""Files that are whole or absent, private files that stay private, and JSON that has one meaning."""

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from secagg.errors import LocalError


def write_file(path: Path, data: bytes, *, kind: type[LocalError], mode: int, overwrite: bool) -> None:
    """A whole file or none, on the disk when this returns.

    Args:
        path: The file; its folder must exist.
        data: All of it.
        kind: The error to raise.
        mode: The file's mode, less what the umask takes away.
        overwrite: Whether a file of this name is replaced.

    Raises:
        kind: The file cannot be written, or there is one that may not be replaced; names it.

    Guarantees:
        The file never has a wider mode or a part of the data, and one that may not be replaced never is.
    """
    temporary = path.with_name(f".{os.urandom(8).hex()}.tmp")
    with os_errors(path, kind):
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(file, "wb") as out:
                out.write(data)
                out.flush()
                os.fsync(file)
            if overwrite:
                temporary.replace(path)
            else:
                os.link(temporary, path)  # unlike a rename, it fails where there is a file
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Put on the disk which files a folder has.

    Raises:
        OSError: It cannot be opened, or the disk does not take it.
    """
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_file(path: Path, limit: int, *, kind: type[LocalError], private: bool = False) -> bytes:
    """The content of a regular file.

    Args:
        path: The file.
        limit: The most bytes that it may have.
        kind: The error to raise.
        private: Refuse what others could read or have put there.

    Raises:
        kind: It cannot be read, is not a regular file, or has more bytes; if `private`: it is a link, belongs to another user,
            or its mode is wider than 0600. Names the file.
    """
    # O_NONBLOCK: a pipe that nobody writes to must not block.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_NOFOLLOW if private else 0)
    with os_errors(path, kind):
        file = os.open(path, flags)
        try:
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode):
                raise kind(f"{path}: not a regular file")
            if private:
                check_private(path, found, kind)
            with os.fdopen(file, "rb", closefd=False) as source:
                data = source.read(limit + 1)
        finally:
            os.close(file)
    if len(data) > limit:
        raise kind(f"{path}: has more than {limit} bytes")
    return data


def check_private(path: Path, found: os.stat_result, kind: type[LocalError]) -> None:
    """Return if nobody but this process's user can use a file.

    Raises:
        kind: It belongs to another user, or its mode is wider than 0600.
    """
    if found.st_uid != os.geteuid():
        raise kind(f"{path}: belongs to user {found.st_uid}, and this process runs as user {os.geteuid()}")
    if stat.S_IMODE(found.st_mode) & ~0o600:
        raise kind(
            f"{path}: mode {stat.S_IMODE(found.st_mode):04o} is wider than 0600; `chmod 600` it if it was never exposed"
        )


def check_folder(path: Path, kind: type[LocalError]) -> None:
    """Return if not everybody can take a file away, or put another in its place.

    Args:
        path: The file; it need not exist.
        kind: The error to raise.

    Raises:
        kind: Everybody may write to its folder, and that has no sticky bit, under which only a file's owner can do this; or there is
            no such folder. Names the file.
    """
    with os_errors(path, kind):
        mode = stat.S_IMODE(path.parent.stat().st_mode)
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise kind(
            f"{path}: mode {mode:04o} of its folder lets everybody put another file in its place; `chmod o-w` it"
        )


@contextlib.contextmanager
def os_errors(path: Path, kind: type[LocalError]) -> Iterator[None]:
    """Turns what the system reports about a file into an error of ours.

    Raises:
        kind: Has the file and the reason.
    """
    try:
        yield
    except FileExistsError:
        raise kind(f"{path}: exists already") from None
    except OSError as error:
        raise kind(f"{path}: {'a link, not a file' if error.errno == errno.ELOOP else error.strerror}") from None


def parse_json(data: bytes) -> object:
    """JSON without what two parsers could read in two ways: no key twice, no fractions, nothing that is not UTF-8.

    Raises:
        ValueError: It is not that.
    """
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_float=_refuse, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def one_line(error: Exception) -> str:
    """An error's text, which may quote somebody else's file, fit for one line of a terminal."""
    return "".join(character if character.isprintable() else "?" for character in str(error))[:300]


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {name!r} comes twice")
        found[name] = value
    return found


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text[:40]} is not an integer")
