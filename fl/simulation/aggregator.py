"""Rounds of a cohort in one compiled program, plain or ideal: what `fl.rounds.Coordinator` asks for a round."""

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from fl.aggregation import Aggregate, Silences, still_there
from fl.algorithms import Mean, SiteUpdate
from fl.algorithms.base import Contribution, Int64
from fl.algorithms.encoding import mean_of
from fl.algorithms.fedavg import on_site
from fl.algorithms.training import Upload
from fl.data import Records
from fl.data.population import Ids, sample
from fl.model import Adapter, Local, Vector
from fl.simulation.cohort import Cohort, Passes, Plainly, Task
from fl.site import Agreement, Announcement, stream_of
from privacy.errors import InputError, PlanError
from privacy.noise import NoiseSource
from privacy.plan import Plan
from privacy.sampling import MAX_SIGMA
from secagg.errors import BelowThresholdError
from secagg.params import PHASES

_LOG = logging.getLogger(__name__)
_EXPLAINED = 5  # refused updates whose leaf is looked for in a round


def nobody_silent(_announcement: Announcement) -> Silences:
    """No planned silences."""
    return {}


@dataclass
class CohortAggregator:
    """An aggregator that trains, encodes and adds up all clients of a round in one compiled program.

    Args:
        cohort: The programs. With `Plainly` as encoding the mean is that of floats, else the integers are those that
            the protocol would add up.
        agreement: What all parties agreed on; its sites are the population's clients.
        adapter: The model.
        clients: Clients per round, drawn anew in each from the public seed; None: everybody, always.
        silences: The phase from which a client is silent in an attempt, by client id; those of the round's cohort count.
        noise: The source of noise; needed with a plan.
        upload: What clients send, for a float mean.

    Attributes:
        local: (size, ...) each client's local leaves, by name.

    Raises:
        PlanError: a plan without a noise source.

    Guarantees:
        Under a test seed, the sums are bit for bit those of `contribution` of each survivor, noise included; without
        one, the noise of a sum is drawn once with the variance of all its shares, the same law up to 1e-70.
        A client whose update is not finite, or does not fit, is left out and named; its local leaves stay. So do those
        of a round that failed.
        A round is a function of the seed, the model and the announcement: nothing in it has an order of arrival.
    """

    cohort: Cohort
    agreement: Agreement
    adapter: Adapter
    clients: int | None = None
    silences: Callable[[Announcement], Silences] = nobody_silent
    noise: NoiseSource | None = None
    upload: Upload = "delta"
    local: dict[str, npt.NDArray[Any]] = field(init=False, repr=False)
    _open: tuple[tuple[int, int, str], Ids, Passes] | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if self.agreement.plan is not None and self.noise is None:
            raise PlanError("a plan needs a noise source")
        size = self.cohort.population.size
        self.local = {
            name: np.repeat(np.asarray(leaf)[np.newaxis], size, axis=0)
            for name, leaf in self.cohort.algorithm.local.items()
        }

    def __call__(self, announcement: Announcement) -> Aggregate:
        """Take a round: the cohort, those who are not silent, their sum, and its mean.

        Raises:
            BelowThresholdError: fewer clients were left than the protocol needs; a float mean needs one.
        """
        cohort = self.members(announcement.round)
        silences = _among(cohort, self.silences(announcement))
        early = [client for client, phase in silences.items() if phase in PHASES[:3]]
        ids = np.setdiff1d(cohort, np.array(early, np.int64), assume_unique=True)
        if not len(ids):
            raise BelowThresholdError("mask", 1, (), "silent")
        outcome = self._passes(announcement, ids).all()
        survivors, refused = ids[outcome.ok], ids[~outcome.ok]
        silences |= dict.fromkeys(refused.tolist(), "mask")
        reasons = self._reasons(announcement, refused)
        result = (self._exact if self.cohort.exact else self._plain)(
            announcement, cohort, survivors, silences, outcome.sums
        )
        late = np.array([client for client, phase in silences.items() if phase in PHASES[3:]], np.int64)
        kept = outcome.ok & ~np.isin(ids, late)
        for name, leaf in outcome.local.items():
            self.local[name][ids[kept]] = leaf[kept]
        said = {} if self.agreement.plan is not None else reasons  # why is a client's own, which no noise covers
        return dataclasses.replace(result, dropped=dict(sorted(silences.items())), refused=said)

    def members(self, number: int) -> Ids:
        """The cohort of a round, ascending."""
        size = self.cohort.population.size
        if self.clients is None:
            return np.arange(size)
        return sample(size, self.clients, seed=self.cohort.seed, number=number)

    def contribution(self, announcement: Announcement, client: int) -> tuple[Contribution, Local]:
        """What one client of a round sends, before noise, and its local leaves after training: for the real protocol.

        The executable is that of the whole sum. Local leaves are kept by `keep`, once the round has come that far.

        Raises:
            InputError: the update is refused; the message names the leaf where it can be told.
            KeyError: the client is not in the round.
        """
        ids = self.members(announcement.round)
        position = int(np.searchsorted(ids, client))
        if position == len(ids) or ids[position] != client:
            raise KeyError(client)
        outcome = self._passes(announcement, ids).only(position)
        if not outcome.ok[position]:
            raise InputError(self._reasons(announcement, np.array([client]))[client])
        return outcome.sums, {name: jnp.asarray(leaf[position]) for name, leaf in outcome.local.items()}

    def keep(self, client: int, local: Local) -> None:
        """Keep a client's local leaves after a round."""
        for name, leaf in local.items():
            self.local[name][client] = np.asarray(leaf)

    def _passes(self, announcement: Announcement, ids: Ids) -> Passes:
        key = (announcement.round, announcement.attempt, announcement.model_hash)
        if self._open is not None and self._open[0] == key and np.array_equal(self._open[1], ids):
            return self._open[2]
        told = {name: jnp.asarray(vector, jnp.float32) for name, vector in announcement.broadcast.items()}
        clip = announcement.clip
        if clip is None:
            clip = self.agreement.plan.clip if self.agreement.plan is not None else 1.0
        task = Task(self.adapter.split(announcement.model), told, announcement.round, clip)
        passes = self.cohort.passes(task, ids, {name: leaf[ids] for name, leaf in self.local.items()})
        self._open = (key, ids, passes)
        return passes

    def _plain(
        self, _announcement: Announcement, _cohort: Ids, survivors: Ids, _silences: Silences, sums: Mapping[str, Any]
    ) -> Aggregate:
        if not len(survivors):
            raise BelowThresholdError("mask", 1, (), "no finite update")
        weight, encoding = int(sums["weight"][0]), self.cohort.encoding
        if weight == 0:
            return Aggregate(Mean(None, weight=0), tuple(survivors.tolist()), {})

        def average(name: str) -> Vector:
            mean: Vector = sums[name].astype(np.float64) / weight
            return mean

        extra = {name: average(name) for name in encoding.extra} if isinstance(encoding, Plainly) else {}
        mean = mean_of(self.upload, average("update"), weight=weight, loss=float(average("loss")[0]), extra=extra)
        return Aggregate(mean, tuple(survivors.tolist()), {})

    def _exact(
        self, announcement: Announcement, cohort: Ids, survivors: Ids, silences: Silences, sums: Mapping[str, Int64]
    ) -> Aggregate:
        names = self.cohort.population.names
        agreed = dataclasses.replace(self.agreement, sites={client: names[client] for client in cohort.tolist()})
        params = agreed.round_params(announcement.round, announcement.model_hash, clip=announcement.clip)
        still_there(params, silences)
        plan, noised = self.agreement.plan, dict(sums)
        if plan is not None:
            noised = {
                name: total + self._noise(plan, announcement, survivors, name, len(total))
                for name, total in sums.items()
            }
        return Aggregate(
            self.cohort.algorithm.decode(noised, announcement.clip),
            tuple(survivors.tolist()),
            {},
            noised,
            transcript=params.context.hex(),
        )

    def _noise(self, plan: Plan, announcement: Announcement, survivors: Ids, block: str, length: int) -> Int64:
        if self.noise is None:
            raise PlanError("a plan needs a noise source")
        total = np.zeros(length, np.int64)
        if self.agreement.test_seed is not None:
            for client in survivors.tolist():
                stream = stream_of(self.agreement, announcement, client)
                total += self.noise.share(plan.sigma_local, length, purpose=block, **stream)
            return total
        # As many shares together as the sampler can draw at once: sums of discrete Gaussians are discrete Gaussians.
        most = max(1, math.floor((MAX_SIGMA / plan.sigma_local) ** 2 * (1 - 1e-9)))
        for group, start in enumerate(range(0, len(survivors), most)):
            shares = min(most, len(survivors) - start)
            sigma = plan.sigma_local * math.sqrt(shares)
            stream = stream_of(self.agreement, announcement, group)
            total += self.noise.share(sigma, length, purpose=f"{block}, summed", **stream)
        return total

    def _reasons(self, announcement: Announcement, refused: Ids) -> dict[int, str]:
        """Why updates are refused: the first few are computed again as a site would, which names the leaf."""
        reasons = dict.fromkeys(refused.tolist(), "the update is not finite, or does not fit the encoding")
        for client in refused.tolist()[:_EXPLAINED] if self.cohort.exact else ():
            try:
                self.cohort.algorithm.encode(self._again(announcement, client), announcement.clip)
            except InputError as error:
                reasons[client] = str(error)
        for client, reason in reasons.items():
            _LOG.warning(
                "round %d: client %s is left out: %s", announcement.round, self.cohort.population.names[client], reason
            )
        return reasons

    def _again(self, announcement: Announcement, client: int) -> SiteUpdate:
        cohort, local = self.cohort, {name: jnp.asarray(leaf[client]) for name, leaf in self.local.items()}
        records = Records(*map(np.asarray, cohort.records(client)))
        params, told = self.adapter.unravel(announcement.model), announcement.broadcast
        update: SiteUpdate
        update, _ = on_site(cohort.update)(
            params, local, records, key=cohort.key(client, announcement.round), broadcast=told
        )
        return update


def _among(cohort: Ids, silences: Silences) -> dict[int, str]:
    """The silences of the cohort's members."""
    named = np.array(sorted(silences), np.int64)
    return {client: silences[client] for client in named[np.isin(named, cohort)].tolist()}
