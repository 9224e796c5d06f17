import json
import math
import shutil

import pytest

from fl import load_config
from fl.errors import RoundFailedError, RunError
from fl.model import Adapter
from fl.simulation import run
from privacy.accounting import gaussian_epsilon
from privacy.ledger import verify
from privacy.plan import Plan

DROPS = {0: {"north": "advertise"}, 1: {"east": "mask"}, 2: {"south": "confirm"}, 3: {"west": "unmask"}}


def model_hash(result):
    """Of the published model."""
    adapter = Adapter.of(result.model)
    return adapter.hash(adapter.params)


@pytest.mark.parametrize("kind", ["private", "adaptive", "public"])
def test_ideal_and_secure_give_bitwise_the_same_model(toy, tmp_path, kind):
    """Under a test seed the protocol changes no bit of model and clip norm, with silences in different phases and without."""
    hashes, clips = {}, {}
    for mode in ("secure", "ideal"):
        for silences in ({}, DROPS):
            out = tmp_path / f"{mode}-{len(silences)}"
            result = run(
                toy(private=kind != "public", adaptive=kind == "adaptive", mode=mode, rounds=4),
                out=out,
                ledgers=tmp_path / "ledgers",
                insecure_test_seed=1,
                silences=silences,
            )
            hashes[mode, len(silences)] = model_hash(result)
            clips[mode, len(silences)] = [(record.clip, record.within) for record in result.history]
            assert [len(names) for names in result.survivors] == ([3, 3, 4, 4] if silences else [4] * 4)
    assert hashes["secure", 0] == hashes["ideal", 0]
    assert hashes["secure", 4] == hashes["ideal", 4]
    assert hashes["secure", 0] != hashes["secure", 4]
    for count in (0, 4):
        assert clips["secure", count] == clips["ideal", count]
        assert len(set(clips["secure", count])) == (4 if kind == "adaptive" else 1)


def test_a_run_leaves_a_complete_folder(toy, tmp_path):
    """Config, plan, verifiable ledger with signed head, metrics, checkpoint, result and report, and nothing else."""
    out = tmp_path / "run"
    seen = []
    result = run(
        toy(private=True), out=out, ledgers=tmp_path / "ledgers", progress=lambda record: seen.append(record.round)
    )
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoint",
        "config.toml",
        "evaluation.jsonl",
        "ledger.head.json",
        "ledger.jsonl",
        "metrics.csv",
        "metrics.jsonl",
        "model.json",
        "model.npz",
        "plan.json",
        "report.html",
        "result.json",
        "run.json",
        "schema.toml",
    ]
    assert seen == [0, 1]
    assert load_config(out / "config.toml") == toy(private=True)
    checked = verify(result.ledger)
    assert checked.head == "ok"
    assert checked.total.private
    assert checked.total.epsilon.upper == pytest.approx(result.summary["epsilon"], rel=1e-9)
    assert json.loads((out / "result.json").read_text()) == result.summary
    assert result.summary["private"]
    assert result.summary["baselines"] == {}
    assert {path.suffix for path in (tmp_path / "ledgers").iterdir()} == {".jsonl", ".lock"}
    for path in (tmp_path / "ledgers").glob("*.jsonl"):
        assert verify(path).total.epsilon.upper == pytest.approx(result.summary["epsilon"], rel=1e-9)


def test_without_privacy_no_ledger_is_made(toy, tmp_path):
    """A run without a plan books nothing, and says that it is not private."""
    result = run(toy(), out=tmp_path / "run", ledgers=tmp_path / "ledgers")
    assert result.ledger is None
    assert not (tmp_path / "ledgers").exists()
    assert result.summary["private"] is False
    assert result.summary["epsilon"] is None


def test_ideal_is_not_called_private(toy, tmp_path):
    """Noise without the protocol protects nobody from the server, so an ideal run never says private."""
    result = run(toy(private=True, mode="ideal", rounds=1), out=tmp_path / "run", ledgers=tmp_path / "ledgers")
    assert result.summary["private"] is False
    assert verify(result.ledger).total.private is False


def test_an_empty_site_takes_part(toy, toy_folder, tmp_path):
    """F17: a site without rows runs through a private run like any other, noise and ledger included."""
    folder = tmp_path / "data"
    folder.mkdir()
    for file in toy_folder.iterdir():
        (folder / file.name).write_text(file.read_text())
    (folder / "site_west.csv").write_text("a,b,sick\n")
    result = run(toy(f"data.path={folder}", private=True, rounds=1), out=tmp_path / "run", ledgers=tmp_path / "ledgers")
    assert result.survivors == (("east", "north", "south", "west"),)
    assert result.summary["sites"]["west"] == {"auc": None, "accuracy": None, "positives": 0, "negatives": 0}


def test_a_folder_in_use_is_refused(toy, tmp_path):
    """A run never writes into a folder that holds something."""
    (tmp_path / "keep").write_text("x")
    with pytest.raises(RunError, match="exists and is not an empty folder"):
        run(toy(), out=tmp_path)


def test_a_sites_lifetime_budget_ends_the_run_before_anything_leaves(toy, tmp_path):
    """A site whose data set has no budget left refuses by name, whatever the run's own budget is."""
    config = toy("simulation.lifetime_epsilon=0.5", private=True, rounds=2)
    with pytest.raises(RoundFailedError, match=r"site .* refused: .*the budget is 0\.5"):
        run(config, out=tmp_path / "run", ledgers=tmp_path / "ledgers")
    booked = [line for file in (tmp_path / "ledgers").glob("*.jsonl") for line in file.read_text().splitlines()]
    assert not [line for line in booked if '"kind":"reserve"' in line]


@pytest.mark.usefixtures("whole_report")
def test_a_data_set_that_a_test_seed_touched_has_no_lifetime_bound(toy, tmp_path):
    """A private run after one under a test seed reports no bound over all runs, and its own epsilon as ever."""
    ledgers = tmp_path / "ledgers"
    seeded = run(toy(private=True, rounds=1), out=tmp_path / "a", ledgers=ledgers, insecure_test_seed=1)
    assert (seeded.summary["private"], seeded.summary["insecure_test_seed"]) == (False, True)
    after = run(toy(private=True, rounds=1), out=tmp_path / "b", ledgers=ledgers)
    assert (after.summary["private"], after.summary["insecure_test_seed"]) == (True, False)
    assert set(after.summary["epsilon_lifetime"].values()) == {None}
    assert 0 < after.summary["epsilon"] < math.inf
    assert "no bound" in (tmp_path / "b" / "report.html").read_text()


def test_a_spent_data_set_still_gets_its_run(toy, tmp_path):
    """When the lifetime epsilon has no finite bound any more, a run says so and ends as every other."""
    config = toy("privacy.epsilon=45", private=True, rounds=1)
    for number in range(3):
        result = run(config, out=tmp_path / str(number), ledgers=tmp_path / "ledgers")
    assert set(result.summary["epsilon_lifetime"].values()) == {None}


def test_persons_at_two_sites_are_booked_at_twice_the_steps(toy, toy_folder, tmp_path):
    """With two silos and one table at two sites each has a ledger of its own, whose epsilon is that of twice the grid."""
    folder = tmp_path / "data"
    shutil.copytree(toy_folder, folder)
    (folder / "site_west.csv").write_text((folder / "site_north.csv").read_text())
    config = toy(f"data.path={folder}", "privacy.silos=2", private=True)
    result = run(config, out=tmp_path / "run", ledgers=tmp_path / "ledgers", silences={})
    plan = Plan.from_json((result.folder / "plan.json").read_text())
    mu_squared = 2 * (2 * plan.grid / plan.sigma_effective(4)) ** 2
    expected = gaussian_epsilon(mu_squared, plan.delta).upper
    assert result.summary["epsilon"] == pytest.approx(expected, rel=1e-9)
    assert expected > 1.5 * gaussian_epsilon(mu_squared / 4, plan.delta).upper
    books = [verify(path).total for path in (tmp_path / "ledgers").glob("*.jsonl")]
    assert [total.epsilon.upper for total in books] == pytest.approx([expected] * 4, rel=1e-9)
    again = run(config, out=tmp_path / "again", ledgers=tmp_path / "ledgers", silences={})
    assert set(again.summary["epsilon_lifetime"]) == {"east", "north", "south", "west"}
    assert len(list((tmp_path / "ledgers").glob("*.jsonl"))) == 4
    assert min(again.summary["epsilon_lifetime"].values()) > 1.2 * expected


@pytest.mark.usefixtures("whole_report")
def test_an_adaptive_run_keeps_to_its_plan_and_draws_its_clip_norms(toy, tmp_path):
    """Bit and update are one release: epsilon is that of the plan's noise, and the report shows C over the rounds."""
    result = run(toy(private=True, adaptive=True), out=tmp_path / "run", ledgers=tmp_path / "ledgers", silences={})
    plan = Plan.from_json((result.folder / "plan.json").read_text())
    spent = gaussian_epsilon(2 * plan.mu(4) ** 2, plan.delta).upper
    assert result.summary["epsilon"] == pytest.approx(spent, rel=1e-9)
    assert plan.sensitivity > plan.grid
    assert "clip norm C" in (result.folder / "report.html").read_text()


def test_a_larger_delta_buys_no_lifetime_budget(toy, tmp_path):
    """The data set's policy has a delta of its own: a run that asks for a larger one is refused as one that does not."""
    ledgers = tmp_path / "ledgers"
    policy = ("simulation.lifetime_epsilon=1.0", "simulation.lifetime_delta=1e-5", "privacy.epsilon=1.0")
    run(toy(*policy, "privacy.delta=1e-5", private=True, rounds=1), out=tmp_path / "a", ledgers=ledgers)
    for number, delta in enumerate((1e-5, 1e-3)):
        with pytest.raises(RoundFailedError, match="over all its runs"):
            run(
                toy(*policy, f"privacy.delta={delta}", "privacy.epsilon=0.9", private=True, rounds=1),
                out=tmp_path / str(number),
                ledgers=ledgers,
            )
