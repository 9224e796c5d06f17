import json
import os
import signal

import numpy as np
import pytest

from fl.baselines import federate
from fl.errors import RunError, RunStopped
from fl.experiment import prepare
from fl.model import Adapter
from fl.predict import predict
from fl.simulation import resume, run

SITES = ("east", "north", "south", "west")


@pytest.fixture(scope="module")
def finished(toy, tmp_path_factory):
    """A run of each site by itself."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    return run(toy("mode='local'", rounds=3), out=folder)


def test_a_site_alone_learns_from_its_own_rows(toy, finished):
    """Each site's model is bitwise the one of a federation of that site only, and they differ from each other."""
    experiment = prepare(toy("mode='local'", rounds=3), "run-1")
    found = {}
    for name in SITES:
        alone = federate(experiment.algorithm, {name: experiment.train[name]}, np.ones((3, 1), bool), seed=0)
        adapter = Adapter.of(finished.model[name])
        found[name] = adapter.hash(adapter.params)
        assert found[name] == experiment.adapter.hash(alone.final)
    assert len(set(found.values())) == len(SITES)


def test_it_is_reported_like_any_run(toy, finished):
    """The folder has rounds, evaluations, table, result and report, all marked as not private, and no model to publish."""
    assert sorted(path.name for path in finished.folder.iterdir()) == [
        "config.toml",
        "evaluation.jsonl",
        "metrics.csv",
        "metrics.jsonl",
        "report.html",
        "result.json",
        "run.json",
        "schema.toml",
    ]
    assert json.loads((finished.folder / "result.json").read_text()) == finished.summary
    assert (finished.summary["mode"], finished.summary["private"], finished.summary["epsilon"]) == (
        "local",
        False,
        None,
    )
    assert [record.round for record in finished.history] == [0, 1, 2]
    assert finished.survivors == (SITES,) * 3
    assert set(finished.summary["sites"]) == set(SITES)
    rows = sum(len(site.y) for site in prepare(toy("mode='local'"), "run-1").train.values())
    assert [record.weight for record in finished.history] == [rows] * 3
    assert all(record.loss > 0 for record in finished.history)


def test_a_stopped_run_starts_anew(toy, finished, tmp_path):
    """Ctrl-C ends it after a round; taken up again, it ends as one that nothing happened to, without a doubled line."""
    with pytest.raises(RunStopped, match="go on with: fl resume"):
        run(toy("mode='local'", rounds=3), out=tmp_path / "run", progress=lambda _: os.kill(os.getpid(), signal.SIGINT))
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1
    again = resume(tmp_path / "run")
    assert again.history == finished.history
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3
    for name in SITES:
        ours, theirs = (Adapter.of(result.model[name]) for result in (again, finished))
        assert ours.hash(ours.params) == theirs.hash(theirs.params)


def test_it_has_no_one_model_to_predict_with(finished, toy_folder):
    """There is a model for each site and none that is published: the refusal says so."""
    with pytest.raises(RunError, match=r'mode "local" .* each site'):
        predict(finished.folder, toy_folder / "site_north.csv")


def test_a_finished_run_is_reported_and_not_trained_again(toy, tmp_path):
    """Taken up once more it writes its report anew; its lines and its result stay byte for byte."""
    first = run(toy("mode='local'", rounds=3), out=tmp_path / "run")
    names = ("metrics.jsonl", "evaluation.jsonl", "result.json")
    before = (
        {name: (tmp_path / "run" / name).stat().st_ino for name in ("result.json",)},
        [(tmp_path / "run" / name).read_bytes() for name in names],
    )
    (tmp_path / "run" / "report.html").unlink()
    again = resume(tmp_path / "run", progress=lambda _: pytest.fail("a round"))
    after = (
        {name: (tmp_path / "run" / name).stat().st_ino for name in ("result.json",)},
        [(tmp_path / "run" / name).read_bytes() for name in names],
    )
    assert before == after
    assert (again.history, again.summary, again.model) == (first.history, first.summary, None)
    assert "finished already" in again.notes[-1]
    assert (tmp_path / "run" / "report.html").exists()
    (tmp_path / "run" / "metrics.jsonl").write_bytes(b"")
    with pytest.raises(RunError, match=r"metrics\.jsonl: has not the 3 rounds"):
        resume(tmp_path / "run")
    assert (tmp_path / "run" / "evaluation.jsonl").read_bytes() == before[1][1]
