"""A run in this process, from its first round or its last checkpoint to its report."""

import json
import logging
import math
import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fl.aggregation import Aggregator
from fl.algorithms import ServerState
from fl.baselines import Baseline, baselines, who_was_there
from fl.checkpoint import Checkpoints
from fl.errors import FlError, RunError, RunStopped
from fl.experiment import EVERYBODY, Experiment, Silences, prepare
from fl.files import FLAG, append_line, cut_lines, finite, read_lines, write_file
from fl.metrics import metrics_csv
from fl.model import Local, Params
from fl.published import write_model
from fl.report import write_report
from fl.rounds import Coordinator, RoundRecord, first_attempt
from fl.scoring import Score, scorer
from fl.sections import Config
from fl.simulation.alone import run_alone
from fl.simulation.clock import described
from fl.simulation.consortium import Consortium, party_keys
from fl.simulation.crowd import Crowd, use_all_cores
from fl.simulation.folder import begin, discard_keys, held, read_beginning, require_free, signing_keys
from fl.simulation.ledgers import ledger_folder, open_ledgers
from fl.simulation.stopping import Stopping, stopping
from fl.simulation.summary import summarize
from privacy.errors import BudgetExceededError, PrivacyError
from privacy.ledger import Ledger
from secagg.engines.inprocess import Tap
from secagg.errors import SecaggError

_LOG = logging.getLogger(__name__)
_FINISHED = "the run was finished already; its report and metrics.csv are written anew"

Progress = Callable[[RoundRecord], None]


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        history: Its committed rounds.
        model: The published model, in evaluation mode, with the first site's local leaves where it has such. Mode "local": by
            site, and None where a finished run is reported anew, for its folder has no models.
        ledger: Path of the run's ledger, or None without privacy.
        survivors: The sites in each round's sum.
        summary: What result.json holds.
        folder: The run folder.
        notes: What the plan or the round's parameters warn of.
    """

    history: tuple[RoundRecord, ...]
    model: Any
    ledger: Path | None
    survivors: tuple[tuple[str, ...], ...]
    summary: dict[str, Any]
    folder: Path
    notes: tuple[str, ...]


class Parties(Protocol):
    """Whoever trains in a simulation, and the harness that watches them."""

    @property
    def aggregate(self) -> Aggregator:
        """One attempt at one round."""
        ...

    @property
    def local(self) -> Mapping[str, Local]:
        """By name, in the order in which `restore` takes them."""
        ...

    @property
    def ledgers(self) -> Mapping[str, Ledger]:
        """Of those that have one."""
        ...

    def restore(self, local: tuple[Local, ...]) -> None:
        """Give each client its own state back."""
        ...

    def witness(self, ledger: Ledger) -> None:
        """Let every client that has a ledger sign the run's."""
        ...


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
            written unless the first three were accepted; committed rounds stand, are reported, and `resume` goes on from them.
        RunStopped: Ctrl-C or SIGTERM came: the round in hand was committed, or with a second signal dropped; the same stands.

    Guarantees:
        Under one `insecure_test_seed`, modes "ideal" and "secure" give bitwise the same model.
    """
    name = f"{config.name}-{secrets.token_hex(8)}"
    if config.simulation.engine == "cohort":
        use_all_cores()
    experiment = prepare(config, name, silences, insecure_test_seed)
    score = _tried(experiment)
    folder = Path("runs", f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}") if out is None else out
    require_free(folder)
    with ExitStack() as stack:
        opened = open_ledgers(experiment, ledger_folder() if ledgers is None else ledgers, stack)
        _create(folder)
        stack.enter_context(held(folder))
        require_free(folder)  # another run may have begun here while this one waited for its turn
        stack.enter_context(_resumable(folder))
        begin(folder, experiment)
        return _Run(experiment, folder, progress, score).execute(opened, tap)


def resume(
    folder: Path,
    *,
    ledgers: Path | None = None,
    tap: Tap | None = None,
    progress: Progress = lambda _record: None,
) -> RunResult:
    """Go on with a run that was killed, interrupted or failed, from its last checkpoint.

    A run that is finished is reported anew and given back.

    Args:
        folder: The run folder.
        ledgers: As for `run`.
        tap: As for `run`.
        progress: Called after every round that is committed now.

    Raises:
        RunError: it is no run folder, another process runs in it, or it cannot be read.
        ConfigError, DataError: configuration, schema or tables are not those with which the run began.
        FlError, PrivacyError, SecaggError, RunStopped: as for `run`.

    Guarantees:
        Under a test seed the model is bitwise that of an uninterrupted run, and so are the metrics but for times, transcripts
        and, where a round was sent twice, its attempt and what that cost.
        No ledger goes back: an attempt that was reserved counts as spent, and its round is booked again as another attempt.
    """
    with ExitStack() as stack:
        stack.enter_context(held(folder))
        stack.enter_context(_resumable(folder))
        beginning, config = read_beginning(folder)
        if config.simulation.engine == "cohort":
            use_all_cores()
        experiment = prepare(config, beginning.run, beginning.planned(), beginning.test_seed)
        beginning.require(experiment)
        score = _tried(experiment)
        opened = open_ledgers(experiment, ledger_folder() if ledgers is None else ledgers, stack)
        return _Run(experiment, folder, progress, score).execute(opened, tap)


@dataclass(frozen=True)
class _Run:
    """One run and its folder."""

    experiment: Experiment
    folder: Path
    progress: Progress
    score: Score

    def execute(self, ledgers: Mapping[str, Ledger], tap: Tap | None) -> RunResult:
        experiment, config = self.experiment, self.experiment.config
        earlier, notes = self._earlier(), experiment.notes
        if config.mode == "local":
            return self._alone(earlier)
        with ExitStack() as stack:
            ledger = self._ledger(stack) if earlier is None else None  # a finished run has no keys to sign with
            checkpoints = Checkpoints(self.folder / "checkpoint")
            stack.callback(checkpoints.close)
            done = checkpoints.newest or 0
            if earlier is not None and done != config.rounds:
                raise RunError(
                    f"{self.folder / 'checkpoint'}: has no checkpoint of round {config.rounds}, and the run is finished: "
                    "what it came to is left as it is"
                )
            attempt = first_attempt(ledger, experiment.agreement.run, done)
            keys = signing_keys(self.folder, experiment) if earlier is None else None
            parties: Parties = (
                Consortium(experiment, ledgers, tap, keys=keys, first=(done, attempt))
                if experiment.population is None
                else Crowd(experiment, (done, attempt))
            )
            state = experiment.algorithm.init(experiment.algorithm.params)
            if checkpoints.newest is not None:
                state, local = checkpoints.load(experiment.adapter, state, tuple(parties.local.values()))
                parties.restore(local)
            progress = _Course(self, parties, self.score, checkpoints, self._history(done), state, ledger)
            if earlier is None:
                progress.go_on(attempt)
                earlier = progress.publish(None)
            else:
                notes = (*notes, _FINISHED)
            self.write_csv()
            write_report(self.folder)
        discard_keys(self.folder)
        model = experiment.adapter.merge(progress.final, next(iter(parties.local.values()), experiment.algorithm.local))
        return self._result(progress.history, earlier, model, notes)

    def _alone(self, earlier: dict[str, Any] | None) -> RunResult:
        """Each site by itself; where that is finished, only its report again."""
        if earlier is None:
            history, summary, model = run_alone(self.experiment, self.folder, self.score, self.progress)
            self.write_csv()
            return self._result(history, summary, model, self.experiment.notes)
        path, rounds = self.folder / "metrics.jsonl", self.experiment.config.rounds
        if len(read_lines(path)) != rounds:
            raise RunError(f"{path}: has not the {rounds} rounds of the finished run; it is left as it is")
        history = self._history(rounds)
        self.write_csv()
        write_report(self.folder)
        return self._result(history, earlier, None, (*self.experiment.notes, _FINISHED))

    def _result(
        self,
        history: list[RoundRecord],
        summary: dict[str, Any],
        model: Any,  # noqa: ANN401 - a model of any framework
        notes: tuple[str, ...],
    ) -> RunResult:
        return RunResult(
            history=tuple(history),
            model=model,
            ledger=self.folder / "ledger.jsonl" if self.experiment.agreement.plan is not None else None,
            survivors=tuple(tuple(record.survivors) for record in history),
            summary=summary,
            folder=self.folder,
            notes=notes,
        )

    def _ledger(self, stack: ExitStack) -> Ledger | None:
        agreement = self.experiment.agreement
        if agreement.plan is None:
            return None
        writer, taken = "server", set(self.experiment.parties.values())
        while writer in taken:
            writer = f"the {writer}"
        keys = signing_keys(self.folder, self.experiment) or party_keys(self.experiment)
        return stack.enter_context(Ledger(self.folder / "ledger.jsonl", signer=keys[0], party=writer))

    def _history(self, done: int) -> list[RoundRecord]:
        """The committed rounds, once the lines of later ones, which no checkpoint has, are cut off."""
        evaluations, metrics = self.folder / "evaluation.jsonl", self.folder / "metrics.jsonl"
        kept = 0
        for number, line in enumerate(read_lines(evaluations), start=1):
            if type(line.get("round")) is not int:
                raise RunError(f"{evaluations}: line {number}: has no round")
            kept += line["round"] < done
        read = read_lines(metrics)[:done]
        history = [_record(metrics, number, line) for number, line in enumerate(read, start=1)]
        cut_lines(metrics, done)
        cut_lines(evaluations, kept)
        return history

    def write_csv(self) -> None:
        """Write metrics.csv: what metrics.jsonl and evaluation.jsonl say, a row a round, and in each whether it is private."""
        rounds, evaluations = (read_lines(self.folder / name) for name in ("metrics.jsonl", "evaluation.jsonl"))
        text = metrics_csv(rounds, evaluations, private=self.experiment.agreement.private)
        write_file(self.folder / "metrics.csv", text)

    def _earlier(self) -> dict[str, Any] | None:
        """The result of the whole run, where there is one already."""
        path = self.folder / "result.json"
        try:
            found: dict[str, Any] = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: cannot be read: {error}") from error
        if not isinstance(found, dict) or not {"ended", "private", "rounds"} <= found.keys():
            raise RunError(f"{path}: is no result of a run")
        return found if found["ended"] is None else None


@dataclass
class _Course:
    """The rounds of a run: what is kept after each, and what is published at the end."""

    run: _Run
    parties: Parties
    score: Score
    checkpoints: Checkpoints
    history: list[RoundRecord]
    state: ServerState
    ledger: Ledger | None
    stop: Stopping = field(default_factory=Stopping)

    def __post_init__(self) -> None:
        self.local = dict(self.parties.local)  # after the last committed round, whatever a failing one does to it

    @property
    def final(self) -> Params:
        """The model to publish."""
        return self.run.experiment.algorithm.final(self.state)

    def go_on(self, attempt: int) -> None:
        """Run what is left; what ends it early is in the result, with the rounds that were committed."""
        if self.ledger is not None and (self.history or attempt):
            self.parties.witness(self.ledger)  # with other ledgers than those it began with, nothing more is sent
        evaluations = self.run.folder / "evaluation.jsonl"
        if self.history and self.state.round - 1 not in {line["round"] for line in read_lines(evaluations)}:
            self._evaluate(self.state)  # it ended between the checkpoint and this
        for name in ("result.json", "report.html"):  # of an earlier end, which is none any more
            (self.run.folder / name).unlink(missing_ok=True)
        experiment, config = self.run.experiment, self.run.experiment.config
        coordinator = Coordinator(
            agreement=experiment.agreement,
            algorithm=experiment.algorithm,
            adapter=experiment.adapter,
            aggregate=self.parties.aggregate,
            save=self._keep,
            metrics=self.run.folder / "metrics.jsonl",
            attempts=config.secagg.attempts,
            ledger=self.ledger,
        )
        try:
            with stopping() as self.stop:
                coordinator.run(self.state, config.rounds, self._committed, attempt=attempt)
        except (FlError, PrivacyError, SecaggError, KeyboardInterrupt) as error:
            self._end(" ".join(str(error).split()) or "interrupted")
            done = f"{len(self.history)} of {config.rounds} rounds"
            if isinstance(error, KeyboardInterrupt):
                raise RunStopped(f"interrupted after {done}") from error
            if self.history:
                error.add_note(f"{done} are committed; {_next_step(self.run.folder, error)}")
            raise
        if self.ledger is not None:
            self.parties.witness(self.ledger)

    def _end(self, why: str) -> None:
        """Leave what was committed: a checkpoint, and a report; what is wrong with either does not hide why it ends."""
        if not self.history:
            return
        try:
            if (self.checkpoints.newest or 0) < self.state.round:
                self.checkpoints.save(self.state, tuple(self.local.values()))
            self.publish(why)
            self.run.write_csv()
            write_report(self.run.folder)
        except (FlError, PrivacyError, SecaggError) as error:
            _LOG.warning("no report of the committed rounds: %s", error)

    def publish(self, ended: str | None) -> dict[str, Any]:
        """Write result.json and the model: of all rounds, or of those before the run ended."""
        experiment = self.run.experiment
        report = self.score([self.final] * len(experiment.test), self._of_tested(self.local))
        summary = summarize(experiment, self.history, report, self.parties.ledgers, self.run.folder)
        summary["ended"] = ended
        if ended is not None and self.ledger is not None:  # what was sent and not committed is spent too
            spent = self.ledger.total(summary["delta"]).epsilon.upper
            summary["epsilon"] = spent if math.isfinite(spent) else None
        if experiment.config.simulation.baselines and ended is None:
            summary["baselines"] = self._baselines()
        summary = finite(summary)
        write_model(
            self.run.folder,
            experiment.adapter,
            self.final,
            config=experiment.config,
            table=experiment.schema,
            rounds=len(self.history),
            private=experiment.agreement.private,
        )
        write_file(self.run.folder / "result.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
        return summary

    def _keep(self, _record: RoundRecord, state: ServerState) -> None:
        config, local = self.run.experiment.config, dict(self.parties.local)
        if state.round == config.rounds or state.round % _every(config) == 0:
            self.checkpoints.save(state, tuple(local.values()))
        self.local = local

    def _evaluate(self, state: ServerState) -> None:
        """Score a committed round, where its turn is; what a metric does wrong costs no round, for that is kept already."""
        config = self.run.experiment.config
        if state.round == config.rounds or state.round % config.simulation.evaluate_every == 0:
            pooled = self.score([state.params] * len(self.run.experiment.test), self._of_tested(self.local))["pooled"]
            append_line(self.run.folder / "evaluation.jsonl", {"round": state.round - 1, **pooled})

    def _committed(self, record: RoundRecord, state: ServerState) -> None:
        self.history.append(record)
        self.state = state
        self._evaluate(state)
        self.run.progress(record)
        if state.round < self.run.experiment.config.rounds:
            self.stop.check()

    def _of_tested(self, own: Mapping[str, Local]) -> list[Local]:
        """The local state that each site's held-out rows are scored with; a centralised run has one for all."""
        first = own.get(EVERYBODY, self.run.experiment.algorithm.local)
        return [own.get(name, first) for name in self.run.experiment.test]

    def _baselines(self) -> dict[str, Baseline]:
        experiment = self.run.experiment
        return baselines(experiment, self.score, who_was_there(experiment.train, self.history))


def _tried(experiment: Experiment) -> Score:
    """The score, once the author's metrics were tried on the model as built, and the network that is described was read.

    Both would otherwise first fail when rounds are booked.
    """
    algorithm, tested, chosen = experiment.algorithm, len(experiment.test), experiment.config.model
    score = scorer(experiment.adapter, chosen, experiment.test)
    if chosen.metrics is not None:
        score([algorithm.params] * tested, [algorithm.local] * tested)
    described(experiment.config)
    return score


def _record(path: Path, number: int, line: Mapping[str, Any]) -> RoundRecord:
    try:
        return RoundRecord(**{key: value for key, value in line.items() if key != FLAG})
    except TypeError as error:
        raise RunError(f"{path}: line {number}: {str(error).removeprefix('RoundRecord.__init__() ')}") from None


@contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    """Say how to go on where somebody stops the run."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise RunStopped(f"{str(stop) or 'interrupted'}; {_next_step(folder, stop)}") from None


def _next_step(folder: Path, error: BaseException) -> str:
    """What can be done with what was committed before an error."""
    if isinstance(error, BudgetExceededError):  # the same would come again
        return f"their result is in {folder}"
    return f"go on with: fl resume {shlex.quote(str(folder))}"


def _every(config: Config) -> int:
    if config.checkpoint.every is not None:
        return config.checkpoint.every
    alone = config.simulation.engine == "parties" or config.privacy is not None
    return 1 if alone else max(1, config.rounds // 20)


def _create(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be created: {error.strerror}") from error
