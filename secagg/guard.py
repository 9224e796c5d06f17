"""What a client has done before, so that it never does it twice: not after an error, and not after a restart.

Before a frame leaves, its step (session, round, phase) is recorded; a step that is on record already is refused, and so is any step
of a round that went further. Before a masked vector leaves, the application's context is recorded with it: a second vector under the
same context would let a server subtract two sums, and is refused unless the application has made a new reservation for it. No secret
is ever stored, so a client that restarts within a round is a dropout.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Protocol, Self

import msgspec

from secagg.errors import GuardError
from secagg.files import sync_folder
from secagg.params import PHASES

_RELEASE = PHASES[2]


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One frame that was about to leave.

    Attributes:
        session: 16 bytes, in hex.
        round: Round number (u64).
        phase: The exchange.
        app_context: 32 bytes, in hex.
        reservation: What the application booked for this release, in hex; empty where there is none, and outside exchange 3.
        time: Seconds since 1970, UTC.
    """

    session: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    round: Annotated[int, msgspec.Meta(ge=0)]
    phase: str
    app_context: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    reservation: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{2})*$")]
    time: float


class Guard(Protocol):
    """Remembers steps; `record` has made a step durable when it returns."""

    def record(self, session: bytes, round_: int, phase: str, app_context: bytes, reservation: bytes) -> None:
        """Put a step on record before its frame leaves.

        Raises:
            GuardError: It is on record already, or the store cannot be trusted or written; nothing may leave.
        """
        ...

    def rounds(self, since: float) -> int:
        """How many rounds were begun at or after a time (seconds since 1970, UTC)."""
        ...

    def now(self) -> float:
        """The time that the store goes by."""
        ...


class MemoryGuard:
    """Remembers as long as the process lives: for simulations and tests.

    Args:
        clock: Seconds since 1970, UTC.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._last: dict[tuple[str, int], int] = {}
        self._begun: list[float] = []
        self._released: set[tuple[str, str]] = set()

    def record(self, session: bytes, round_: int, phase: str, app_context: bytes, reservation: bytes) -> None:
        """Put a step on record.

        Raises:
            GuardError: It, or a later one of its round, is on record; or its context was released under this reservation.
        """
        step = Step(
            session=session.hex(),
            round=round_,
            phase=phase,
            app_context=app_context.hex(),
            reservation=reservation.hex() if phase == _RELEASE else "",
            time=self._clock(),
        )
        self._check(step)
        self._keep(step)
        self._note(step)

    def _check(self, step: Step) -> None:
        place = PHASES.index(step.phase)
        if self._last.get((step.session, step.round), -1) >= place:
            raise GuardError(
                f"phase {step.phase} of round {step.round}, session {step.session}, was answered before: never twice, also "
                "after a restart"
            )
        if step.phase == _RELEASE and (step.app_context, step.reservation) in self._released:
            raise GuardError(
                f"a masked vector under application context {step.app_context[:16]}… has left before: another one would let the "
                "server subtract two sums; a retry needs a new reservation"
            )

    def _keep(self, step: Step) -> None:
        """Where a store would write."""

    def _note(self, step: Step) -> None:
        if step.phase == PHASES[0]:
            self._begun.append(step.time)
        self._last[step.session, step.round] = PHASES.index(step.phase)
        if step.phase == _RELEASE:
            self._released.add((step.app_context, step.reservation))

    def rounds(self, since: float) -> int:
        """How many rounds were begun at or after a time."""
        return sum(begun >= since for begun in self._begun)

    def now(self) -> float:
        """The clock's time."""
        return self._clock()


class FileGuard(MemoryGuard):
    """Remembers in a file that only grows: one JSON line a step, on the disk before the frame leaves.

    A last line without its end is the write of a frame that never left, and is cut off. The file is locked while the guard is open,
    so that two processes cannot act for one client.

    Args:
        path: The file; made with mode 0600 if there is none. Its folder must exist.
        clock: Seconds since 1970, UTC.

    Raises:
        GuardError: Another process has it open, a line is not a step, or the file cannot be read or made; names file and line.
    """

    def __init__(self, path: str | os.PathLike[str], clock: Callable[[], float] = time.time) -> None:
        super().__init__(clock)
        self._path = Path(path)
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise GuardError(f"{self._path}: {error.strerror}") from None
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise GuardError(f"{self._path}: another process acts for this client") from None
        sync_folder(self._path.parent)
        with os.fdopen(os.dup(self._file), "rb") as file:
            data = file.read()
        whole = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                step = _DECODER.decode(line)
                PHASES.index(step.phase)
            except ValueError as error:  # msgspec's errors too
                raise GuardError(f"{self._path}, line {number}: not a step: {error}") from None
            self._note(step)
        if whole != len(data):
            os.ftruncate(self._file, whole)
        self._end = whole

    def _keep(self, step: Step) -> None:
        line = _ENCODER.encode(step) + b"\n"
        if self._file < 0:
            raise GuardError(f"{self._path}: the guard is closed")
        try:
            if os.pwrite(self._file, line, self._end) != len(line):
                raise GuardError(f"{self._path}: the disk is full")
            os.fsync(self._file)
        except OSError as error:
            # What of the line is there must not stand behind the next one; a guard that cannot take it back is of no use.
            try:
                os.ftruncate(self._file, self._end)
            except OSError:
                self.close()
            raise GuardError(f"{self._path}: {error.strerror}; nothing may leave") from None
        self._end += len(line)

    def close(self) -> None:
        """Let go of the file and its lock."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Step)
