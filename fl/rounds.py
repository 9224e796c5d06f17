"""The coordinator: it announces rounds, aggregates, and commits what came out, one after the other.

It learns what an `Aggregate` has and nothing else about a site. Before a round its ledger reserves, after it the ledger
commits the noise that really was there; only a model that is finite is committed.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from fl.aggregation import Aggregate, Aggregator
from fl.algorithms import Algorithm, ServerState
from fl.errors import ModelError, RoundFailedError
from fl.files import append_line
from fl.model import Adapter
from fl.site import Agreement, Announcement
from privacy.errors import BudgetExceededError
from privacy.ledger import Ledger, Reservation, read_entries
from secagg.errors import BelowThresholdError, PeerFault, RoundError

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoundRecord:
    """One committed round, as a line of metrics.jsonl.

    Attributes:
        round: From 0.
        attempt: From 0: how many tries failed before.
        survivors: Names of the sites in the sum.
        dropped: Site → phase from which it was silent; one that fell silent late may be in the sum all the same.
        seconds: {"server" | "client": {phase: seconds}}; client: the median.
        bytes: {"up" | "down": {phase: bytes}}.
        sigma_eff: Noise of the honest survivors in grid units, or None without privacy.
        epsilon: Cumulative, by route (None: no bound by that route), or None without privacy.
        transcript: Hex hash of the protocol's transcript, or of the round's parameters where a simulation leaves the protocol out.
        update_norm: L2 norm of the mean update; 0 when the round had no data.
        loss: Mean training loss, or None where it is private or there was no data.
        weight: Total number of records, or None where it is private.
        clip: The round's clip norm, where it adapts; else None.
        within: The noisy part of the contributions whose norm was within it; else None.
        refused: Site → why it is missing, where that is known.
    """

    round: int
    attempt: int
    survivors: list[str]
    dropped: dict[str, str]
    seconds: dict[str, dict[str, float]]
    bytes: dict[str, dict[str, int]]
    sigma_eff: float | None
    epsilon: dict[str, float | None] | None
    transcript: str
    update_norm: float
    loss: float | None
    weight: int | None
    clip: float | None = None
    within: float | None = None
    refused: dict[str, str] = field(default_factory=dict)


OnRound = Callable[[RoundRecord, ServerState], None]


def first_attempt(ledger: Ledger | None, run: str, number: int) -> int:
    """Which attempt at a round is the next one: what was reserved before, by a process that stopped, left for good.

    Args:
        ledger: The run's own ledger, or None without privacy, where nothing counts attempts.
        run: The run's name.
        number: The round.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    if ledger is None:
        return 0
    made = [e for e in read_entries(ledger.path) if e.kind == "reserve" and (e.run, e.round) == (run, number)]
    return 1 + max((entry.attempt for entry in made), default=-1)


@dataclass(frozen=True)
class Coordinator:
    """Runs rounds and commits them.

    Attributes:
        agreement: What all parties agreed on.
        algorithm: The server's half of it is used here.
        adapter: The model.
        aggregate: How a round is taken.
        save: Makes a state last; the round is committed when it returns.
        metrics: Path of metrics.jsonl. A round's line is there before the round is committed, so that no crash loses one;
            lines after the last committed round are to be cut off by whoever goes on.
        attempts: How often a round is tried; each try is booked.
        ledger: The run's own ledger; needed with a plan.
    """

    agreement: Agreement
    algorithm: Algorithm
    adapter: Adapter
    aggregate: Aggregator
    save: Callable[[RoundRecord, ServerState], None]
    metrics: Path
    attempts: int = 1
    ledger: Ledger | None = None

    def run(self, state: ServerState, rounds: int, on_round: OnRound, *, attempt: int = 0) -> ServerState:
        """Run until `rounds` rounds are committed.

        Args:
            state: Where to start: `algorithm.init`, or a checkpoint.
            rounds: The round number to stop before.
            on_round: Called after each commit.
            attempt: Number of the first attempt at the first round, as `first_attempt` gives it.

        Raises:
            BudgetExceededError: the next attempt would pass the budget; nothing of it was sent.
            RoundFailedError: every attempt at a round failed, or its result was not finite; what was committed stands.
        """
        while state.round < rounds:
            state, record = self._round(state, attempt)
            append_line(self.metrics, asdict(record))
            self.save(record, state)
            on_round(record, state)
            attempt = 0
        return state

    def _round(self, state: ServerState, first: int) -> tuple[ServerState, RoundRecord]:
        number = state.round
        failure = ""
        for attempt in range(first, first + self.attempts):
            announcement = self._announcement(state, attempt)
            reservation = self._reserve(announcement)
            try:
                aggregate = self.aggregate(announcement)
            except (RoundError, PeerFault) as error:
                failure = self._explain(error)
                continue
            spent = self._commit(reservation, aggregate)
            if aggregate.mean.descent(announcement.model) is None:
                _LOG.warning("round %d: no data: no site in the sum has a record, and the model stays", number)
            try:
                after = self.algorithm.server_update(state, aggregate.mean)
            except ModelError as error:
                raise RoundFailedError(
                    f"round {number}: the new model is refused and the one before stands: {error}"
                ) from error
            return after, self._record(announcement, aggregate, spent)
        raise RoundFailedError(f"round {number} failed in {self.attempts} attempt(s): {failure}")

    def _announcement(self, state: ServerState, attempt: int) -> Announcement:
        return Announcement(
            round=state.round,
            attempt=attempt,
            model=self.adapter.ravel(state.params),
            model_hash=self.adapter.hash(state.params, state.broadcast),
            clip=state.clip,
            broadcast=state.broadcast,
        )

    def _reserve(self, announcement: Announcement) -> Reservation | None:
        plan = self.agreement.plan
        if plan is None or self.ledger is None:
            return None
        try:
            return self.ledger.reserve(
                run=self.agreement.run,
                round=announcement.round,
                attempt=announcement.attempt,
                plan=plan,
                private=self.agreement.private,
                data_set=None,
            )
        except BudgetExceededError as error:
            made = [e for e in read_entries(self.ledger.path) if (e.kind, e.run) == ("reserve", self.agreement.run)]
            lost = len(made) - announcement.round
            if not lost:
                raise
            raise BudgetExceededError(
                f"round {announcement.round}: {lost} attempt(s) that failed, or were under way when the run was stopped, "
                f"count as spent, and what they left does not pay for another: {error}"
            ) from error

    def _commit(self, reservation: Reservation | None, aggregate: Aggregate) -> dict[str, float | None] | None:
        if reservation is None or self.ledger is None:
            return None
        entry = self.ledger.commit(reservation, survivors=aggregate.survivors, transcript=aggregate.transcript)
        return {route: value if math.isfinite(value) else None for route, value in entry.epsilon.items()}

    def _explain(self, error: RoundError | PeerFault) -> str:
        if isinstance(error, BelowThresholdError):
            return (
                f"{len(error.alive)} of {len(self.agreement.sites)} sites replied in phase {error.phase}, "
                f"minimum {error.needed}"
            )
        if isinstance(error, PeerFault):
            return f"site {self.agreement.sites.get(error.party, error.party)}: {error}"
        return str(error)

    def _record(
        self, announcement: Announcement, aggregate: Aggregate, epsilon: dict[str, float | None] | None
    ) -> RoundRecord:
        plan, names, mean = self.agreement.plan, self.agreement.sites, aggregate.mean
        descent = mean.descent(announcement.model)
        return RoundRecord(
            round=announcement.round,
            attempt=announcement.attempt,
            survivors=[names[client] for client in aggregate.survivors],
            dropped={names[client]: phase for client, phase in aggregate.dropped.items()},
            seconds={side: dict(phases) for side, phases in aggregate.seconds.items()},
            bytes={"up": dict(aggregate.bytes_up), "down": dict(aggregate.bytes_down)},
            sigma_eff=plan.sigma_effective(len(aggregate.survivors)) if plan is not None else None,
            epsilon=epsilon,
            transcript=aggregate.transcript,
            update_norm=float(np.linalg.norm(descent)) if descent is not None else 0.0,
            loss=mean.loss,
            weight=mean.weight,
            clip=announcement.clip,
            refused={names[client]: reason for client, reason in aggregate.refused.items()},
            within=plan.adaptive.fraction(mean.bits)
            if plan is not None and plan.adaptive is not None and mean.bits is not None
            else None,
        )
