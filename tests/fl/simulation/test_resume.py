import json
import os
import signal
from pathlib import Path

import pytest

from fl import rounds, simulation
from fl.checkpoint import Checkpoints
from fl.errors import ConfigError, DataError, RoundFailedError, RunError, RunStopped
from fl.files import append_line
from fl.model import Adapter
from fl.simulation import resume, run, runs
from privacy.errors import BudgetExceededError
from privacy.ledger import Ledger, read_entries, verify
from secagg.errors import KeyFileError

ROUNDS, SEED = 6, 1
SILENT = {1: {"east": "mask"}, 3: {"west": "unmask"}}
SITES = ("east", "north", "south", "west")

# A run that kills itself: config, folder, ledgers, and where.


class Killed(BaseException):
    """Stands for the end of the process: nothing in the packages may catch it."""


def model_hash(result):
    """Of the published model."""
    adapter = Adapter.of(result.model)
    return adapter.hash(adapter.params)


def lines(folder, name, *without):
    """What a file of JSON lines holds."""
    entries = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key not in without} for entry in entries]


def start(config, folder, **options):
    """A run under the test seed, with two silences."""
    chosen = {"insecure_test_seed": SEED, "silences": SILENT} | options
    return run(config, out=folder / "run", ledgers=folder / "ledgers", **chosen)


@pytest.fixture(scope="module")
def make(toy):
    """A function that gives the configuration of a kind of run."""

    def config(kind, *overrides):
        if kind == "scaffold":
            return toy("algorithm.name=scaffold", *overrides, mode="ideal", rounds=ROUNDS)
        return toy(*overrides, private=True, adaptive=kind == "adaptive", rounds=ROUNDS)

    return config


@pytest.fixture(scope="module")
def whole(make, tmp_path_factory):
    """A function that gives the uninterrupted run of a kind."""
    done = {}

    def run_of(kind):
        if kind not in done:
            done[kind] = start(make(kind), tmp_path_factory.mktemp(kind))
        return done[kind]

    return run_of


def assert_same(result, whole, *, repeated=None):
    """Model, metrics and evaluation are bitwise those of the uninterrupted run; a repeated round is booked as another attempt."""
    assert model_hash(result) == model_hash(whole)
    assert lines(result.folder, "evaluation.jsonl") == lines(whole.folder, "evaluation.jsonl")
    extra = ("attempt", "epsilon") if repeated is not None else ()
    ours, theirs = (lines(each.folder, "metrics.jsonl", "seconds", "transcript", *extra) for each in (result, whole))
    assert ours == theirs
    attempts = [line["attempt"] for line in lines(result.folder, "metrics.jsonl")]
    assert attempts == [int(number == repeated) for number in range(ROUNDS)]
    for key in ("auc", "accuracy", "sites", "rounds", "dropouts", "ended"):
        assert result.summary[key] == whole.summary[key]


def kill_at(monkeypatch, where, number):
    """Make the run in this process end at a point of a round, as if the process were gone."""

    def then(real, hit):
        def patched(*args, **kwargs):
            result = real(*args, **kwargs)
            if hit(*args, **kwargs):
                raise Killed
            return result

        return patched

    def written(path, entry):
        if where == "torn" and entry["round"] == number:
            path.write_bytes(path.read_bytes()[:-7])
        return entry["round"] == number

    def committed(ledger, reservation, **_):
        return ledger.path.name == "ledger.jsonl" and reservation.round == number

    target, name, real, hit = {
        "round": (simulation.Consortium, "_connect", simulation.Consortium._connect, lambda _, at: at.round == number),
        "booked": (Ledger, "commit", Ledger.commit, committed),
        "line": (rounds, "append_line", append_line, written),
        "torn": (rounds, "append_line", append_line, written),
        "evaluated": (runs, "append_line", append_line, written),
        "saved": (Checkpoints, "save", Checkpoints.save, lambda _, state, __=(): state.round == number + 1),
    }[where]
    monkeypatch.setattr(target, name, then(real, hit))


@pytest.mark.parametrize(
    ("kind", "where", "number"),
    [
        ("private", "torn", 2),
        ("private", "evaluated", 4),
        ("adaptive", "saved", 2),
        ("scaffold", "saved", ROUNDS - 1),
    ],
)
def test_a_run_goes_on_bitwise_from_wherever_it_ended(make, whole, tmp_path, monkeypatch, *, kind, where, number):
    """F9: before, in, and after every step of a commit, the model and the metrics are those of the uninterrupted run."""
    expected = whole(kind)
    with monkeypatch.context() as patch:
        kill_at(patch, where, number)
        with pytest.raises(Killed):
            start(make(kind), tmp_path)
    result = resume(tmp_path / "run", ledgers=tmp_path / "ledgers")
    again = number if where == "torn" else None  # a round is evaluated when its checkpoint is there
    assert_same(result, expected, repeated=again)


def test_ledgers_never_go_back(make, tmp_path, monkeypatch):
    """The attempt that was lost stays booked in the run's and in every site's ledger, its repetition beside it, and all sign."""
    with monkeypatch.context() as patch:
        kill_at(patch, "booked", 2)
        with pytest.raises(Killed):
            start(make("private"), tmp_path, insecure_test_seed=None, silences={})
    before = {path: path.read_bytes() for path in [*tmp_path.rglob("*.jsonl")] if "metrics" not in path.name}
    result = resume(tmp_path / "run", ledgers=tmp_path / "ledgers")
    for path, data in before.items():
        if path.name != "evaluation.jsonl":
            assert path.read_bytes().startswith(data)
            made = [(e.round, e.attempt) for e in read_entries(path) if e.kind == "reserve"]
            assert made == [(0, 0), (1, 0), (2, 0), (2, 1), (3, 0), (4, 0), (5, 0)]
    report = verify(result.ledger)
    assert report.head == "ok"
    assert {each.party: each.seq for each in report.signatures} == dict.fromkeys(("server", *SITES), report.entries - 1)
    assert result.summary["private"]
    assert not (tmp_path / "run" / "keys").exists()


def test_a_budget_that_does_not_pay_for_a_repetition(make, tmp_path, monkeypatch):
    """Three lost attempts are more than the plan has to spare: the error says what was spent and which round it is."""
    config = make("private", "privacy.dropouts=0")
    for _ in range(2):
        with monkeypatch.context() as patch:
            kill_at(patch, "round", 0)
            with pytest.raises(Killed):
                resume(tmp_path / "run", ledgers=tmp_path / "ledgers") if (tmp_path / "run").exists() else start(
                    config, tmp_path, silences={}
                )
    lost = r"round 4: 2 attempt\(s\) that failed, or were under way when the run was stopped, count as spent, .*the budget is"
    with pytest.raises(BudgetExceededError, match=lost) as refused:
        resume(tmp_path / "run", ledgers=tmp_path / "ledgers")
    assert refused.value.__notes__ == [f"4 of 6 rounds are committed; their result is in {tmp_path / 'run'}"]
    committed = lines(tmp_path / "run", "metrics.jsonl")
    assert 0 < len(committed) < ROUNDS
    partial = json.loads((tmp_path / "run" / "result.json").read_text())
    assert "the budget is" in partial["ended"]
    assert partial["epsilon"] >= min(committed[-1]["epsilon"].values())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_round_end_and_says_how_to_go_on(make, whole, tmp_path, number):
    """Ctrl-C and SIGTERM: the round in hand is committed, the rounds so far are reported, and the run goes on bitwise."""

    def stop(record):
        if record.round == 2:
            os.kill(os.getpid(), number)

    with pytest.raises(RunStopped, match=r"^interrupted after 3 of 6 rounds; go on with: fl resume .*/run$"):
        start(make("private"), tmp_path, progress=stop)
    assert [line["round"] for line in lines(tmp_path / "run", "metrics.jsonl")] == [0, 1, 2]
    partial = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (partial["rounds"], partial["ended"]) == (3, "stopped after the round in hand")
    assert (tmp_path / "run" / "report.html").exists()
    assert_same(resume(tmp_path / "run", ledgers=tmp_path / "ledgers"), whole("private"))


def test_a_second_signal_drops_the_round(make, whole, tmp_path):
    """Ctrl-C twice in a round: it is not committed, and is booked again when the run goes on."""
    frames = []

    def impatient(*_):
        frames.append(None)
        if len(frames) in {45, 46}:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(RunStopped, match=r"interrupted after [1-5] of 6 rounds; go on with"):
        start(make("private"), tmp_path, tap=impatient)
    committed = lines(tmp_path / "run", "metrics.jsonl")
    done = len(committed)
    assert 0 < done < ROUNDS
    partial = json.loads((tmp_path / "run" / "result.json").read_text())
    assert partial["epsilon"] > min(committed[-1]["epsilon"].values())  # the dropped attempt was sent, and is spent
    assert_same(resume(tmp_path / "run", ledgers=tmp_path / "ledgers"), whole("private"), repeated=done)


@pytest.mark.usefixtures("whole_report")
def test_a_failed_round_leaves_a_report_of_those_before(toy, tmp_path, monkeypatch):
    """A run that ends in a failed round has metrics, model, checkpoint and report of what was committed, and goes on."""
    config = toy("checkpoint.every=3", mode="ideal", rounds=ROUNDS)
    expected = run(config, out=tmp_path / "whole", silences={})
    with monkeypatch.context() as patch:
        patch.setattr(
            simulation.Consortium, "_silences", lambda _, at: dict.fromkeys(range(4 * (at.round == 3)), "mask")
        )
        with pytest.raises(RoundFailedError, match="round 3 failed"):
            run(config, out=tmp_path / "run")
    assert len(lines(tmp_path / "run", "metrics.jsonl")) == 3
    partial = json.loads((tmp_path / "run" / "result.json").read_text())
    assert "round 3 failed" in partial["ended"]
    assert "round 3 failed" in (tmp_path / "run" / "report.html").read_text()
    assert model_hash(resume(tmp_path / "run")) == model_hash(expected)


def test_rounds_between_checkpoints_are_done_again(make, whole, tmp_path, monkeypatch):
    """With checkpoint.every = 4 a kill in round 5 goes back to round 4, and no line is doubled or lost."""
    config = make("scaffold", "checkpoint.every=4")
    with monkeypatch.context() as patch:
        kill_at(patch, "line", 5)
        with pytest.raises(Killed):
            start(config, tmp_path)
    assert Checkpoints(tmp_path / "run" / "checkpoint").newest == 4
    assert_same(resume(tmp_path / "run", ledgers=tmp_path / "ledgers"), whole("scaffold"))


def test_what_failed_after_a_checkpoint_is_kept(make, whole, tmp_path):
    """A run that stops itself between two checkpoints leaves one of its last committed round, sites' own state included."""
    config = make("scaffold", "checkpoint.every=4")

    def stop(record):
        if record.round == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(RunStopped):
        start(config, tmp_path, progress=stop)
    assert Checkpoints(tmp_path / "run" / "checkpoint").newest == 2
    assert_same(resume(tmp_path / "run", ledgers=tmp_path / "ledgers"), whole("scaffold"))


def test_a_round_that_fails_late_leaves_the_sites_as_they_were(make, whole, tmp_path, monkeypatch):
    """When sites have moved on and the server has not, the checkpoint of the failed run has both as after the round before."""
    real = rounds.Coordinator._record

    def fail(self, announcement, *told):
        if announcement.round == 2:
            raise RoundFailedError("round 2 failed late")
        return real(self, announcement, *told)

    with monkeypatch.context() as patch:
        patch.setattr(rounds.Coordinator, "_record", fail)
        with pytest.raises(RoundFailedError, match="failed late"):
            start(make("scaffold", "checkpoint.every=4"), tmp_path)
    assert_same(resume(tmp_path / "run", ledgers=tmp_path / "ledgers"), whole("scaffold"))


def test_a_finished_run_is_reported_anew(toy, tmp_path):
    """Nothing runs and nothing is booked: report and CSV come back, the result is as it was, and a note says so."""
    first = run(toy(private=True), out=tmp_path / "run", ledgers=tmp_path / "ledgers")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    for name in ("report.html", "metrics.csv"):
        (tmp_path / "run" / name).unlink()
    again = resume(tmp_path / "run", ledgers=tmp_path / "ledgers")
    assert any("finished already" in note for note in again.notes)
    assert (again.summary, again.history) == (first.summary, first.history)
    assert model_hash(again) == model_hash(first)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")} == before
    assert (tmp_path / "run" / "report.html").exists()
    assert (tmp_path / "run" / "metrics.csv").exists()


@pytest.fixture
def stopped(toy, toy_folder, tmp_path):
    """The folder of a private run that was stopped after its first round, on data of its own."""
    data = tmp_path / "data"
    data.mkdir()
    for file in toy_folder.iterdir():
        (data / file.name).write_bytes(file.read_bytes())

    def stop(_record):
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(RunStopped):
        run(toy(f"data.path={data}", private=True), out=tmp_path / "run", ledgers=tmp_path / "ledgers", progress=stop)
    return tmp_path / "run"


def change(path, old, new):
    """Replace a piece of a file."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_what_changed_is_refused_by_name(stopped, monkeypatch):
    """Another configuration, table, schema, set of sites, or lost key is refused before anything is sent, and named."""
    data, refused = stopped.parent / "data", {}
    monkeypatch.setenv("SECAGG_LEDGERS", str(stopped.parent / "ledgers"))
    north = (data / "site_north.csv").read_text()
    for what, path, old, new, error, match in (
        ("config", stopped / "config.toml", "divisor = 60", "divisor = 61", ConfigError, r"privacy\.divisor is 61"),
        ("schema", data / "schema.toml", "lowest = -10", "lowest = -11", ConfigError, "schema"),
        ("table", data / "site_north.csv", north.splitlines()[1], "0,0,1", DataError, "site north"),
    ):
        before = path.read_text()
        change(path, old, new)
        with pytest.raises(error, match=match):
            resume(stopped)
        path.write_text(before)
        refused[what] = True
    (data / "site_zebra.csv").write_text(north.replace("0.", "0.1", 1))
    with pytest.raises((DataError, ConfigError, RunError)):
        resume(stopped)
    (data / "site_zebra.csv").unlink()
    (stopped / "keys" / "server.pem").rename(stopped / "key")
    with pytest.raises(KeyFileError, match=r"server\.pem"):
        resume(stopped)
    (stopped / "key").rename(stopped / "keys" / "server.pem")
    assert len(lines(stopped, "metrics.jsonl")) == 1
    assert len(resume(stopped).history) == 2


def test_a_folder_has_one_process(stopped):
    """While a process runs in a folder, a second one is refused and touches nothing."""
    from fl.simulation.folder import held

    with held(stopped), pytest.raises(RunError, match="in use"):
        resume(stopped)


def test_what_is_no_run_is_refused(tmp_path):
    """A folder without a run, and no folder at all."""
    with pytest.raises(RunError, match=r"run\.json: is not there"):
        resume(tmp_path)
    with pytest.raises(RunError, match="absent"):
        resume(tmp_path / "absent")


def test_a_relative_data_path_means_the_same_place_later(toy, toy_folder, tmp_path, monkeypatch):
    """The run folder says where the data is, wherever a later process stands."""
    monkeypatch.chdir(toy_folder.parent)
    run(toy(f"data.path={toy_folder.name}", mode="ideal"), out=tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert Path(json.loads((tmp_path / "run" / "run.json").read_text())["config"]["data"]["path"]) == toy_folder
    assert len(resume(tmp_path / "run").history) == 2
