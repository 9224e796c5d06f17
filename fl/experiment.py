"""From a configuration to everything that a run needs, checked before anything is written or sent."""

import difflib
import hashlib
import itertools
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import rfc8785
from flax import nnx

from fl import algorithms, model
from fl.algorithms import Algorithm, ClippedEncoding, LocalTraining, Server, WeightedEncoding
from fl.config import Config, FedAvg
from fl.data import SiteData, load_csv, load_heart, load_schema, split_by_record
from fl.data.heart import HEART_FOLDER
from fl.errors import ConfigError, DataError
from fl.model import Adapter
from fl.site import Agreement, require_capacity, require_secure
from privacy.adaptive import AdaptiveClip
from privacy.codec import FixedPoint
from privacy.ledger.head import is_party
from privacy.plan import Plan, PlanWarning
from secagg.params import PHASES, RoundParams, SlackWarning

Silences = Mapping[int, Mapping[str, str]]


@dataclass(frozen=True)
class Experiment:
    """A configuration made concrete.

    Attributes:
        config: As read.
        train: Training rows by site.
        test: Held-out rows by site.
        adapter: The model, at its initial parameters.
        server: The server's optimiser and average.
        algorithm: Both sides' functions.
        agreement: What all parties agree on.
        silences: {round: {site: phase from which it is silent}}.
        notes: What the plan or the round's parameters warn of.
    """

    config: Config
    train: dict[str, SiteData]
    test: dict[str, SiteData]
    adapter: Adapter
    server: Server
    algorithm: Algorithm
    agreement: Agreement
    silences: Silences
    notes: tuple[str, ...]


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
        tables, schema = _load(config)
        split = {
            name: split_by_record(s, seed=config.seed, test_fraction=config.data.test_fraction)
            for name, s in tables.items()
        }
        train, test = ({name: parts[index] for name, parts in split.items()} for index in (0, 1))
        features = next(iter(train.values())).x.shape[1]
        adapter = Adapter.of(_build(config, features))
        optimizer = algorithms.optimizer(
            "server", config.server.optimizer, config.server.learning_rate, config.server.options
        )
        plan = _plan(config, len(train), adapter.schema.dimension)
        server = Server(adapter, optimizer, config.server.average, config.rounds, plan)
        algorithm = _algorithm(config, server, plan, len(train), features)
        agreement = Agreement(
            run=run,
            sites=dict(enumerate(train)),
            blocks=algorithm.blocks,
            plan=plan,
            experiment=_hash(config, schema),
            schema=adapter.schema.hash,
            threshold=config.secagg.threshold,
            suite=config.secagg.suite,
            secure=config.secagg.mode == "secure",
            test_seed=test_seed,
        )
        for site in train.values():
            require_capacity(site, algorithm)
            if not is_party(site.name):
                raise DataError(f"site {ascii(site.name)[:80]}: a name has 1 to 200 characters that can be printed")
        for name in config.simulation.secure_only:
            require_secure(_known("simulation.secure_only", name, train), agreement)
        _require_distinct(train, plan.silos if plan is not None else 1)
        if config.secagg.mode != "plain":
            _warn_of_differences(
                agreement.round_params(0, adapter.hash(adapter.params), quiet=False), plan, config.rounds
            )
    notes = tuple(str(w.message) for w in caught if issubclass(w.category, PlanWarning | SlackWarning))
    for other in caught:
        if not issubclass(other.category, PlanWarning | SlackWarning):
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    planned = _silences(config, tuple(train)) if silences is None else silences
    return Experiment(config, train, test, adapter, server, algorithm, agreement, planned, notes)


def _load(config: Config) -> tuple[dict[str, SiteData], str]:
    """The sites' tables, and the hash of the schema that encodes them."""
    if config.data.path is None:
        return load_heart(), load_schema(HEART_FOLDER / "schema.toml").hash
    folder = Path(config.data.path)
    files = sorted(folder.glob("site_*.csv"))
    if not files:
        raise DataError(f"{folder}: has no site_*.csv")
    schema = load_schema(folder / config.data.schema)
    sites = [load_csv(file, schema, name=file.stem.removeprefix("site_")) for file in files]
    return {site.name: site for site in sites}, schema.hash


def _build(config: Config, features: int) -> nnx.Module:
    """The model at its initial parameters; whatever keeps it from being built is the configuration's fault."""
    kind = config.model.kind
    try:
        built = model.factory(kind, config.model.hidden)(features, nnx.Rngs(config.seed))
    except (TypeError, ValueError, OverflowError, MemoryError, RuntimeError) as error:
        raise ConfigError(f'model.kind: "{kind}" cannot be built for {features} features: {error}') from error
    if not isinstance(built, nnx.Module):
        raise ConfigError(f'model.kind: "{kind}" gives a {type(built).__name__}, not an nnx.Module')
    return built


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


def _plan(config: Config, sites: int, dimension: int) -> Plan | None:
    privacy = config.privacy
    if privacy is None:
        return None
    return Plan.solve(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        unit=privacy.unit,
        relation=privacy.relation or ("add-remove" if privacy.unit == "record" else "zero-out"),
        sites=sites,
        dropouts=privacy.dropouts,
        colluders=privacy.colluders,
        clip=1.0 if privacy.clip is None and privacy.total_clip is None else privacy.clip,
        total_clip=privacy.total_clip,
        silos=privacy.silos,
        adaptive=AdaptiveClip(**msgspec.structs.asdict(privacy.adaptive)) if privacy.adaptive is not None else None,
        records_per_site=privacy.records_per_site or 1,
        dimension=dimension,
        bits=privacy.bits,
        rounds=config.rounds,
        divisor=privacy.divisor,
    )


def _algorithm(config: Config, server: Server, plan: Plan | None, sites: int, features: int) -> Algorithm:
    loss, chosen = model.LOSSES[config.model.loss], config.algorithm
    layout = server.adapter.schema.layout
    if isinstance(chosen, FedAvg):
        local = algorithms.optimizer("algorithm", chosen.optimizer, chosen.learning_rate, chosen.options)
        training = LocalTraining(local, chosen.batch_size, chosen.local_epochs, chosen.local_steps)
        encoding: ClippedEncoding | WeightedEncoding
        if plan is not None:
            encoding = ClippedEncoding(layout, plan)
        else:
            values = FixedPoint(chosen.limit, chosen.fraction_bits, server.adapter.schema.dimension)
            encoding = WeightedEncoding(layout, values, chosen.max_weight)
        return algorithms.fedavg(server, loss, training, encoding, sites)
    if plan is None:
        raise ConfigError('algorithm.name: "dp_fedsgd" needs a [privacy] section')
    return algorithms.dp_fedsgd(server, loss, plan, features=features)


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


def _hash(config: Config, schema: str) -> str:
    """Of everything that determines a site's update, besides its rows.

    Model, algorithm, server step, seed, rounds, the part that is held out, and how a row is encoded.
    """
    parts = ("seed", "rounds", "model", "algorithm", "server")
    chosen = {part: msgspec.to_builtins(getattr(config, part)) for part in parts}
    chosen |= {"schema": schema, "test_fraction": config.data.test_fraction}
    return hashlib.sha256(rfc8785.dumps(chosen)).hexdigest()
