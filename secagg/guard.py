"""What a client has done before, so that it never does it twice: not after an error, and not after a restart.

Before a frame leaves, its step (session, round, phase) is recorded; a step that is on record already is refused, and so is any step
of a round that went further. Before a masked vector leaves, the application's context is recorded with it: a second vector under the
same context would let a server subtract two sums, and is refused unless the application has made a new reservation for it. No secret
is ever stored, so a client that restarts within a round is a dropout. Where a policy limits rounds, the limit is checked in the same
moment in which the round is counted.

For POSIX systems: the file's lock, owner and mode are theirs. A network file system must keep `flock` between its hosts.
"""

import contextlib
import errno
import fcntl
import math
import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple, Protocol, Self

import msgspec

from secagg.errors import GuardError, ParameterError, PolicyError
from secagg.files import check_folder, check_private, os_errors, sync_folder
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


class RoundLimit(NamedTuple):
    """Most rounds that may begin within a stretch of time.

    Attributes:
        rule: The policy's field that sets the limit.
        rounds: The most, 0 or more.
        seconds: How long the stretch is that ends now; infinite: as long as the store remembers.
    """

    rule: str
    rounds: int
    seconds: float


class Guard(Protocol):
    """Remembers steps; `record` has made a step durable when it returns."""

    def record(
        self,
        session: bytes,
        round_: int,
        phase: str,
        app_context: bytes,
        reservation: bytes,
        *,
        limits: Sequence[RoundLimit] = (),
    ) -> None:
        """Put a step on record before its frame leaves.

        Limits are checked and the round is counted in one: of two sessions that each would begin the last allowed round, one does.

        Raises:
            GuardError: It is on record already, or the store cannot be trusted or written; nothing may leave.
            PolicyError: It begins a round, and the rounds before are as many as a limit allows; nothing may leave.
        """
        ...

    def rounds(self, since: float) -> int:
        """How many rounds were begun at or after a time (seconds since 1970, UTC)."""
        ...

    def now(self) -> float:
        """The time that the store goes by."""
        ...


def check_limits(guard: Guard, limits: Sequence[RoundLimit]) -> None:
    """Return if another round may begin now.

    Raises:
        PolicyError: Within one of the limits as many have begun as may; `rule` names it.
    """
    for rule, rounds, seconds in limits:
        begun = guard.rounds(guard.now() - seconds)
        if begun >= rounds:
            within = "" if math.isinf(seconds) else f" within {seconds} s"
            raise PolicyError(rule, f"{begun} rounds were begun{within}, {rounds} are allowed")


class MemoryGuard:
    """Remembers as long as the process lives: for simulations and tests.

    Args:
        clock: Seconds since 1970, UTC.

    Guarantees:
        Of any number of threads that would take one step, or begin the last round that is allowed, one does.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._turn = threading.Lock()
        self._last: dict[tuple[str, int], int] = {}
        self._begun: list[float] = []
        self._released: set[tuple[str, str]] = set()

    def record(
        self,
        session: bytes,
        round_: int,
        phase: str,
        app_context: bytes,
        reservation: bytes,
        *,
        limits: Sequence[RoundLimit] = (),
    ) -> None:
        """Put a step on record.

        Args:
            session: 16 bytes.
            round_: Round number (u64).
            phase: The exchange.
            app_context: 32 bytes.
            reservation: What the application booked for this release; counts in exchange 3 only.
            limits: How many rounds may begin; they count in exchange 1 only.

        Raises:
            ParameterError: One of these is not that; names it. Nothing was recorded.
            GuardError: It, or a later one of its round, is on record; or its context was released under this reservation.
            PolicyError: A limit does not allow another round.
        """
        _check_step(session, round_, phase, app_context, reservation)
        with self._turn:
            step = Step(
                session=session.hex(),
                round=round_,
                phase=phase,
                app_context=app_context.hex(),
                reservation=reservation.hex() if phase == _RELEASE else "",
                time=self._clock(),
            )
            self._check(step)
            if phase == PHASES[0]:
                check_limits(self, limits)
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
    so that two processes cannot act for one client. The lock is on the file and not on its name: before each step the file of that
    name must still be the one that was opened, with nothing in it that this guard did not write.

    Args:
        path: The file; made with mode 0600 if there is none. Its folder must exist, and what everybody can write to needs the sticky bit.
        clock: Seconds since 1970, UTC.

    Raises:
        GuardError: Another process has it open, it belongs to another user, others may read or write it or put another in its place,
            a line is not a step, or it cannot be read or made; names file and line.

    Guarantees:
        A step that was recorded is refused to whoever opens the file later. Nothing is recorded in a file that has lost its name,
        or by a process that was forked off while the guard was open.
    """

    def __init__(self, path: str | os.PathLike[str], clock: Callable[[], float] = time.time) -> None:
        super().__init__(clock)
        self._path = Path(path).absolute()  # the process may change its folder
        self._process = os.getpid()
        self._file = -1
        try:
            with os_errors(self._path, GuardError):
                self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        check_folder(self._path, GuardError)
        # O_NONBLOCK: a pipe or a device must not block.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self._file = os.open(self._path, flags, 0o600)
        found = os.fstat(self._file)
        if not stat.S_ISREG(found.st_mode):
            raise GuardError(f"{self._path}: not a regular file")
        check_private(self._path, found, GuardError)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise GuardError(f"{self._path}: another process acts for this client") from None
        sync_folder(self._path.parent)
        with os.fdopen(self._file, "rb", closefd=False) as file:
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
        self._check_place()
        try:
            if os.pwrite(self._file, line, self._end) != len(line):
                raise OSError(errno.ENOSPC, "the disk is full")  # noqa: TRY301 - the same end
            os.fsync(self._file)
        except OSError as error:
            # What of the line is there must not stand behind the next one; a guard that cannot take it back is of no use.
            try:
                os.ftruncate(self._file, self._end)
            except OSError:
                self.close()
            raise GuardError(f"{self._path}: {error.strerror}; nothing may leave") from None
        self._end += len(line)

    def _check_place(self) -> None:
        """Return if what is written now is what the next guard on this path will read."""
        if self._file < 0:
            raise GuardError(f"{self._path}: the guard is closed")
        # A fork has the file, and with it the lock, but not what its parent records from now on.
        if os.getpid() != self._process:
            raise GuardError(f"{self._path}: was opened by process {self._process}, which acts for this client")
        try:
            here, there = os.fstat(self._file), self._path.lstat()
        except OSError as error:
            self.close()
            raise GuardError(f"{self._path}: {error.strerror}; nothing may leave") from None
        if not os.path.samestat(here, there):
            self.close()
            raise GuardError(f"{self._path}: is another file than the one that was opened; nothing may leave")
        if here.st_size != self._end:
            self.close()
            raise GuardError(
                f"{self._path}: has {here.st_size} bytes instead of {self._end}: somebody else wrote to it; nothing may leave"
            )

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


def _check_step(session: object, round_: object, phase: object, app_context: object, reservation: object) -> None:
    """Return if a line with these could be read again."""
    for name, value, length in (("session", session, 16), ("app_context", app_context, 32)):
        if not isinstance(value, bytes) or len(value) != length:
            raise ParameterError(f"a step's {name} must be {length} bytes")
    if isinstance(round_, bool) or not isinstance(round_, int) or not 0 <= round_ < 2**64:
        raise ParameterError(f"a step's round must be an integer in 0..2**64 - 1, not {round_!r}")
    if phase not in PHASES:
        raise ParameterError(f"a step's phase must be one of {PHASES}, not {phase!r}")
    if not isinstance(reservation, bytes):
        raise ParameterError(f"a reservation must be bytes, not {type(reservation).__name__}")


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Step)
