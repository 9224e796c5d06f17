"""Runs one round over an engine, and accounts for its time and bytes."""

import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from secagg.engines.base import Engine
from secagg.errors import (
    DecodeError,
    DisputeError,
    LocalError,
    ParameterError,
    PeerFault,
    RoundError,
    SecaggError,
    StoppedError,
    UnexpectedFrameError,
)
from secagg.identity import Roster, ServerIdentity
from secagg.params import PHASES, RoundParams
from secagg.protocols.pairwise import ServerSession
from secagg.spool import Spool


@dataclasses.dataclass(frozen=True, repr=False)
class Fault:
    """What was found about a client, or about clients that contradict each other.

    Attributes:
        parties: One client id, or those on both sides of a dispute, the one that was dropped first.
        message: What was wrong.
        evidence: What shows it, by name, bytes as they were received: `secagg.protocols.pairwise.evidence` checks it anew.
    """

    parties: tuple[int, ...]
    message: str
    evidence: Mapping[str, bytes]

    def __repr__(self) -> str:
        return f"Fault(parties={self.parties}, message={self.message!r}, evidence={sorted(self.evidence)})"


@dataclasses.dataclass(frozen=True)
class RoundOutcome:
    """What a round gave, and what it took.

    Attributes:
        sums: `{block name: int64 (length,)}`, the exact sum over `survivors`.
        survivors: Clients whose vectors are in the sum, sorted.
        dropped: `{client id: phase from which it was silent}`; one that fell silent after its vector arrived is in both.
        rejected: `{client id: reason}` where something came from a client that is missing and was not taken: a wrong frame, or
            its own reason to decline.
        faults: What was found about clients whose frames were wrong, with the evidence.
        ignored: (phase, sender, reason) of frames that changed nothing: late ones, second ones, another session's.
        seconds: `{"server": {phase: s}, "client": {phase: s}}` for exactly the five phases; client: the median over the
            clients, 0 where the engine does not know.
        bytes_up: `{phase: bytes}` that clients sent, all together.
        bytes_down: `{phase: bytes}` that the server sent before that phase.
        transcript: T1, the 32-byte hash that the round is bound to.
        sharers: U2; with the transcript and the survivors, what `signatures` sign.
        signatures: `{client id: 64 bytes}` over (T1, U2, U3).
    """

    sums: dict[str, npt.NDArray[np.int64]]
    survivors: tuple[int, ...]
    dropped: dict[int, str]
    rejected: dict[int, str]
    faults: tuple[Fault, ...]
    ignored: tuple[tuple[str, int, str], ...]
    seconds: dict[str, dict[str, float]]
    bytes_up: dict[str, int]
    bytes_down: dict[str, int]
    transcript: bytes
    sharers: tuple[int, ...]
    signatures: dict[int, bytes]


class _Metered(Mapping[int, bytes]):
    """Frames to deliver, with the time that making them took and the bytes that left."""

    def __init__(self, frames: Mapping[int, bytes]) -> None:
        self._frames = frames
        self.seconds = 0.0
        self.bytes = 0

    def __getitem__(self, client: int) -> bytes:
        start = time.perf_counter()
        frame = self._frames[client]
        self.seconds += time.perf_counter() - start
        self.bytes += len(frame)
        return frame

    def __contains__(self, client: object) -> bool:
        return client in self._frames

    def __iter__(self) -> Iterator[int]:
        return iter(self._frames)

    def __len__(self) -> int:
        return len(self._frames)


def run_round(
    engine: Engine,
    params: RoundParams,
    server_identity: ServerIdentity,
    roster: Roster,
    *,
    deadline_s: float | None = None,
    spool: Spool | None = None,
) -> RoundOutcome:
    """One round: five exchanges, silent clients tolerated in each.

    Args:
        engine: Reaches the cohort.
        params: The round.
        server_identity: The server's keys.
        roster: Everybody's public keys.
        deadline_s: Seconds for each exchange.
        spool: Where masked vectors wait until it is fixed whose are in the sum. None: a temporary file.

    Raises:
        RoundError: Too few clients were left. `faults_of` has what was found about those that are missing.
        PeerFault: A client is provably corrupt in a way that ends the round; nothing is published. It has the evidence, and
            `faults_of` has it together with what was found about others before; the next round should go without them.
        StoppedError: The spool could not keep a vector or give it back, or the server's key gave no signature. `faults_of` likewise.
        ParameterError: A member of the cohort cannot be reached by the engine, or is not on the roster.
    """
    unreachable = sorted(set(params.cohort) - set(engine.peers))
    if unreachable:
        raise ParameterError(f"the engine does not know clients {unreachable} of the cohort")
    session = ServerSession(params, server_identity, roster, spool=spool)
    server_seconds = dict.fromkeys(PHASES, 0.0)
    bytes_up, bytes_down = dict.fromkeys(PHASES, 0), dict.fromkeys(PHASES, 0)
    ignored: list[tuple[str, int, str]] = []
    frames, before = _Metered(session.open()), PHASES[0]
    for phase in PHASES:
        for batch in _batches(engine.exchange(phase, frames, deadline_s=deadline_s)):
            bytes_up[phase] += sum(_size(frame) for _, frame in batch)
            start = time.perf_counter()
            errors = session.receive_many(batch)
            server_seconds[phase] += time.perf_counter() - start
            for (sender, _), error in zip(batch, errors, strict=True):
                match error:
                    case UnexpectedFrameError() | DecodeError():
                        ignored.append((phase, sender, str(error)))
                    case LocalError():
                        raise StoppedError(str(error), session.rejected) from error
        bytes_down[phase] = frames.bytes
        server_seconds[before] += frames.seconds
        start = time.perf_counter()
        try:
            answers = session.close_phase()
        except LocalError as error:
            raise StoppedError(str(error), session.rejected) from error
        frames, before = _Metered(answers), phase
        server_seconds[phase] += time.perf_counter() - start
    result = session.result
    return RoundOutcome(
        sums=result.sums,
        survivors=result.survivors,
        dropped=result.dropped,
        rejected={client: str(error) for client, error in result.rejected.items()},
        faults=faults(result.rejected),
        ignored=tuple(ignored),
        seconds={"server": server_seconds, "client": _medians(engine.client_seconds)},
        bytes_up=bytes_up,
        bytes_down=bytes_down,
        transcript=result.transcript,
        sharers=result.sharers,
        signatures=result.signatures,
    )


# So many small frames are taken at once, or two vectors, that their signatures and tags are worth two cores; no more, so that
# memory does not grow with the cohort.
_BATCH_FRAMES, _BATCH_BYTES, _BATCH_VECTORS = 32, 2**20, 2


def _batches(replies: Iterable[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    """The replies in their order, some at a time."""
    batch: list[tuple[int, bytes]] = []
    size = 0
    for reply in replies:
        batch.append(reply)
        size += _size(reply[1])
        if len(batch) >= (_BATCH_FRAMES if size < _BATCH_BYTES else _BATCH_VECTORS):
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _size(frame: object) -> int:
    return len(frame) if isinstance(frame, bytes) else 0


def faults(rejected: Mapping[int, SecaggError]) -> tuple[Fault, ...]:
    """The findings among the reasons why clients are missing; silence, declining and unsigned rubbish are none."""
    found = []
    for error in rejected.values():
        match error:
            case PeerFault():
                found.append(Fault((error.party,), str(error), error.evidence))
            case DisputeError():
                found.append(Fault(error.parties, str(error), error.evidence))
    return tuple(found)


def faults_of(error: RoundError | PeerFault | StoppedError) -> tuple[Fault, ...]:
    """What was found about clients in a round that ended with an error, as `RoundOutcome.faults` has it for one that did not.

    Args:
        error: What `run_round` raised.
    """
    found = faults(error.rejected)
    return (*found, *faults({error.party: error})) if isinstance(error, PeerFault) else found


def _medians(seconds: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    known = {phase: seconds.get(phase, {}).values() for phase in PHASES}
    return {phase: float(np.median(list(values))) if values else 0.0 for phase, values in known.items()}
