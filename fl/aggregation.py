"""Three ways from the sites' contributions to the mean: plain (floats), ideal (integers), secure (the protocol).

`ideal` yields the integers that the protocol yields, without cryptography; `secure` runs it. Both end in the same mean,
bit for bit, because a sum of integers has no order.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from fl.algorithms import Algorithm, Mean, SiteUpdate
from fl.algorithms.base import Int64
from fl.errors import FlError
from fl.site import Agreement, Announcement, Participation
from privacy.errors import PrivacyError
from secagg.engines.base import Engine
from secagg.errors import BelowThresholdError, SecaggError
from secagg.identity import Roster, ServerIdentity
from secagg.params import PHASES, RoundParams
from secagg.protocols.pairwise.mask import check_inputs
from secagg.session import RoundOutcome, run_round

Silences = Mapping[int, str]
Participants = Callable[[Announcement], Mapping[int, Participation]]


def _no_phases() -> dict[str, dict[str, float]]:
    return {"server": dict.fromkeys(PHASES, 0.0), "client": dict.fromkeys(PHASES, 0.0)}


@dataclass(frozen=True)
class Aggregate:
    """What the server has after a round.

    Attributes:
        mean: The mean over the survivors.
        survivors: Client ids whose contribution is in it, sorted.
        dropped: The phase from which a client was silent.
        sums: The integer sums by block; empty for a float mean.
        seconds: Of the server and of the median client, by phase.
        bytes_up: From all clients, by phase.
        bytes_down: To all clients, by phase.
        transcript: Hex hash of the protocol's transcript; without the protocol that of the round's parameters, as the sites book
            it; empty for a float mean.
        refused: Why a client is missing, where it said so or sent something that was not taken.
    """

    mean: Mean
    survivors: tuple[int, ...]
    dropped: Mapping[int, str]
    sums: Mapping[str, Int64] = field(default_factory=dict)
    seconds: Mapping[str, Mapping[str, float]] = field(default_factory=_no_phases)
    bytes_up: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(PHASES, 0))
    bytes_down: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(PHASES, 0))
    transcript: str = ""
    refused: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, outcome: RoundOutcome, algorithm: Algorithm, clip: float | None) -> "Aggregate":
        """What a round of the protocol gave, decoded with the clip norm that it was announced with."""
        return cls(
            mean=algorithm.decode(outcome.sums, clip),
            survivors=outcome.survivors,
            dropped=outcome.dropped,
            sums=outcome.sums,
            seconds=outcome.seconds,
            bytes_up=outcome.bytes_up,
            bytes_down=outcome.bytes_down,
            transcript=outcome.transcript.hex(),
            refused=outcome.rejected,
        )


class Aggregator(Protocol):
    """One attempt at one round.

    Raises:
        RoundError: too few sites were left.
    """

    def __call__(self, announcement: Announcement) -> Aggregate:
        """Announce the round, collect, aggregate."""
        ...


@dataclass(frozen=True)
class Secure:
    """The protocol over an engine. Nothing of a single site reaches this object except through the engine's frames.

    Attributes:
        agreement: What all parties agreed on.
        algorithm: Decodes the sums.
        connect: Announces the round to the sites and gives the engine that reaches them.
        identity: The server's keys.
        roster: Everybody's public keys.
    """

    agreement: Agreement
    algorithm: Algorithm
    connect: Callable[[Announcement], Engine]
    identity: ServerIdentity
    roster: Roster
    session: Callable[[int, int], bytes | None] = lambda _round, _attempt: None

    def __call__(self, announcement: Announcement) -> Aggregate:
        """Run the five exchanges."""
        session = self.session(announcement.round, announcement.attempt)
        params = self.agreement.round_params(
            announcement.round, announcement.model_hash, session, clip=announcement.clip
        )
        engine = self.connect(announcement)
        try:
            outcome = run_round(engine, params, self.identity, self.roster)
        finally:
            engine.close()
        return Aggregate.of(outcome, self.algorithm, announcement.clip)


@dataclass(frozen=True)
class Ideal:
    """The integer sum over exactly the sites that the protocol would keep, in one process, without cryptography.

    Attributes:
        agreement: What all parties agreed on.
        algorithm: Decodes the sums.
        participants: The sites of an attempt.
        silences: The phase from which a site is silent in an attempt.
    """

    agreement: Agreement
    algorithm: Algorithm
    participants: Participants
    silences: Callable[[Announcement], Silences]

    def __call__(self, announcement: Announcement) -> Aggregate:
        """Sum the contributions of the survivors, with the protocol's thresholds and the sites' own checks."""
        params = self.agreement.round_params(announcement.round, announcement.model_hash, clip=announcement.clip)
        silences = dict(self.silences(announcement))
        cohort = self.participants(announcement)
        values: dict[int, Mapping[str, Int64]] = {}
        for client, part in sorted(cohort.items()):
            if silences.get(client) in PHASES[:3]:
                continue
            phase = PHASES[0]
            try:
                part.open(params)
                phase = PHASES[2]
                values[client] = part.inputs()
                check_inputs(params, values[client])
                part.release()
            except (FlError, PrivacyError, SecaggError) as error:
                part.refusal = error
                values.pop(client, None)
                silences[client] = phase
        alive = still_there(params, silences)
        survivors = tuple(sorted(values))
        for client in survivors:
            if client in alive["unmask"]:
                try:
                    cohort[client].accept(survivors)
                    cohort[client].commit()
                except PrivacyError as error:
                    cohort[client].refusal = error
                    silences[client] = PHASES[4]
        still_there(params, silences)
        sums = {
            block.name: np.sum([values[client][block.name] for client in survivors], axis=0) for block in params.blocks
        }
        refused = {client: str(part.refusal) for client, part in sorted(cohort.items()) if part.refusal is not None}
        return Aggregate(
            self.algorithm.decode(sums, announcement.clip),
            survivors,
            dict(sorted(silences.items())),
            sums,
            transcript=params.context.hex(),
            refused=refused,
        )


@dataclass(frozen=True)
class Plain:
    """The float mean that federated averaging was published with; a site whose update is not finite is left out.

    Attributes:
        participants: The sites of an attempt.
        silences: The phase from which a site is silent in an attempt.
        average: Sites' updates by name → their mean, and who was left out of it.
    """

    participants: Participants
    silences: Callable[[Announcement], Silences]
    average: Callable[[Mapping[str, SiteUpdate]], tuple[Mean, tuple[str, ...]]]

    def __call__(self, announcement: Announcement) -> Aggregate:
        """Average in ascending order of client id, so that the order of arrival changes nothing."""
        silences = dict(self.silences(announcement))
        updates: dict[str, SiteUpdate] = {}
        ids: dict[str, int] = {}
        parts: dict[str, Participation] = {}
        for client, part in sorted(self.participants(announcement).items()):
            if silences.get(client) in PHASES[:3]:
                continue
            update = part.train()
            updates[part.site.name], ids[part.site.name] = update, client
            parts[part.site.name] = part
        mean, excluded = self.average(updates)
        if len(updates) == len(excluded):
            raise BelowThresholdError("mask", 1, (), "no finite update")
        for name, part in parts.items():
            if name not in excluded:  # training that went to NaN leaves no trace at its site either
                part.commit()
        survivors = tuple(ids[name] for name in updates if name not in excluded)
        silences |= dict.fromkeys((ids[name] for name in excluded), "mask")
        refused = dict.fromkeys((ids[name] for name in excluded), "its update is not finite")
        return Aggregate(mean, survivors, dict(sorted(silences.items())), refused=refused)


def still_there(params: RoundParams, silences: Silences) -> dict[str, tuple[int, ...]]:
    """Who answers in each phase.

    Raises:
        BelowThresholdError: fewer than the protocol needs.
    """
    alive: dict[str, tuple[int, ...]] = {}
    for index, phase in enumerate(PHASES):
        alive[phase] = tuple(i for i in params.cohort if silences.get(i) not in PHASES[: index + 1])
        needed = params.min_survivors if index < 3 else params.quorum(len(alive["advertise"]))
        if phase == PHASES[-1]:
            needed = params.threshold
        if len(alive[phase]) < needed:
            raise BelowThresholdError(phase, needed, alive[phase], "silent")
    return alive
