"""What the same model reaches on the same split without privacy: centralised, each site alone, federated.

Simulation only: these see every row, or every site's own update, and no ε covers them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from fl.algorithms import Algorithm, Mean, Server
from fl.builders import build_algorithm, build_optimizer, example_of, unprotected
from fl.data import Records, SiteData
from fl.experiment import EVERYBODY, Experiment, pooled
from fl.metrics import SiteReport
from fl.model import Local, Params
from fl.rounds import RoundRecord

Alive = npt.NDArray[np.bool_]
Score = Callable[[Sequence[Params], Sequence[Local]], SiteReport]
Baseline = dict[str, float | None]


class Federation:
    """Sites that train in floats, with nothing between them.

    Args:
        algorithm: Without privacy.
        sites: Training rows by site.
        seed: Sets the sites' random streams.

    Attributes:
        state: The server's.
        local: Each site's own state, by name.
    """

    def __init__(self, algorithm: Algorithm, sites: Mapping[str, SiteData], *, seed: int) -> None:
        slots = algorithm.slots(max(len(site.y) for site in sites.values()))
        self._algorithm, self._key = algorithm, jax.random.key(seed)
        self._records = {name: Records.place(site.x, site.y, slots) for name, site in sites.items()}
        self.state = algorithm.init(algorithm.params)
        self.local = dict.fromkeys(sites, algorithm.local)

    @property
    def final(self) -> Params:
        """The model to publish."""
        return self._algorithm.final(self.state)

    def round(self, number: int, members: Iterable[str]) -> Mean:
        """One round of some of the sites; one whose update is not finite has no part in it, and keeps its own state."""
        updates, after = {}, {}
        places = {name: index for index, name in enumerate(self._records)}
        for name in members:
            key = jax.random.fold_in(jax.random.fold_in(self._key, places[name]), number)
            updates[name], after[name] = self._algorithm.client_update(
                self.state.params, self.local[name], self._records[name], key=key, broadcast=self.state.broadcast
            )
        mean, excluded = self._algorithm.plain(updates)
        self.local |= {name: local for name, local in after.items() if name not in excluded}
        self.state = self._algorithm.server_update(self.state, mean)
        return mean


def baselines(experiment: Experiment, score: Score, alive: Alive) -> dict[str, Baseline]:
    """Train the run's own model with its own algorithm, start and rounds, without privacy.

    Args:
        experiment: The run's. Where it trains on gradients per record, the baselines take each site's whole gradient.
        score: Reports on parameters and local state for each site.
        alive: (rounds, sites) whether a site is in the run's round: the federated baseline misses the same ones.

    Returns:
        "centralized": one model on all rows. "local": each site's own model on its own rows, scored on its own held-out
        rows. "federated": one model, missing the sites that the run misses.
    """
    sites, chosen = experiment.train, experiment.config
    bare = unprotected(chosen)
    server = Server(experiment.adapter, build_optimizer(chosen), chosen.server.average, chosen.rounds, None)
    # How many sites there are is part of an algorithm (SCAFFOLD divides by it), but of the server's half: sites compile once.
    many, single = (build_algorithm(bare, server, None, count, example_of(sites)) for count in (len(sites), 1))
    single = replace(single, client_update=many.client_update)
    everybody = np.ones((len(alive), 1), bool)
    federated = federate(many, sites, alive, seed=chosen.seed)
    alone = {name: federate(single, {name: site}, everybody, seed=chosen.seed) for name, site in sites.items()}
    together = federate(single, {EVERYBODY: pooled(sites)}, everybody, seed=chosen.seed)
    return {
        "centralized": _metrics(score([together.final] * len(sites), [together.local[EVERYBODY]] * len(sites))),
        "local": _metrics(
            score([each.final for each in alone.values()], [each.local[name] for name, each in alone.items()])
        ),
        "federated": _metrics(score([federated.final] * len(sites), [federated.local[name] for name in sites])),
    }


def federate(algorithm: Algorithm, sites: Mapping[str, SiteData], alive: Alive, *, seed: int) -> Federation:
    """Run an algorithm over some sites: `alive` (rounds, sites) says who takes part in each round."""
    federation = Federation(algorithm, sites, seed=seed)
    for number, members in enumerate(alive):
        federation.round(number, [name for name, present in zip(sites, members, strict=True) if present])
    return federation


def who_was_there(sites: Iterable[str], history: Sequence[RoundRecord]) -> Alive:
    """(rounds, sites) whether a site is in each round's sum."""
    names = list(sites)
    return np.array([[name in record.survivors for name in names] for record in history])


def _metrics(report: SiteReport) -> Baseline:
    measured: dict[str, Any] = dict(report["pooled"])
    return {**measured, "auc_site_mean": report["auc_site_mean"]}
