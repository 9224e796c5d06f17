"""A whole consortium in one process: the sites, the server, planned silences, and what only a simulation may look at.

The parties talk through the same frames as between organisations. The harness around them also sees what no party may:
it compares every sum with the sites' inputs, evaluates on held-out rows, and trains baselines.
"""

import fcntl
import json
import logging
import math
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flax import nnx

from fl.aggregation import Aggregate, Aggregator, Ideal, Plain, Secure
from fl.algorithms import ServerState
from fl.algorithms.base import Contribution
from fl.baselines import Baseline, baselines, scorer
from fl.checkpoint import Checkpoints
from fl.config import Config, dump_config
from fl.errors import RoundFailedError, RunError
from fl.experiment import Experiment, Silences, prepare
from fl.files import append_line, write_file
from fl.metrics import SiteReport
from fl.model import LOSSES, Params
from fl.report import write_report
from fl.rounds import Coordinator, RoundRecord
from fl.site import Announcement, Entropy, Participation, Site
from privacy.budget import Budget
from privacy.errors import BudgetExceededError, InputError
from privacy.ledger import Ledger, read_entries, witness
from privacy.noise import NoiseSource
from secagg.crypto.sealing import MLKEM_SEED_LENGTH, SERVER_ID, SUITES
from secagg.engines.inprocess import InProcessEngine, Tap
from secagg.errors import RoundError
from secagg.identity import Identity, Roster, ServerIdentity
from secagg.params import PHASES
from secagg.testing import seeded_entropy, silent_from

_LOG = logging.getLogger(__name__)
TURN_TIMEOUT_S = 600.0  # how long a run waits for another one on the same data

Progress = Callable[[RoundRecord], None]


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        history: Its committed rounds.
        model: The published model, in evaluation mode.
        ledger: Path of the run's ledger, or None without privacy.
        survivors: The sites in each round's sum.
        summary: What result.json holds.
        folder: The run folder.
        notes: What the plan or the round's parameters warn of.
    """

    history: tuple[RoundRecord, ...]
    model: nnx.Module
    ledger: Path | None
    survivors: tuple[tuple[str, ...], ...]
    summary: dict[str, Any]
    folder: Path
    notes: tuple[str, ...]


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

    Attributes:
        sites: By client id.
        aggregate: One attempt at one round, checked by the harness.
        signer: The server's signing key, of its frames and of its ledger's head.
    """

    def __init__(self, experiment: Experiment, ledgers: Mapping[str, Ledger], tap: Tap | None = None) -> None:
        self.experiment = experiment
        self._tap = tap
        self._parts: Mapping[int, _Observed] = {}
        agreement, seed = experiment.agreement, experiment.agreement.test_seed
        keys = {c: Ed25519PrivateKey.from_private_bytes(_entropy(seed, c)(32)) for c in agreement.sites}
        identities = {client: Identity(client, key) for client, key in keys.items()}
        draw, suite = _entropy(seed, SERVER_ID), SUITES[agreement.suite]
        self.signer = Ed25519PrivateKey.from_private_bytes(draw(32))
        sealing = suite.key_pair(draw(MLKEM_SEED_LENGTH) if suite.hybrid else None, draw(32))
        self.server = ServerIdentity(self.signer, sealing)
        roster = Roster(
            clients={client: identity.public_key for client, identity in identities.items()},
            server_verify_key=self.server.verify_key,
            server_sealing_key=self.server.sealing_key,
        )
        noisy = agreement.plan is not None
        self.sites = {
            client: Site(
                id=client,
                rows=rows,
                agreement=agreement,
                algorithm=experiment.algorithm,
                adapter=experiment.adapter,
                local=experiment.adapter.local,
                key=jax.random.fold_in(jax.random.key(experiment.config.seed), client),
                identity=identities[client],
                roster=roster,
                noise=(NoiseSource() if seed is None else NoiseSource.insecure_test(seed)) if noisy else None,
                ledger=ledgers.get(rows.name),
                budget=_lifetime_budget(experiment),
                entropy=_site_entropy(seed, client),
                secure_only=rows.name in experiment.config.simulation.secure_only,
            )
            for client, rows in enumerate(experiment.train.values())
        }
        self.aggregate: Aggregator = self._checked(self._aggregator(roster))
        self._site_keys = keys

    def witness(self, ledger: Ledger) -> None:
        """Let every site hold the server's ledger against its own, and sign its head.

        Raises:
            ChainError: a site's ledger tells of another run than the server's; nothing is signed by that site.
        """
        lines, run = ledger.path.read_bytes(), self.experiment.agreement.run
        for client, site in self.sites.items():
            if site.ledger is not None:
                key = self._site_keys[client]
                head = witness(lines, read_entries(site.ledger.path), run=run, site=client, signer=key)
                ledger.countersign(site.name, head, key=key.public_key().public_bytes_raw().hex())

    def _aggregator(self, roster: Roster) -> Aggregator:
        mode, agreement, algorithm = (
            self.experiment.config.secagg.mode,
            self.experiment.agreement,
            self.experiment.algorithm,
        )
        if mode == "plain":
            return Plain(self._participants, self._silences)
        if mode == "ideal":
            return Ideal(agreement, algorithm, self._participants, self._silences)
        return Secure(agreement, algorithm, self._connect, self.server, roster)

    def _participants(self, announcement: Announcement) -> Mapping[int, Participation]:
        self._parts = {client: _Observed(site, announcement) for client, site in self.sites.items()}
        return self._parts

    def _silences(self, announcement: Announcement) -> Mapping[int, str]:
        """Planned silences befall the first attempt only."""
        if announcement.attempt:
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


def run(
    config: Config,
    *,
    out: Path | None = None,
    ledgers: Path | None = None,
    insecure_test_seed: int | None = None,
    silences: Silences | None = None,
    tap: Tap | None = None,
    progress: Progress = lambda _record: None,
) -> RunResult:
    """Run an experiment in this process and write its run folder.

    Args:
        config: What to run.
        out: The run folder, which must not exist or be empty; None: runs/<name>-<time>.
        ledgers: Folder of the data sets' ledgers; None: `ledger_folder()`.
        insecure_test_seed: Fixes noise and protocol secrets; everything written says that the run is not private.
        silences: {round: {site: phase from which it is silent}}; None: as the configuration says.
        tap: Called with (phase, sender, frame) for every frame that reaches the server.
        progress: Called after every committed round.

    Raises:
        FlError, PrivacyError, SecaggError: the configuration, the data, the plan or a round was refused. Nothing is
            written unless the first three were accepted; committed rounds stand.

    Guarantees:
        Under one `insecure_test_seed`, modes "ideal" and "secure" give bitwise the same model.
    """
    name = f"{config.name}-{secrets.token_hex(8)}"
    experiment = prepare(config, name, silences, insecure_test_seed)
    folder = Path("runs", f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}") if out is None else out
    _require_free(folder)
    with ExitStack() as stack:
        opened = open_ledgers(experiment, ledger_folder() if ledgers is None else ledgers, stack)
        _create(folder)
        return _Run(experiment, Consortium(experiment, opened, tap), folder, progress).execute()


@dataclass(frozen=True)
class _Run:
    """One run: its parties and its folder."""

    experiment: Experiment
    consortium: Consortium
    folder: Path
    progress: Progress

    def execute(self) -> RunResult:
        experiment, config, plan = self.experiment, self.experiment.config, self.experiment.agreement.plan
        write_file(self.folder / "config.toml", dump_config(config))
        history: list[RoundRecord] = []
        score = scorer(experiment.adapter, config.model.loss, experiment.test)

        def on_round(record: RoundRecord, state: ServerState) -> None:
            history.append(record)
            pooled = score([state.params] * len(experiment.test), self._local())["pooled"]
            append_line(self.folder / "evaluation.jsonl", {"round": record.round, **pooled})
            self.progress(record)

        with ExitStack() as stack:
            ledger = None
            if plan is not None:
                write_file(self.folder / "plan.json", plan.to_json())
                ledger = stack.enter_context(
                    Ledger(self.folder / "ledger.jsonl", signer=self.consortium.signer, party=self._writer())
                )
            checkpoints = Checkpoints(self.folder / "checkpoint")
            stack.callback(checkpoints.close)
            coordinator = Coordinator(
                agreement=experiment.agreement,
                algorithm=experiment.algorithm,
                adapter=experiment.adapter,
                aggregate=self.consortium.aggregate,
                checkpoints=checkpoints,
                metrics=self.folder / "metrics.jsonl",
                attempts=config.secagg.attempts,
                ledger=ledger,
            )
            start = experiment.algorithm.init(experiment.adapter.params)
            final = experiment.algorithm.final(coordinator.run(start, config.rounds, on_round))
            if ledger is not None:
                self.consortium.witness(ledger)
        summary = self._summary(history, score([final] * len(experiment.test), self._local()))
        if config.simulation.baselines:
            summary["baselines"] = self._baselines(history, lambda each: score(each, self._local()))
        write_file(self.folder / "result.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
        write_report(self.folder)
        return RunResult(
            history=tuple(history),
            model=experiment.adapter.merge(final, experiment.adapter.local),
            ledger=self.folder / "ledger.jsonl" if plan is not None else None,
            survivors=tuple(tuple(record.survivors) for record in history),
            summary=summary,
            folder=self.folder,
            notes=experiment.notes,
        )

    def _writer(self) -> str:
        """The server's name among those who sign its ledger."""
        name, taken = "server", set(self.experiment.agreement.sites.values())
        while name in taken:
            name = f"the {name}"
        return name

    def _local(self) -> list[nnx.State[Any, Any]]:
        return [site.local for site in self.consortium.sites.values()]

    def _summary(self, history: list[RoundRecord], report: SiteReport) -> dict[str, Any]:
        plan = self.experiment.agreement.plan
        spent = history[-1].epsilon
        pooled = report["pooled"]
        return {
            "auc": pooled["auc"],
            "accuracy": pooled["accuracy"],
            "auc_site_mean": report["auc_site_mean"],
            "sites": report["sites"],
            "baselines": {},
            "metric": {"name": "auc", "value": pooled["auc"], "higher_is_better": True},
            "epsilon": _smallest(spent),
            "epsilon_planned": plan.accounted_epsilon().upper if plan is not None else None,
            "delta": plan.delta if plan is not None else None,
            "rounds": len(history),
            "dropouts": [
                {"round": record.round, "site": site, "phase": phase}
                for record in history
                for site, phase in record.dropped.items()
            ],
            "seconds": {
                phase: sum(side[phase] for record in history for side in record.seconds.values()) for phase in PHASES
            },
            "bytes": {
                phase: sum(way[phase] for record in history for way in record.bytes.values()) for phase in PHASES
            },
            "private": self.experiment.agreement.private,
            "run": str(self.folder),
            "epsilon_lifetime": self._lifetime(),
            "insecure_test_seed": self.experiment.agreement.test_seed is not None,
        }

    def _lifetime(self) -> dict[str, float | None]:
        """Each data set's ε over every run that its ledger knows, at this run's δ; None where no bound covers them all."""
        plan = self.experiment.agreement.plan
        if plan is None:
            return {}
        totals = {
            site.name: site.ledger.total(plan.delta)
            for site in self.consortium.sites.values()
            if site.ledger is not None
        }
        return {
            name: total.epsilon.upper if total.private and math.isfinite(total.epsilon.upper) else None
            for name, total in totals.items()
        }

    def _baselines(
        self, history: list[RoundRecord], score: Callable[[Sequence[Params]], SiteReport]
    ) -> dict[str, Baseline]:
        experiment = self.experiment
        names = list(experiment.train)
        alive = np.array([[name in record.survivors for name in names] for record in history])
        return baselines(experiment.server, LOSSES[experiment.config.model.loss], experiment.train, score, alive)


def _smallest(epsilon: Mapping[str, float | None] | None) -> float | None:
    bounds = [bound for bound in (epsilon or {}).values() if bound is not None]
    return min(bounds) if bounds else None


def _lifetime_budget(experiment: Experiment) -> Budget | None:
    """What every simulated site allows on its data set over all runs."""
    policy = experiment.config.simulation
    if policy.lifetime_epsilon is None or experiment.agreement.plan is None:
        return None
    return Budget(policy.lifetime_epsilon, policy.lifetime_delta)


def ledger_folder() -> Path:
    """Where the data sets' ledgers live, outside any run: $SECAGG_LEDGERS, or secagg/ledgers in the user's state folder."""
    chosen = os.environ.get("SECAGG_LEDGERS")
    if chosen:
        return Path(chosen)
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "secagg" / "ledgers"


def open_ledgers(experiment: Experiment, folder: Path, stack: ExitStack) -> dict[str, Ledger]:
    """Open each site's ledger of its data set, by site name, for as long as the stack stands; none without privacy.

    A ledger has one writer. A run on the same data waits for its turn, in one order for all, so that nobody waits for
    each other. Sites that hold the same table have a ledger each, as they would in their own houses.

    Raises:
        LedgerError: a ledger cannot be trusted or opened.
        RunError: the folder cannot be created.
    """
    if experiment.agreement.plan is None:
        return {}
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be created: {error.strerror}") from error
    stems: dict[str, str] = {}
    holders: Counter[str] = Counter()
    for name, site in experiment.train.items():
        holders[site.fingerprint] += 1
        stems[name] = site.fingerprint + (f"-{holders[site.fingerprint]}" if holders[site.fingerprint] > 1 else "")
    opened: dict[str, Ledger] = {}
    for name in sorted(stems, key=stems.__getitem__):
        stack.enter_context(_turn(folder / f"{stems[name]}.lock"))
        opened[name] = stack.enter_context(Ledger(folder / f"{stems[name]}.jsonl"))
    return opened


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Hold a lock file, waiting for it if another process has it."""
    try:
        file = path.open("w")
    except OSError as error:
        raise RunError(f"{path}: cannot be opened: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _LOG.warning("waiting for another run on the same data set (%s)", path)
            _wait_for(file, path)
        yield


def _wait_for(file: IO[str], path: Path) -> None:
    deadline = time.monotonic() + TURN_TIMEOUT_S
    while True:
        time.sleep(0.05)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise RunError(f"{path}: another run has held this data set for {TURN_TIMEOUT_S:.0f} s") from None
        else:
            return


def _require_free(folder: Path) -> None:
    try:
        free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    except OSError as error:
        raise RunError(f"{folder}: cannot be read: {error.strerror}") from error
    if not free:
        raise RunError(f"{folder}: exists and is not an empty folder; a run needs a folder of its own")


def _create(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be created: {error.strerror}") from error


def _entropy(seed: int | None, *context: int) -> Entropy:
    return os.urandom if seed is None else seeded_entropy(seed, *context)


def _site_entropy(seed: int | None, client: int) -> Callable[[int, int], Entropy]:
    return lambda number, attempt: _entropy(seed, client, number, attempt)
