import dataclasses
import stat

import msgspec
import pytest

from fl.data import load_schema
from fl.errors import ConfigError, DataError, RunError
from fl.experiment import prepare
from fl.simulation.folder import Beginning, begin, discard_keys, held, read_beginning, signing_keys


@pytest.fixture(scope="module")
def experiment(toy):
    """A private experiment with a planned silence."""
    return prepare(toy(private=True), "run-1", {1: {"north": "mask"}})


def test_a_beginning_comes_back(experiment, tmp_path):
    """Name, silences, hashes and configuration are read as they were written, and are those of the same experiment."""
    begin(tmp_path, experiment)
    beginning, config = read_beginning(tmp_path)
    assert msgspec.json.encode(beginning) == msgspec.json.encode(Beginning.of(experiment))
    assert beginning.planned() == {1: {"north": "mask"}}
    assert (beginning.run, beginning.test_seed) == ("run-1", None)
    assert config == experiment.config
    assert load_schema(tmp_path / "schema.toml") == experiment.schema
    beginning.require(experiment)


def test_another_experiment_is_refused_by_name(experiment, toy):
    """A site's table, a missing site, the schema, and what the program makes of the configuration."""
    beginning = Beginning.of(experiment)
    other = dataclasses.replace(experiment.train["north"], fingerprint="ab" * 32)
    train = experiment.train
    without = {name: site for name, site in train.items() if name != "west"}
    agreement = dataclasses.replace(experiment.agreement, schema="cd" * 32)
    for error, match, changed in (
        (DataError, "site north: its table", {"train": {**train, "north": other}}),
        (DataError, "site west: is gone", {"train": without}),
        (DataError, "site new: was not there", {"train": {**train, "new": other}}),
        (ConfigError, "schema None", {"schema": None}),
        (RunError, "began with model", {"agreement": agreement}),
    ):
        with pytest.raises(error, match=match):
            beginning.require(dataclasses.replace(experiment, **changed))
    with pytest.raises(RunError, match="began with experiment"):
        beginning.require(prepare(toy("server.learning_rate=0.7", private=True), "run-1"))


def test_keys_are_their_owners_only_and_go_in_the_end(experiment, tmp_path):
    """The keys that sign the ledger come back in another process, are private, distinct, and removed with the run's end."""
    begin(tmp_path, experiment)
    server, sites = signing_keys(tmp_path, experiment)
    again, _ = signing_keys(tmp_path, experiment)
    assert server.public_key == again.public_key
    assert len({server.public_key, *(key.public_key for key in sites.values())}) == 5
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "keys").glob("*.pem")} == {0o600}
    discard_keys(tmp_path)
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize("part", [{"plan": None}, {"test_seed": 3}], ids=["no plan", "test seed"])
def test_no_keys_where_none_are_needed(experiment, tmp_path, part):
    """Without a ledger nothing is signed, and a test seed gives the same keys again."""
    other = dataclasses.replace(experiment, agreement=dataclasses.replace(experiment.agreement, **part))
    begin(tmp_path, other)
    assert not (tmp_path / "keys").exists()
    assert signing_keys(tmp_path, other) is None


def test_a_folder_is_held_by_one(tmp_path):
    """A second holder is refused while the first is there, and not afterwards."""
    with held(tmp_path), pytest.raises(RunError, match="in use"), held(tmp_path):
        pytest.fail("held twice")
    with held(tmp_path):
        pass


@pytest.mark.parametrize("text", ["{}", "[", '{"format": "fl-run/2"}'])
def test_a_damaged_beginning_is_named(tmp_path, text):
    """What is no run.json is refused with its path."""
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunError, match=r"run\.json"):
        read_beginning(tmp_path)
