import fcntl
import json
import logging
import math
import shutil
import threading

import pytest

from fl import load_config
from fl.errors import RoundFailedError, RunError
from fl.model import Adapter
from fl.simulation import ledger_folder, run
from privacy.accounting import gaussian_epsilon
from privacy.ledger import Ledger, verify
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
        "metrics.jsonl",
        "plan.json",
        "report.html",
        "result.json",
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


def test_a_second_run_on_the_same_patients_waits_its_turn(toy, tmp_path, caplog):
    """A ledger has one writer: while another process holds it a run waits, says so, and then goes on."""
    ledgers = tmp_path / "ledgers"
    run(toy(private=True, rounds=1), out=tmp_path / "a", ledgers=ledgers)
    lock = min(ledgers.glob("*.lock"))
    held = lock.open("w")
    fcntl.flock(held, fcntl.LOCK_EX)

    class Release(logging.Handler):
        def emit(self, record):  # noqa: ARG002 - the interface's
            threading.Thread(target=held.close).start()

    logger = logging.getLogger("fl.simulation")
    release = Release()
    logger.addHandler(release)
    try:
        result = run(toy(private=True, rounds=1), out=tmp_path / "b", ledgers=ledgers)
    finally:
        logger.removeHandler(release)
        held.close()
    assert "waiting for another run on the same data set" in caplog.text
    assert result.summary["rounds"] == 1


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


def test_where_ledgers_live(monkeypatch, tmp_path):
    """$SECAGG_LEDGERS, else the state folder of the user, else its default place in the home folder."""
    monkeypatch.setenv("SECAGG_LEDGERS", str(tmp_path / "mine"))
    assert ledger_folder() == tmp_path / "mine"
    monkeypatch.delenv("SECAGG_LEDGERS")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert ledger_folder() == tmp_path / "state" / "secagg" / "ledgers"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ledger_folder() == tmp_path / ".local" / "state" / "secagg" / "ledgers"


def test_a_planned_silence_is_of_the_first_attempt(toy, tmp_path):
    """Two silent sites end an attempt below the threshold; the next attempt has everybody, and both are booked."""
    silences = {0: {"north": "mask", "east": "mask"}}
    result = run(toy(private=True, rounds=4), out=tmp_path / "run", ledgers=tmp_path / "ledgers", silences=silences)
    assert [record.attempt for record in result.history] == [1, 0, 0, 0]
    assert len(result.survivors[0]) == 4
    assert verify(tmp_path / "run" / "ledger.jsonl").entries == 10  # the plan, five reservations, four commits


def test_a_sites_lifetime_budget_ends_the_run_before_anything_leaves(toy, tmp_path):
    """A site whose data set has no budget left refuses by name, whatever the run's own budget is."""
    config = toy("simulation.lifetime_epsilon=0.5", private=True, rounds=2)
    with pytest.raises(RoundFailedError, match=r"site .* refused: .*the budget is 0\.5"):
        run(config, out=tmp_path / "run", ledgers=tmp_path / "ledgers")
    booked = [line for file in (tmp_path / "ledgers").glob("*.jsonl") for line in file.read_text().splitlines()]
    assert not [line for line in booked if '"kind":"reserve"' in line]


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


def test_waiting_for_a_data_set_has_an_end(toy, tmp_path, monkeypatch):
    """A run that waits for another one on the same data gives up with the lock's path."""
    ledgers = tmp_path / "ledgers"
    run(toy(private=True, rounds=1), out=tmp_path / "a", ledgers=ledgers)
    monkeypatch.setattr("fl.simulation.TURN_TIMEOUT_S", 0.1)
    with min(ledgers.glob("*.lock")).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(RunError, match=r"another run has held this data set"):
            run(toy(private=True, rounds=1), out=tmp_path / "b", ledgers=ledgers)
    assert not (tmp_path / "b").exists()


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


def test_an_adaptive_run_keeps_to_its_plan_and_draws_its_clip_norms(toy, tmp_path):
    """Bit and update are one release: epsilon is that of the plan's noise, and the report shows C over the rounds."""
    result = run(toy(private=True, adaptive=True), out=tmp_path / "run", ledgers=tmp_path / "ledgers", silences={})
    plan = Plan.from_json((result.folder / "plan.json").read_text())
    spent = gaussian_epsilon(2 * plan.mu(4) ** 2, plan.delta).upper
    assert result.summary["epsilon"] == pytest.approx(spent, rel=1e-9)
    assert plan.sensitivity > plan.grid
    assert "clip norm C" in (result.folder / "report.html").read_text()


@pytest.mark.parametrize("mode", ["secure", "ideal"])
def test_every_site_signs_the_runs_ledger(toy, tmp_path, mode):
    """The head has the server's signature and each site's, all of the last entry; a site whose own ledger tells another story signs nothing."""
    folder = tmp_path / "run"
    silences = {1: {"west": "unmask"}}
    run(toy(private=True, mode=mode, rounds=3), out=folder, ledgers=tmp_path / "ledgers", silences=silences)
    report = verify(folder / "ledger.jsonl")
    assert {each.party: each.seq for each in report.signatures} == dict.fromkeys(
        ("server", "east", "north", "south", "west"), report.entries - 1
    )


def test_a_site_does_not_sign_what_it_did_not_see(toy, tmp_path, monkeypatch):
    """A server that books other survivors than those that were signed is found by the first site."""
    from privacy.ledger.chain import ChainError

    real = Ledger.commit

    def commit(self, reservation, *, survivors, transcript):
        mine = survivors[:-1] if self.path.name == "ledger.jsonl" else survivors
        return real(self, reservation, survivors=mine, transcript=transcript)

    monkeypatch.setattr(Ledger, "commit", commit)
    with pytest.raises(ChainError, match="survivors"):
        run(toy(private=True, rounds=1), out=tmp_path / "run", ledgers=tmp_path / "ledgers")


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
