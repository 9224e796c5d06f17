import json
import os
import signal
import sys

import pytest
from click.testing import CliRunner
from flax import nnx

from fl.checkpoint import Checkpoints, newest_round
from fl.cli import _bound, _print_summary, main
from fl.errors import RoundFailedError
from fl.rounds import Coordinator

TOML = """
name = "toy"
rounds = 2
[data]
path = "{folder}"
[algorithm]
name = "fedavg"
local_epochs = 1
batch_size = 8
[secagg]
suite = "classical"
"""

PRIVATE = """
[privacy]
epsilon = 1.0
delta = 1e-4
unit = "client"
divisor = 4
"""


@pytest.fixture
def toml(toy_folder, tmp_path):
    """A small experiment's file."""
    path = tmp_path / "toy.toml"
    path.write_text(TOML.format(folder=toy_folder))
    return path


@pytest.fixture
def fl(tmp_path, monkeypatch):
    """A function that runs the command, with ledgers in a folder of the test's own."""
    monkeypatch.setenv("SECAGG_LEDGERS", str(tmp_path / "ledgers"))
    return lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(result, *culprits):
    """One line on stderr with all culprits, nothing on stdout, exit code 1."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("fl: ")
    assert result.stderr.count("\n") == 1
    for culprit in culprits:
        assert culprit in result.stderr


def bad_model(features, rngs):
    """A model with two outputs where one is needed."""
    return nnx.Linear(features, 2, rngs=rngs)


def test_json_is_one_object_and_the_result(fl, toml, tmp_path):
    """--json prints the run's result and nothing else on stdout; it is also result.json."""
    result = fl("run", toml, "--out", tmp_path / "run", "--json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed == json.loads((tmp_path / "run" / "result.json").read_text())
    assert printed["rounds"] == 2
    assert printed["private"] is False
    assert printed["epsilon"] is None
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoint",
        "config.toml",
        "evaluation.jsonl",
        "metrics.csv",
        "metrics.jsonl",
        "model.json",
        "model.npz",
        "report.html",
        "result.json",
        "run.json",
        "schema.toml",
    ]


def test_summary_for_people(fl, toml, tmp_path):
    """Without --json the summary says that the run is not private, the sites, the phases and where the report is."""
    result = fl("run", toml, "--out", tmp_path / "run", "--set", "simulation.baselines=true")
    assert result.exit_code == 0, result.output
    for piece in ("NOT PRIVATE", "centralised", "not covered by ε", "this model at north", "unmask", "report.html"):
        assert piece in result.stdout


def test_client_level_privacy_and_the_ledger_goes_on(fl, toml, tmp_path):
    """A second run on the same data continues the sites' ledgers: their total grows, the run's epsilon does not."""
    toml.write_text(toml.read_text() + PRIVATE)
    first = json.loads(fl("run", toml, "--out", tmp_path / "a", "--json").stdout)
    second = json.loads(fl("run", toml, "--out", tmp_path / "b", "--json").stdout)
    assert first["private"]
    assert first["epsilon"] == pytest.approx(second["epsilon"])
    assert first["epsilon"] <= first["epsilon_planned"] * (1 + 1e-9) <= 1 + 1e-9
    for site, total in second["epsilon_lifetime"].items():
        assert total > first["epsilon_lifetime"][site] == pytest.approx(first["epsilon"])


def test_a_test_seed_is_stamped(fl, toml, tmp_path):
    """Under a test seed result, ledgers and summary say that nothing is private."""
    toml.write_text(toml.read_text() + PRIVATE)
    out = tmp_path / "run"
    result = fl("run", toml, "--out", out, "--insecure-test-seed", 3)
    assert "NOT PRIVATE" in result.stdout
    assert json.loads((out / "result.json").read_text())["private"] is False
    entries = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    assert [entry["private"] for entry in entries if entry["kind"] != "plan"] == [False] * 4


@pytest.mark.parametrize(
    ("arguments", "culprits"),
    [
        (["--set", "privacy.epsilonn=2"], ["toy.toml", "privacy.epsilonn", "did you mean privacy.epsilon?"]),
        (["--set", "algorithm.max_weight=5"], ["site east: 23 training rows, and the agreed cap is 5"]),
        (["--set", "simulation.drop_site=nort"], ["simulation.drop_site", "did you mean north?"]),
        (["--set", "server.optimizer=adamm"], ["server.optimizer", "adamm"]),
        (["--set", "model.kind=fl.no:model"], ["model.kind", "fl.no"]),
        (["--set", "data.path=/no/such/folder"], ["/no/such/folder: has no site_*.csv"]),
        (["--set", "secagg.threshold=4"], ["threshold t = 4"]),
        (["--set", "privacy={epsilon=1,delta=1e-4,divisor=4,unit='client',dropouts=4}"], ["sites - dropouts"]),
    ],
    ids=["key", "cap", "site", "optimizer", "model", "folder", "threshold", "plan"],
)
def test_what_is_refused_leaves_nothing_behind(fl, toml, tmp_path, arguments, culprits):
    """An unknown key, rows over the cap, an infeasible plan: one line names it, and no run folder appears."""
    refused(fl("run", toml, "--out", tmp_path / "run", *arguments), *culprits)
    assert not (tmp_path / "run").exists()


def test_a_cell_that_is_no_number(fl, toml, toy_folder, tmp_path):
    """F18: text in a number column is refused with file, row, column and cell, and nothing is written."""
    folder = tmp_path / "data"
    folder.mkdir()
    for file in toy_folder.iterdir():
        (folder / file.name).write_text(file.read_text())
    rows = (folder / "site_north.csv").read_text().splitlines()
    rows[3] = "many,1.0,0"
    (folder / "site_north.csv").write_text("\n".join(rows))
    result = fl("run", toml, "--out", tmp_path / "run", "--set", f"data.path={folder}")
    refused(result, "site_north.csv", "row 3", "'a'", "'many'")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("privacy", [PRIVATE, ""], ids=["client level", "no privacy"])
def test_a_nan_update_is_named(fl, toml, tmp_path, privacy):
    """S6: a site whose training diverges refuses, naming itself and the leaf; no result is written."""
    toml.write_text(toml.read_text() + privacy)
    out = tmp_path / "run"
    result = fl("run", toml, "--out", out, "--set", "algorithm.options.momentum=1e30")
    refused(result, "round 0: site east refused", "['bias']")
    assert not (out / "result.json").exists()
    assert not (out / "metrics.jsonl").exists()


def test_an_output_of_the_wrong_shape_is_named(fl, toml, tmp_path, monkeypatch):
    """S8: a model whose output does not fit the labels is refused, with both shapes."""
    monkeypatch.setattr("fl.model.factory", lambda *_: bad_model)
    result = fl("run", toml, "--out", tmp_path / "run")
    refused(result, "output has shape")


def test_a_run_needs_a_folder_of_its_own(fl, toml, tmp_path):
    """A folder that is not empty, and a file, are refused and left as they were."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "keep").write_text("x")
    refused(fl("run", toml, "--out", tmp_path / "full"), "full: exists and is not an empty folder")
    refused(fl("run", toml, "--out", toml), "toy.toml: exists and is not an empty folder")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["keep"]


def test_report_is_written_again(fl, toml, tmp_path):
    """`fl report` writes the same page from the folder alone, and names the file that is missing."""
    out = tmp_path / "run"
    fl("run", toml, "--out", out, "--json")
    page = (out / "report.html").read_text()
    (out / "report.html").unlink()
    result = fl("report", out)
    assert result.stdout.strip() == str(out / "report.html")
    assert (out / "report.html").read_text() == page
    (out / "result.json").unlink()
    refused(fl("report", out), "result.json: cannot be read")


def test_ctrl_c_says_how_to_go_on_and_resume_does(fl, toml, tmp_path, monkeypatch):
    """A stopped run exits with 130 and one line with the command, which finishes it; once more says that it is finished."""
    out = tmp_path / "run"
    save = Checkpoints.save

    def stop(self, state, sites=()):
        save(self, state, sites)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", stop)
        result = fl("run", toml, "--out", out)
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr.splitlines()[-1] == f"fl: interrupted after 1 of 2 rounds; go on with: fl resume {out}"
    result = fl("resume", out, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads((out / "result.json").read_text())
    assert (json.loads(result.stdout)["rounds"], json.loads(result.stdout)["ended"]) == (2, None)
    again = fl("resume", out)
    assert again.exit_code == 0
    assert "finished already" in again.stderr
    refused(fl("resume", tmp_path), "run.json: is not there")


def test_predict_and_export(fl, toml, toy_folder, tmp_path):
    """Scores as CSV on stdout or in a file, or as JSON; an export says where it is; what does not fit is one line."""
    out, table = tmp_path / "run", toy_folder / "site_east.csv"
    fl("run", toml, "--out", out, "--json")
    printed = fl("predict", out, table)
    assert printed.stdout.startswith("row,score\n1,0.")
    assert fl("predict", out, table, "--out", tmp_path / "scores.csv").exit_code == 0
    assert (tmp_path / "scores.csv").read_text() == printed.stdout
    scores = json.loads(fl("predict", out, table, "--json").stdout)["predictions"]
    assert [each["row"] for each in scores] == list(range(1, 31))
    assert printed.stderr.startswith("NOT PRIVATE: ")
    assert printed.stderr.count("\n") == 1
    exported = fl("export", out, tmp_path / "out")
    assert exported.stdout.strip() == str(tmp_path / "out")
    assert exported.stderr == printed.stderr
    assert [line.split(",")[-1] for line in (out / "metrics.csv").read_text().splitlines()] == [
        "private",
        "false",
        "false",
    ]
    refused(fl("predict", out, toml), "toy.toml")
    refused(fl("export", out, out), "not an empty folder")
    assert fl("predict", out, table, "--json", "--out", tmp_path / "x").exit_code == 2


def test_usage_errors_exit_with_two(fl):
    """Wrong usage is told apart from refusals by exit code 2."""
    for arguments in (["demo", "heart", "--rounds", "0"], ["run"], ["demo", "heart", "--seed", "-1"], ["nothing"]):
        assert fl(*arguments).exit_code == 2
    assert fl("--version").output.startswith("fl, version ")


@pytest.mark.parametrize(
    ("epsilon", "printed"), [(0.80001000001, "0.80002"), (1.0, "1"), (12.34500001, "12.346"), (None, "∞"), (0.0, "0")]
)
def test_a_printed_bound_is_never_below_the_proved_one(epsilon, printed):
    """An epsilon for people is rounded up, where rounding to nearest would print less than was proved."""
    assert _bound(epsilon) == printed


def test_modes_that_are_compared_with_are_told_apart(fl, toml, tmp_path):
    """One model on all rows, and each site's own: both say that they are not private, and show no protocol that there was none of."""
    for mode, title in (("centralized", "one model on all rows"), ("local", "each site's own model")):
        result = fl("run", toml, "--out", tmp_path / mode, "--set", f"mode={mode}")
        assert result.exit_code == 0, result.output
        assert "NOT PRIVATE" in result.stdout
        assert f"{title}, pooled" in result.stdout
        assert f"{title} at north" in result.stdout
        assert "unmask" not in result.stdout


@pytest.mark.parametrize(
    ("name", "value", "pooled", "title"),
    [
        ("accuracy", 0.75, {"auc": None, "accuracy": 0.75}, "accuracy"),
        ("rmse", 2.5, {"auc": None, "accuracy": None, "rmse": 2.5, "mae": 2.0}, "RMSE"),
        ("f1", 0.25, {"auc": None, "accuracy": None, "f1": 0.25}, "f1"),
        ("loss", None, {"auc": None, "accuracy": None}, "loss"),
    ],
    ids=["classes", "quantity", "own metrics", "nothing"],
)
def test_a_summary_shows_the_metrics_that_there_are(capsys, *, name, value, pooled, title):
    """A model of classes, of a quantity, with its author's metrics and with none: the metric that runs are compared by is there."""
    summary = pooled | {
        "auc_site_mean": None,
        "sites": {"north": dict(pooled)},
        "baselines": {},
        "metric": {"name": name, "value": value, "higher_is_better": name in {"accuracy", "f1"}},
        "mode": "federated",
        "private": False,
        "dropouts": [],
        "seconds": {"mask": 0.0},
        "bytes": {"mask": 0},
        "rounds": 1,
        "run": "runs/x",
    }
    _print_summary(summary, None)
    printed = capsys.readouterr().out
    header, first = (line for line in printed.splitlines() if "held-out" in line or "this model, pooled" in line)
    assert title in header
    assert "AUC" not in header
    assert ("-" if value is None else f"{value:.3f}") in first


def test_a_failed_run_says_what_is_left_of_it(fl, toml, tmp_path, monkeypatch):
    """Where rounds were committed the one line of the error names the command that goes on; it does, at those rounds."""
    out, real = tmp_path / "run", Coordinator._round

    def failing(self, state, first):
        if state.round == 1:
            raise RoundFailedError("round 1 failed")
        return real(self, state, first)

    with monkeypatch.context() as patch:
        patch.setattr(Coordinator, "_round", failing)
        refused(
            fl("run", toml, "--out", out), f"round 1 failed; 1 of 2 rounds are committed; go on with: fl resume {out}\n"
        )
    assert newest_round(out / "checkpoint") == 1
    assert json.loads(fl("resume", out, "--json").stdout)["rounds"] == 2


def test_sigterm_is_as_ctrl_c(fl, toml, tmp_path, monkeypatch):
    """SIGTERM lets the round in hand end: exit code 130, the round is committed."""
    save = Checkpoints.save

    def stop(self, state, sites=()):
        save(self, state, sites)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Checkpoints, "save", stop)
    result = fl("run", toml, "--out", tmp_path / "run")
    assert result.exit_code == 130
    assert result.stderr.endswith(f"interrupted after 1 of 2 rounds; go on with: fl resume {tmp_path / 'run'}\n")


def test_help_tells_the_exit_codes(fl):
    """What 130 means is in the help."""
    assert "130 stopped" in fl("--help").output


def test_functions_beside_the_configuration_are_found(fl, toml, toy_folder, tmp_path, monkeypatch):
    """A module beside the file is imported when it is run; going on and scoring look in the current folder; nothing stays."""
    before = list(sys.path)
    (tmp_path / "beside_the_file.py").write_text("from fl.model import logistic\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    out, table = tmp_path / "run", toy_folder / "site_east.csv"
    result = fl("run", toml, "--out", out, "--set", "model.kind=beside_the_file:logistic")
    assert result.exit_code == 0, result.output
    for command in (("resume", out), ("predict", out, table)):
        sys.modules.pop("beside_the_file")
        refused(fl(*command), "model.kind", "No module named 'beside_the_file'")
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            assert fl(*command).exit_code == 0
    assert sys.path == before
    sys.modules.pop("beside_the_file")
