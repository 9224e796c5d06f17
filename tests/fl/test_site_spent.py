"""A site whose data set has no budget left, in a run whose server believes that there is some."""

import json

import pytest

from fl import run
from fl.errors import RoundFailedError
from fl.experiment import prepare
from privacy.ledger import Ledger, read_entries, verify

RUN = "before"


def spend(experiment, ledgers, names):
    """Book an earlier run of the same plan on the data sets of some sites; their ledgers, by name."""
    ledgers.mkdir()
    plan, files = experiment.agreement.plan, {}
    for name in names:
        site = experiment.train[name]
        files[name] = ledgers / f"{site.fingerprint}.jsonl"
        with Ledger(files[name]) as ledger:
            for number in range(plan.rounds):
                ledger.reserve(run=RUN, round=number, attempt=0, plan=plan, private=True, data_set=site.fingerprint)
    return files


@pytest.mark.parametrize("mode", ["secure", "ideal"])
def test_a_spent_site_is_a_dropout_and_says_why(toy, tmp_path, mode):
    """Its vector never leaves, its ledger stays as it was, the others' sum is taken, and the server's own ledger goes on."""
    config = toy(
        "simulation.lifetime_epsilon=1.05",
        "simulation.lifetime_delta=1e-4",
        "privacy.epsilon=1.0",
        private=True,
        mode=mode,
        rounds=3,
    )
    experiment = prepare(config, "names only")
    files = spend(experiment, tmp_path / "ledgers", ["north"])
    before = files["north"].read_bytes()
    result = run(config, out=tmp_path / "run", ledgers=tmp_path / "ledgers")
    assert [record.survivors for record in result.history] == [["east", "south", "west"]] * 3
    assert files["north"].read_bytes() == before
    assert verify(tmp_path / "run" / "ledger.jsonl").rounds == 3
    for line in map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()):
        assert line["dropped"] == {"north": "mask"}
        assert set(line["refused"]) == {"north"}
        assert "budget" in line["refused"]["north"]
    others = [path for path in (tmp_path / "ledgers").glob("*.jsonl") if path != files["north"]]
    assert [sum(entry.kind == "commit" for entry in read_entries(path)) for path in others] == [3, 3, 3]


def test_two_spent_sites_are_one_too_many(toy, tmp_path):
    """Below the least number of survivors the run ends with the reason, and nothing of the spent sites was booked."""
    config = toy(
        "simulation.lifetime_epsilon=1.05",
        "simulation.lifetime_delta=1e-4",
        "privacy.epsilon=1.0",
        private=True,
        rounds=3,
    )
    files = spend(prepare(config, "names only"), tmp_path / "ledgers", ["north", "west"])
    before = {path: path.read_bytes() for path in files.values()}
    with pytest.raises(RoundFailedError, match=r"site (north|west) refused: .*over all its runs"):
        run(config, out=tmp_path / "run", ledgers=tmp_path / "ledgers")
    assert {path: path.read_bytes() for path in before} == before
