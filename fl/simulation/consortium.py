"""The sites and the server of a simulation in one process, and the harness that checks what no party could.

The parties talk through the same frames as between organisations. The harness around them also sees what no party may:
it compares every sum with the sites' inputs.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl.aggregation import Aggregate, Aggregator, Ideal, Plain, Secure
from fl.algorithms.base import Contribution
from fl.errors import RoundFailedError
from fl.experiment import Experiment
from fl.model import Local
from fl.site import Announcement, Entropy, Participation, Site, is_first, noise_source
from privacy.budget import Budget
from privacy.errors import BudgetExceededError, InputError
from privacy.ledger import Ledger, read_entries, witness
from privacy.ledger.chain import ChainError
from secagg.crypto.sealing import MLKEM_SEED_LENGTH, SERVER_ID, SUITES
from secagg.engines.inprocess import InProcessEngine, Tap
from secagg.errors import RoundError
from secagg.identity import Identity, Roster, ServerIdentity, SigningKey
from secagg.testing import seeded_entropy, silent_from

_LOG = logging.getLogger(__name__)


class _Observed(Participation):
    """A participation whose integers the harness can compare with the sum; no party ever could."""

    sent: Contribution | None = None

    def inputs(self) -> Contribution:
        self.sent = super().inputs()
        return self.sent


class Consortium:
    """The sites and the server of a simulation, and the harness that watches them.

    Args:
        experiment: What to run.
        ledgers: The sites' own ledgers by site name, open; empty without privacy.
        tap: Called with (phase, sender, frame) for every frame that reaches the server.
        keys: The server's signing key and each site's, as a run that goes on has them; None: fresh ones, or the test seed's.
        first: A round and the number of its first attempt in this process: a run that goes on may repeat a round.

    Attributes:
        sites: By client id.
        aggregate: One attempt at one round, checked by the harness.
        signer: The server's signing key, of its frames and of its ledger's head.
    """

    def __init__(
        self,
        experiment: Experiment,
        ledgers: Mapping[str, Ledger],
        tap: Tap | None = None,
        *,
        keys: tuple[SigningKey, Mapping[int, SigningKey]] | None = None,
        first: tuple[int, int] = (0, 0),
    ) -> None:
        self.experiment = experiment
        self._tap = tap
        self._first = first
        self._parts: Mapping[int, _Observed] = {}
        agreement, seed = experiment.agreement, experiment.agreement.test_seed
        self.signer, self._site_keys = party_keys(experiment) if keys is None else keys
        identities = {client: Identity(client, key) for client, key in self._site_keys.items()}
        draw, suite = _entropy(seed, SERVER_ID, 1), SUITES[agreement.suite]
        sealing = suite.key_pair(draw(MLKEM_SEED_LENGTH) if suite.hybrid else None, draw(32))
        self.server = ServerIdentity(self.signer, sealing)
        roster = Roster(
            clients={client: identity.public_key for client, identity in identities.items()},
            server_verify_key=self.server.verify_key,
            server_sealing_key=self.server.sealing_key,
        )
        self.sites = {
            client: Site(
                id=client,
                rows=rows,
                agreement=agreement,
                algorithm=experiment.algorithm,
                adapter=experiment.adapter,
                local=experiment.algorithm.local,
                key=jax.random.fold_in(jax.random.key(experiment.config.seed), client),
                identity=identities[client],
                roster=roster,
                noise=noise_source(agreement),
                ledger=ledgers.get(rows.name),
                budget=_lifetime_budget(experiment),
                entropy=_site_entropy(seed, client),
                secure_only=rows.name in experiment.config.simulation.secure_only,
            )
            for client, rows in enumerate(experiment.train.values())
        }
        self.aggregate: Aggregator = self._checked(self._aggregator(roster))

    @property
    def local(self) -> dict[str, Local]:
        """What each site keeps to itself, by name, in the order of client ids."""
        return {site.name: site.local for site in self.sites.values()}

    @property
    def ledgers(self) -> dict[str, Ledger]:
        """The sites' own ledgers, by name."""
        return {site.name: site.ledger for site in self.sites.values() if site.ledger is not None}

    def restore(self, local: Sequence[Local]) -> None:
        """Give each site its own state back, in the order of client ids."""
        for site, own in zip(self.sites.values(), local, strict=True):
            site.local = own

    def witness(self, ledger: Ledger) -> None:
        """Let every site hold the server's ledger against its own, and sign its head.

        Raises:
            ChainError: a site's ledger tells of another run than the server's; nothing is signed by that site, and the message
                names it.
        """
        lines, run = ledger.path.read_bytes(), self.experiment.agreement.run
        for client, site in self.sites.items():
            if site.ledger is not None:
                key = self._site_keys[client]
                try:
                    head = witness(lines, read_entries(site.ledger.path), run=run, site=client, signer=key)
                except ChainError as error:
                    raise ChainError(f"{site.ledger.path}, the ledger of site {site.name}: {error}") from error
                ledger.countersign(site.name, head, key=key.public_key.hex())

    def _aggregator(self, roster: Roster) -> Aggregator:
        mode, agreement, algorithm = (
            self.experiment.config.secagg.mode,
            self.experiment.agreement,
            self.experiment.algorithm,
        )
        if mode == "plain":
            return Plain(self._participants, self._silences, algorithm.plain)
        if mode == "ideal":
            return Ideal(agreement, algorithm, self._participants, self._silences)
        return Secure(agreement, algorithm, self._connect, self.server, roster)

    def _participants(self, announcement: Announcement) -> Mapping[int, Participation]:
        self._parts = {client: _Observed(site, announcement) for client, site in self.sites.items()}
        return self._parts

    def _silences(self, announcement: Announcement) -> Mapping[int, str]:
        """Planned silences befall the first attempt only, and that again where a process stopped and another goes on."""
        if not is_first(announcement, self._first):
            return {}
        planned = self.experiment.silences.get(announcement.round, {})
        return {client: planned[site.name] for client, site in self.sites.items() if site.name in planned}

    def _connect(self, announcement: Announcement) -> InProcessEngine:
        silences = self._silences(announcement)
        handlers = {
            client: silent_from(silences.get(client), part.handle)
            for client, part in self._participants(announcement).items()
        }
        return InProcessEngine(handlers, self._tap)

    def _checked(self, aggregate: Aggregator) -> Aggregator:
        """Fail the run where the sum is not that of the survivors' integers, or where a site refused.

        A site that refuses its own update (NaN, beyond the limit), or whose data set's budget is used up, is a dropout, as
        it is between organisations: that alone fails no round. Any other refusal means that the parties of one process do not agree, which they must.
        """

        def checked(announcement: Announcement) -> Aggregate:
            try:
                result = aggregate(announcement)
            except RoundError as error:
                self._require_no_refusal(announcement, error)
                raise
            self._require_no_refusal(announcement, None)
            for block, total in result.sums.items():
                sent = [self._parts[client].sent for client in result.survivors]
                expected = sum(values[block] for values in sent if values is not None)
                if not np.array_equal(total, expected):
                    raise RoundFailedError(
                        f"round {announcement.round}: block {block} of the sum is not the sum of the survivors' inputs"
                    )
            return result

        return checked

    def _require_no_refusal(self, announcement: Announcement, cause: Exception | None) -> None:
        for part in self._parts.values():
            if part.refusal is None:
                continue
            message = f"round {announcement.round}: site {part.site.name} refused: {part.refusal}"
            if cause is not None or not isinstance(part.refusal, InputError | BudgetExceededError):
                raise RoundFailedError(message) from (part.refusal if cause is None else cause)
            _LOG.warning("%s; it counts as a dropout", message)


def party_keys(experiment: Experiment) -> tuple[SigningKey, dict[int, SigningKey]]:
    """Signing keys of the server and of each site: those of the test seed where there is one, else fresh ones."""
    seed = experiment.agreement.test_seed

    def key(party: int) -> SigningKey:
        return SigningKey(Ed25519PrivateKey.from_private_bytes(_entropy(seed, party)(32)))

    return key(SERVER_ID), {client: key(client) for client in experiment.parties}


def _lifetime_budget(experiment: Experiment) -> Budget | None:
    """What every simulated site allows on its data set over all runs."""
    policy = experiment.config.simulation
    if policy.lifetime_epsilon is None or experiment.agreement.plan is None:
        return None
    return Budget(policy.lifetime_epsilon, policy.lifetime_delta)


def _entropy(seed: int | None, *context: int) -> Entropy:
    return os.urandom if seed is None else seeded_entropy(seed, *context)


def _site_entropy(seed: int | None, client: int) -> Callable[[int, int], Entropy]:
    return lambda number, attempt: _entropy(seed, client, number, attempt)
