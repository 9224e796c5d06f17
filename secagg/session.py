"""Runs one round over an engine, and accounts for its time and bytes."""

import dataclasses
import statistics
import time
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from secagg.engines.base import Engine
from secagg.errors import ParameterError, SecaggError
from secagg.identity import Roster, ServerIdentity
from secagg.params import PHASES, RoundParams
from secagg.protocols.pairwise import ServerSession


@dataclasses.dataclass(frozen=True)
class RoundOutcome:
    """What a round gave, and what it took.

    Attributes:
        sums: `{block name: int64 (length,)}`, the exact sum over `survivors`.
        survivors: Clients whose vectors are in the sum, sorted.
        dropped: `{client id: phase from which it was silent}`; one that fell silent after its vector arrived is in both.
        rejected: `{client id: reason}` where an answer came and was not taken.
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
    seconds: dict[str, dict[str, float]]
    bytes_up: dict[str, int]
    bytes_down: dict[str, int]
    transcript: bytes
    sharers: tuple[int, ...]
    signatures: dict[int, bytes]


def run_round(
    engine: Engine,
    params: RoundParams,
    server_identity: ServerIdentity,
    roster: Roster,
    *,
    deadline_s: float | None = None,
) -> RoundOutcome:
    """One round: five exchanges, silent clients tolerated in each.

    Args:
        engine: Reaches the cohort.
        params: The round.
        server_identity: The server's keys.
        roster: Everybody's public keys.
        deadline_s: Seconds for each exchange.

    Raises:
        RoundError: Too few clients were left.
        PeerFault: A client is provably corrupt in a way that ends the round; nothing is published.
        ParameterError: A member of the cohort cannot be reached by the engine, or is not on the roster.
    """
    unreachable = sorted(set(params.cohort) - set(engine.peers))
    if unreachable:
        raise ParameterError(f"the engine does not know clients {unreachable} of the cohort")
    session = ServerSession(params, server_identity, roster)
    server_seconds, bytes_up, bytes_down = {}, {}, {}
    rejected: dict[int, str] = {}
    frames = session.open()
    for phase in PHASES:
        bytes_down[phase] = sum(map(len, frames.values()))
        replies = engine.exchange(phase, frames, deadline_s=deadline_s)
        bytes_up[phase] = sum(len(frame) for frame in replies.values() if isinstance(frame, bytes))
        start = time.perf_counter()
        for sender, frame in replies.items():
            try:
                session.receive(sender, frame)
            except SecaggError as error:
                rejected[sender] = str(error)
        frames = session.close_phase()
        server_seconds[phase] = time.perf_counter() - start
    result = session.result
    return RoundOutcome(
        sums=result.sums,
        survivors=result.survivors,
        dropped=result.dropped,
        rejected=rejected | {client: str(error) for client, error in result.rejected.items()},
        seconds={"server": server_seconds, "client": _medians(engine.client_seconds)},
        bytes_up=bytes_up,
        bytes_down=bytes_down,
        transcript=result.transcript,
        sharers=result.sharers,
        signatures=result.signatures,
    )


def _medians(seconds: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    known = {phase: seconds.get(phase, {}).values() for phase in PHASES}
    return {phase: statistics.median(values) if values else 0.0 for phase, values in known.items()}
