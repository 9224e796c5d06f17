"""Many clients in one compiled program, as a run sees them: without keys, ledgers and policies of their own."""

import dataclasses
import logging
import math
import os
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fl.aggregation import Aggregate, Silences
from fl.errors import ConfigError
from fl.experiment import Experiment
from fl.model import Local
from fl.simulation.aggregator import CohortAggregator
from fl.simulation.cohort import Cohort, Plainly
from fl.site import Announcement, is_first, noise_source, with_noise
from privacy.errors import InputError
from privacy.ledger import Ledger
from secagg.cores import CORES
from secagg.params import PHASES
from secagg.testing import simulate_round

_LOG = logging.getLogger(__name__)
_SILENT = 0x73696C656E74  # sets this stream apart from every other use of the seed


def use_all_cores() -> None:
    """Let JAX see a device for each core, over which a cohort is split; XLA keeps one busy with small models.

    It must come before anything is computed; later, or where XLA_FLAGS says how many there are, it changes nothing.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    try:
        jax.config.update("jax_num_cpu_devices", CORES)  # type: ignore[no-untyped-call]  # JAX's own
    except RuntimeError:
        _LOG.info("JAX has started already: a cohort runs on the %d device(s) that it has", jax.local_device_count())


class Crowd:
    """The clients of a cohort simulation.

    Args:
        experiment: What to run; it has a population.
        first: The round and the attempt that this process begins with; planned silences befall that attempt, as they would
            the first one of a run that nobody stopped.

    Attributes:
        ledgers: None of the clients has one.
    """

    def __init__(self, experiment: Experiment, first: tuple[int, int] = (0, 0)) -> None:
        population = experiment.population
        if population is None:
            raise ConfigError('simulation.engine: "cohort" needs a population of clients')
        config, algorithm, agreement = experiment.config, experiment.algorithm, experiment.agreement
        self._experiment, self._first = experiment, first
        self._secure = config.secagg.mode == "secure"
        encoding = algorithm.encoding
        if encoding is None:
            raise ConfigError('simulation.engine: "cohort" does not know this algorithm')
        plain = Plainly(encoding.layout, getattr(encoding, "uniform", False), getattr(encoding, "extra", ()))
        self._aggregator = CohortAggregator(
            Cohort(
                algorithm,
                population,
                plain if config.secagg.mode == "plain" else encoding,
                seed=config.seed,
                chunk=config.simulation.chunk,
            ),
            agreement,
            experiment.adapter,
            clients=config.simulation.cohort,
            silences=self._silences,
            noise=noise_source(agreement),
            upload=encoding.upload,
        )
        self.ledgers: Mapping[str, Ledger] = {}

    def aggregate(self, announcement: Announcement) -> Aggregate:
        """One attempt at one round; raises what `CohortAggregator` and the protocol raise."""
        return self._by_protocol(announcement) if self._secure else self._aggregator(announcement)

    @property
    def local(self) -> dict[str, Local]:
        """What each client keeps to itself, by name, in the order of client ids; nothing where nobody keeps anything."""
        leaves, population = self._aggregator.local, self._experiment.population
        if not leaves or population is None:
            return {}
        return {
            name: {leaf: jnp.asarray(rows[client]) for leaf, rows in leaves.items()}
            for client, name in population.names.items()
        }

    def restore(self, local: Sequence[Local]) -> None:
        """Give each client its own state back, in the order of client ids."""
        for client, own in enumerate(local):
            self._aggregator.keep(client, own)

    def witness(self, ledger: Ledger) -> None:
        """No client has a ledger to hold against the run's."""

    def _silences(self, announcement: Announcement) -> Silences:
        """A part of the round's clients goes silent before its vectors leave, in the first attempt."""
        rate = self._experiment.config.simulation.drop_rate
        if rate == 0 or not is_first(announcement, self._first):
            return {}
        ids = self._aggregator.members(announcement.round)
        draw = np.random.default_rng([_SILENT, self._experiment.config.seed, announcement.round])
        return dict.fromkeys(draw.choice(ids, math.floor(rate * len(ids)), replace=False).tolist(), PHASES[2])

    def _by_protocol(self, announcement: Announcement) -> Aggregate:
        """The real round over what the compiled program gives for each client."""
        experiment, agreement = self._experiment, self._experiment.agreement
        ids = self._aggregator.members(announcement.round).tolist()
        agreed = dataclasses.replace(agreement, sites={client: agreement.sites[client] for client in ids})
        params = agreed.round_params(announcement.round, announcement.model_hash, clip=announcement.clip)
        silent, refused = dict(self._silences(announcement)), {}
        inputs, after = {}, {}
        for client in ids:
            try:
                values, after[client] = self._aggregator.contribution(announcement, client)
            except InputError as error:
                refused[client], silent[client] = str(error), PHASES[2]
                values = {block.name: np.zeros(block.length, np.int64) for block in params.blocks}
            inputs[client] = with_noise(values, self._aggregator.noise, agreement, announcement, client)
        out = simulate_round(params, inputs, drops=silent, seed=agreement.test_seed)
        for client in out.survivors:
            if client not in out.dropped:
                self._aggregator.keep(client, after[client])
        result = Aggregate.of(out, experiment.algorithm, announcement.clip)
        # A server would see no reason of a client's own.
        return dataclasses.replace(result, refused={} if agreement.plan is not None else refused)
