"""From a configuration to everything that a run needs, checked before anything is written or sent."""

import difflib
import hashlib
import itertools
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import rfc8785

from fl.algorithms import Algorithm, Server
from fl.builders import (
    build_adapter,
    build_algorithm,
    build_optimizer,
    build_plan,
    example_of,
    require_fit,
    unprotected,
)
from fl.data import (
    ArrayPopulation,
    Population,
    Schema,
    SiteData,
    load_csv,
    load_heart,
    load_population,
    load_schema,
    load_source,
    split_by_record,
)
from fl.data.heart import HEART_FOLDER
from fl.errors import ConfigError, DataError, ModelError
from fl.model import Adapter
from fl.sections import Config
from fl.site import Agreement, require_capacity, require_secure
from privacy.ledger.head import is_party
from privacy.plan import Plan, PlanWarning
from secagg.params import PHASES, RoundParams, SlackWarning

Silences = Mapping[int, Mapping[str, str]]
Sites = dict[str, SiteData]
EVERYBODY = "everybody"  # the name of the one site of a centralised run


@dataclass(frozen=True)
class Experiment:
    """A configuration made concrete.

    Attributes:
        config: As read; without privacy and protocol where the mode is not federated.
        schema: Of the sites' tables; None where records are no tables.
        train: Training rows by site.
        test: Held-out rows by site.
        adapter: The model, at its initial parameters.
        server: The server's optimiser and average.
        algorithm: Both sides' functions.
        agreement: What all parties agree on.
        population: The clients of `simulation.engine = "cohort"`, or None.
        silences: {round: {site: phase from which it is silent}}.
        notes: What the plan or the round's parameters warn of.
    """

    config: Config
    schema: Schema | None
    train: dict[str, SiteData]
    test: dict[str, SiteData]
    adapter: Adapter
    server: Server
    algorithm: Algorithm
    agreement: Agreement
    population: Population | None
    silences: Silences
    notes: tuple[str, ...]

    @property
    def parties(self) -> Mapping[int, str]:
        """Names by client id of those that have keys and ledgers of their own; nobody in a cohort has."""
        return self.agreement.sites if self.population is None else {}


def prepare(config: Config, run: str, silences: Silences | None = None, test_seed: int | None = None) -> Experiment:
    """Load, split, build and check.

    Args:
        config: The experiment.
        run: The run's unique name.
        silences: Planned silences; None: as `config.simulation` says.
        test_seed: Fixes noise and protocol secrets, or None.

    Raises:
        ConfigError: a key is wrong; DataError: a table is wrong or over the public cap; ModelError: the model cannot be
            trained this way; PlanError: the privacy plan is infeasible; ParameterError: the round is.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PlanWarning)
        config = unprotected(config) if config.mode != "federated" else config
        population, train, test, schema = _records(config)
        example = example_of(train or test)
        if config.mode == "centralized":
            train = {EVERYBODY: pooled(train)}
        adapter = build_adapter(config, example)
        require_fit(config, adapter, train or test)
        names: Mapping[int, str] = dict(enumerate(train)) if population is None else population.names
        members = 1 if config.mode == "local" else config.simulation.cohort or len(names)
        if members > len(names):
            raise ConfigError(f"simulation.cohort: {members} clients a round, and there are {len(names)}")
        plan = build_plan(config, members, adapter.schema.dimension)
        server = Server(adapter, build_optimizer(config), config.server.average, config.rounds, plan)
        algorithm = build_algorithm(
            config, server, plan, members, example, everybody=1 if config.mode == "local" else len(names)
        )
        agreement = Agreement(
            run=run,
            sites=names,
            blocks=algorithm.blocks,
            plan=plan,
            experiment=_hash(config, schema),
            schema=adapter.fingerprint,
            threshold=config.secagg.threshold,
            suite=config.secagg.suite,
            secure=config.secagg.mode == "secure",
            test_seed=test_seed,
        )
        _require_sites(config, train, algorithm, agreement)
        if config.secagg.mode != "plain":
            first = replace(agreement, sites={client: names[client] for client in range(members)})
            _warn_of_differences(first.round_params(0, adapter.hash(adapter.params), quiet=False), plan, config.rounds)
        population = _population(config, population, train, algorithm)
    notes = tuple(str(w.message) for w in caught if issubclass(w.category, PlanWarning | SlackWarning))
    for other in caught:
        if not issubclass(other.category, PlanWarning | SlackWarning):
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    if silences is None:
        silences = _silences(config, tuple(train)) if population is None else {}
    return Experiment(config, schema, train, test, adapter, server, algorithm, agreement, population, silences, notes)


def _population(config: Config, generated: Population | None, train: Sites, algorithm: Algorithm) -> Population | None:
    """The clients of the engine "cohort": generated ones, or those with these records."""
    if config.simulation.engine != "cohort":
        return None
    if generated is None:
        return ArrayPopulation(train, algorithm.slots)
    if algorithm.local:
        raise ModelError(
            f"leaf {min(algorithm.local)} stays at its client from round to round, and generated clients keep nothing"
        )
    return generated


def pooled(sites: Mapping[str, SiteData]) -> SiteData:
    """All sites' rows in one table, in the order given."""
    parts = list(sites.values())
    fingerprint = hashlib.sha256("".join(site.fingerprint for site in parts).encode()).hexdigest()
    return SiteData(
        name=EVERYBODY,
        x=np.concatenate([site.x for site in parts]),
        y=np.concatenate([site.y for site in parts]),
        features=parts[0].features,
        fingerprint=fingerprint,
    )


def _records(config: Config) -> tuple[Population | None, Sites, Sites, Schema | None]:
    """A population that is generated, or the sites' records to train on; those held out; the schema where they are tables."""
    if config.data.population is not None:
        population, held_out = load_population(config.data.population, config.seed)
        return population, {}, held_out, None
    tables, schema = _load(config)
    fraction = config.data.test_fraction
    parts = {name: split_by_record(site, seed=config.seed, test_fraction=fraction) for name, site in tables.items()}
    train, test = ({name: pair[index] for name, pair in parts.items()} for index in (0, 1))
    return None, train, test, schema


def _load(config: Config) -> tuple[dict[str, SiteData], Schema | None]:
    """The sites' records, and the schema that encodes them where they are tables."""
    if config.data.source is not None:
        return load_source(config.data.source, config.seed), None
    if config.data.path is None:
        return load_heart(), load_schema(HEART_FOLDER / "schema.toml")
    folder = Path(config.data.path)
    files = sorted(folder.glob("site_*.csv"))
    if not files:
        raise DataError(f"{folder}: has no site_*.csv")
    schema = load_schema(folder / config.data.schema)
    sites = [load_csv(file, schema, name=file.stem.removeprefix("site_")) for file in files]
    return {site.name: site for site in sites}, schema


def _require_sites(config: Config, train: Sites, algorithm: Algorithm, agreement: Agreement) -> None:
    """What every site must be, before anybody trains."""
    for site in train.values():
        require_capacity(site, algorithm)
        if not is_party(site.name):
            raise DataError(f"site {ascii(site.name)[:80]}: a name has 1 to 200 characters that can be printed")
    for name in config.simulation.secure_only:
        require_secure(_known("simulation.secure_only", name, train), agreement)
    _require_distinct(train, agreement.plan.silos if agreement.plan is not None else 1)


def _require_distinct(train: Mapping[str, SiteData], silos: int) -> None:
    """A table that more sites hold than a plan says may hold a person's records counts more often than it allows for."""
    owners: dict[str, list[str]] = {}
    for name, site in train.items():
        same = owners.setdefault(site.fingerprint, [])
        same.append(name)
        if len(same) > silos and len(site.y):
            allowed = "" if silos == 1 else f"; privacy.silos = {silos} allows for that many"
            raise DataError(f"sites {' and '.join(same)} hold the same table{allowed}")


def _warn_of_differences(params: RoundParams, plan: Plan | None, rounds: int) -> None:
    """Two sums whose survivors differ by one site speak of that site alone, so what covers a site matters."""
    constant = params.min_survivors == len(params.cohort)
    if rounds < 2 or constant or (plan is not None and plan.unit == "client"):
        return
    cover = (
        "and without [privacy] nothing covers it" if plan is None else "and the noise covers its records, not the site"
    )
    warnings.warn(
        f"the survivors of two rounds may differ by one site: the difference of their sums speaks of that site alone, {cover}",
        PlanWarning,
        stacklevel=2,
    )


def _silences(config: Config, sites: tuple[str, ...]) -> Silences:
    """One site goes silent in a part of the rounds: spread over the run, each phase in turn, chosen by the seed."""
    wanted = config.simulation.drop_site
    if wanted is not None:
        _known("simulation.drop_site", wanted, sites)
    draw = np.random.default_rng([config.seed, 1])
    site = wanted or sites[int(draw.integers(len(sites)))]
    count = round(config.simulation.drop_rate * config.rounds)
    edges = np.linspace(0, config.rounds, count + 1).astype(int)
    first = int(draw.integers(len(PHASES)))
    return {
        int(draw.integers(low, high)): {site: PHASES[(first + index) % len(PHASES)]}
        for index, (low, high) in enumerate(itertools.pairwise(edges))
    }


def _known(key: str, name: str, sites: Iterable[str]) -> str:
    """The name, where there is such a site."""
    names = list(sites)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"sites: {', '.join(names)}"
        raise ConfigError(f"{key}: there is no site {name!r}; {hint}")
    return name


def _hash(config: Config, schema: Schema | None) -> str:
    """Of everything that determines a site's update, besides its rows.

    Model, algorithm, server step, seed, rounds, the part that is held out, and how a row is encoded.
    """
    parts = ("seed", "rounds", "mode", "model", "algorithm", "server")
    chosen = {part: msgspec.to_builtins(getattr(config, part)) for part in parts}
    chosen |= {
        "schema": config.data.source or config.data.population if schema is None else schema.hash,
        "test_fraction": config.data.test_fraction,
    }
    return hashlib.sha256(rfc8785.dumps(chosen)).hexdigest()
