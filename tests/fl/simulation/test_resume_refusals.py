"""What a run folder is refused for, and what the refusal says can be done."""

import fcntl
import json
import os
import shutil
import signal
import threading

import pytest

from fl.errors import ConfigError, RunError, RunStopped
from fl.experiment import prepare
from fl.simulation import folder as module
from fl.simulation import resume, run
from fl.simulation.folder import begin, read_beginning, require_free
from privacy.ledger import read_entries
from privacy.ledger.chain import ChainError


class Killed(BaseException):
    """As SIGKILL: nothing may catch it."""


@pytest.fixture(scope="module")
def private(toy):
    """Record-level privacy, without a test seed: the run signs with keys of its own."""
    return prepare(toy(private=True), "run-1", {})


@pytest.mark.parametrize("stopped_before", ["schema.toml", "plan.json", "server.pem", "site-2.pem", "run.json"])
def test_a_half_made_folder_says_what_to_do(private, toy, tmp_path, monkeypatch, stopped_before):
    """A process that dies while it writes how a run begins leaves a folder that neither `run` nor `resume` takes; both say why."""
    folder = tmp_path / "run"
    folder.mkdir()

    def dying(real):
        def call(path, *rest):
            if path.name == stopped_before:
                raise Killed
            return real(path, *rest)

        return call

    with monkeypatch.context() as patch:
        for name in ("write_file", "create_client"):
            patch.setattr(module, name, dying(getattr(module, name)))
        with pytest.raises(Killed):
            begin(folder, private)
    advice = "stopped here before anything was sent or booked: remove the folder, and start it again"
    with pytest.raises(RunError, match=advice):
        resume(folder)
    with pytest.raises(RunError, match=f"exists and is not an empty folder; .*{advice}"):
        run(toy(private=True), out=folder, ledgers=tmp_path / "ledgers")


def test_a_folder_in_use_is_refused(private, tmp_path):
    """A run never begins in a folder that holds something; where that is a run, the refusal says how it goes on."""
    begin(tmp_path, private)
    with pytest.raises(RunError, match=r"not an empty folder; .* goes on with: fl resume /"):
        require_free(tmp_path)
    (tmp_path / "other").mkdir()
    require_free(tmp_path / "other")
    require_free(tmp_path / "absent")
    (tmp_path / "other" / "keep").write_text("x")
    for taken in (tmp_path / "other", tmp_path / "other" / "keep"):
        with pytest.raises(RunError, match=r"exists and is not an empty folder; a run needs a folder of its own$"):
            require_free(taken)
    with pytest.raises(RunError, match="no run began in this folder, so start one"):
        read_beginning(tmp_path / "other")


def test_a_run_that_waited_does_not_begin_in_anothers_folder(toy, tmp_path):
    """Two runs into one folder: the second waits for the data sets, finds the folder taken by then, and leaves it as it is."""
    ledgers, out = tmp_path / "ledgers", tmp_path / "run"
    run(toy(private=True, rounds=1), out=tmp_path / "first", ledgers=ledgers)
    lock = min(ledgers.glob("*.lock")).open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)

    def other():
        out.mkdir()
        (out / "keep").write_text("x")
        lock.close()

    timer = threading.Timer(3, other)
    timer.start()
    try:
        with pytest.raises(RunError, match="exists and is not an empty folder"):
            run(toy(private=True, rounds=1), out=out, ledgers=ledgers)
    finally:
        timer.join()
    assert [path.name for path in out.iterdir()] == ["keep"]


@pytest.mark.parametrize(
    ("old", "new", "culprit"),
    [
        ("rounds = 2", "rounds = 3", "rounds is 3, and the run began with 2"),
        ("epsilon = 2.0", "epsilon = 4.0", r"privacy\.epsilon is 4\.0, and the run began with 2\.0"),
        ('suite = "classical"', 'suite = "hybrid"', r"secagg\.suite is 'hybrid'"),
        ("[privacy]", "[privacy]\ntotal_clip = 2.0", r"privacy\.total_clip is 2\.0, and the run began with None"),
    ],
)
def test_a_changed_configuration_is_refused_by_key(private, tmp_path, old, new, culprit):
    """A run ends as it began: a key that has another value is named, with both."""
    begin(tmp_path, private)
    path = tmp_path / "config.toml"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=culprit):
        read_beginning(tmp_path)


def test_other_ledgers_are_refused_before_anything_is_sent(toy, tmp_path):
    """Sites whose ledgers do not know of the run's rounds would book them twice: the first such site is named, and nothing runs."""

    def stop(_record):
        os.kill(os.getpid(), signal.SIGINT)

    folder, ledgers = tmp_path / "run", tmp_path / "ledgers"
    with pytest.raises(RunStopped):
        run(toy(private=True), out=folder, ledgers=ledgers, progress=stop)
    entries = len(read_entries(folder / "ledger.jsonl"))
    with pytest.raises(ChainError, match=r"other/\w+\.jsonl, the ledger of site east: .* round 0: "):
        resume(folder, ledgers=tmp_path / "other")
    assert len(read_entries(folder / "ledger.jsonl")) == entries
    assert [len(read_entries(path)) for path in (tmp_path / "other").glob("*.jsonl")] == [0] * 4
    assert resume(folder, ledgers=ledgers).summary["rounds"] == 2


def test_a_finished_run_without_its_checkpoint_keeps_its_files(toy, tmp_path):
    """A folder without its checkpoints, as after tidying up: they are named, and nothing of the run is cut or replaced."""
    folder = tmp_path / "run"
    run(toy(mode="plain"), out=folder)
    shutil.rmtree(folder / "checkpoint")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(RunError, match=r"checkpoint: has no checkpoint of round 2, and the run is finished"):
        resume(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "text", "culprit"),
    [
        ("result.json", "[]", r"result\.json: is no result of a run"),
        ("metrics.jsonl", '{"round": 0, "extra": 1}\n' * 2, r"metrics\.jsonl: line 1: .*'extra'"),
        ("metrics.jsonl", '{"round": 0}\n' * 2, r"metrics\.jsonl: line 1: missing"),
        ("evaluation.jsonl", '{"auc": 0}\n', r"evaluation\.jsonl: line 1: has no round"),
        ("run.json", None, r"run\.json: .*'abc'"),
    ],
)
def test_a_file_that_was_changed_is_named(toy, tmp_path, name, text, culprit):
    """What is not what a run writes is refused by its file, and is left as it is."""
    folder = tmp_path / "run"
    run(toy(mode="plain"), out=folder)
    if text is None:
        text = json.dumps(json.loads((folder / name).read_text()) | {"silences": {"abc": {}}})
    (folder / name).write_text(text)
    with pytest.raises(RunError, match=culprit):
        resume(folder)
    assert (folder / name).read_text() == text


def broken(y, _outputs):
    """Metrics that fail at once."""
    return {"f1": y["absent"]}


def later(y, _outputs):
    """Metrics that fail after some calls, as on outputs that are not what their author thought of."""
    later.calls -= 1
    if not later.calls:
        raise ZeroDivisionError
    return {"rows": len(y)}


def test_metrics_that_fail_cost_no_budget(toy, tmp_path):
    """Tried before anything is written; where they fail later, the round is kept, and going on scores it without a new one."""
    ledgers, folder = tmp_path / "ledgers", tmp_path / "run"
    with pytest.raises(ConfigError, match=r"model\.metrics: .*:broken"):
        run(toy(f"model.metrics={__name__}:broken", private=True), out=folder, ledgers=ledgers)
    assert not folder.exists()
    later.calls = 5 + 1  # four sites and all together, when it is tried
    with pytest.raises(ConfigError, match="ZeroDivisionError") as refused:
        run(toy(f"model.metrics={__name__}:later", private=True), out=folder, ledgers=ledgers)
    assert "1 of 2 rounds are committed; go on with" in refused.value.__notes__[0]
    later.calls = -1
    assert resume(folder, ledgers=ledgers).summary["rounds"] == 2
    made = [(e.round, e.attempt) for e in read_entries(folder / "ledger.jsonl") if e.kind == "reserve"]
    assert made == [(0, 0), (1, 0)]
    evaluated = [json.loads(line) for line in (folder / "evaluation.jsonl").read_text().splitlines()]
    assert [line["round"] for line in evaluated] == [0, 1]
    assert all(line["rows"] for line in evaluated)
