"""A disk that stops at any call, and what may be on it afterwards."""

import contextlib
import os
from pathlib import Path

import pytest

CALLS = ("open", "pwrite", "write", "fsync", "replace", "rename", "ftruncate")


class Crash(BaseException):
    """The machine stopped: nothing catches it."""


class CrashDisk:
    """Counts the calls that change files under a folder, stops at one of them, and says what a power failure may leave.

    Only what was synced is certain to be there: bytes of a file after `os.fsync` of it, names after `os.fsync` of their
    folder. Of everything else all, nothing or a beginning may have reached the disk. It sees what goes through `os`, in
    `root` and below; whatever is written otherwise is taken for written.
    """

    def __init__(self, root, monkeypatch):
        self.root = Path(root)
        self.calls = []
        self._stop = None
        self._dead = False
        self._synced = {}  # inode -> bytes that are certain
        self._unsure = {}  # path whose name is not -> bytes under the name before, or None
        for name in CALLS:
            monkeypatch.setattr(os, name, self._patched(name, getattr(os, name)))

    def run(self, job, *, at=None, after=False):
        """Run a job, and stop before or after its call number `at`; whether it got there."""
        self.calls, self._stop, self._dead = [], (at, after), False
        try:
            job()
        except Crash:
            return True
        finally:
            self._stop, self._dead = None, False
        return False

    def states(self):
        """Everything that may be in the folder now, each as {path: bytes}, without repeats."""
        files = [path for path in self.root.rglob("*") if path.is_file()]
        found = []
        for names_kept in (True, False):
            for begun in map(self._begun, (1.0, 0.0, 1, 2, 3, 0.5, -1)):
                state = {}
                for path in files:
                    data = path.read_bytes()
                    state[path] = begun(self._synced.get(path.stat().st_ino, data), data)
                if not names_kept:
                    state |= self._unsure
                state = {str(path.relative_to(self.root)): data for path, data in state.items() if data is not None}
                if state not in found:
                    found.append(state)
        return found

    @staticmethod
    def _begun(part):
        """What is left when so much of the new bytes was written: a share, or a number from the beginning or the end."""

        def keep(old, new):
            at = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
            begun = (
                int((len(new) - at) * part) if isinstance(part, float) else part if part > 0 else len(new) - at + part
            )
            return new[: at + max(0, begun)] + old[at + max(0, begun) :] if new != old else new

        return keep

    def _patched(self, name, real):
        def call(*arguments, **rest):
            path = self._path(name, arguments)
            if path is None:
                return real(*arguments, **rest) if name != "fsync" else None  # the disk is simulated, and quicker so
            if self._dead:
                raise Crash
            stops, after = self._stop or (None, False)
            here = stops == len(self.calls)
            self.calls.append(name)
            if here and not after:
                self._dead = True
                raise Crash
            fresh = name == "open" and not path.exists()
            self._before(name, path, arguments)
            result = None if name == "fsync" else real(*arguments, **rest)
            if name == "fsync":
                self._sync(path)
            elif fresh:
                self._synced[path.stat().st_ino] = b""  # whatever file had this number before
            if here:
                self._dead = True
                if name == "open":
                    os.close(result)
                raise Crash
            return result

        return call

    def _path(self, name, arguments):
        """The file or folder that a call changes, where it is one of ours."""
        if name == "open" and not (len(arguments) > 1 and arguments[1] & os.O_CREAT):
            return None
        path = None
        if name == "open":
            path = Path(arguments[0])
        elif name in {"replace", "rename"}:
            path = Path(arguments[1])
        else:
            with contextlib.suppress(OSError):
                path = Path(f"/proc/self/fd/{arguments[0]}").readlink()
        return path if path is not None and path.is_relative_to(self.root) else None

    def _before(self, name, path, arguments):
        if name in {"open", "replace", "rename"}:
            old = None
            if path.exists():
                old = self._synced.get(path.stat().st_ino, path.read_bytes())
            if name != "open" or old is None:
                self._unsure.setdefault(path, old)
            if name != "open":
                self._unsure.pop(Path(arguments[0]), None)
            elif old is not None and arguments[1] & os.O_TRUNC:
                self._synced.setdefault(path.stat().st_ino, old)
        elif name != "fsync":
            self._synced.setdefault(path.stat().st_ino, path.read_bytes())

    def _sync(self, path):
        if path.is_dir():
            self._unsure = {each: old for each, old in self._unsure.items() if each.parent != path}
        else:
            self._synced[path.stat().st_ino] = path.read_bytes()


@pytest.fixture
def crash_disk(tmp_path, monkeypatch):
    """Makes disks in new folders, one at a time, on which calls can be counted and stopped."""

    def make(name):
        monkeypatch.undo()
        root = tmp_path / name
        root.mkdir()
        return CrashDisk(root, monkeypatch)

    yield make
    monkeypatch.undo()
