import copy
import tomllib
from pathlib import Path

import pytest

from fl.config import build_config, dump_config, load_config
from fl.demo import heart
from fl.errors import ConfigError
from fl.sections import FedAvg

EXAMPLE = Path(__file__).parents[2] / "examples" / "heart.toml"
ADAPTIVE = "privacy.adaptive={bit_noise=36.0,expected=720,min_clip=0.01,max_clip=10}"
CLIENT = "privacy={epsilon=1,delta=1e-4,unit='client',divisor=4}"
MINIMAL = {
    "name": "small",
    "rounds": 2,
    "data": {"bundled": "heart"},
    "algorithm": {"name": "fedavg", "local_epochs": 1},
}


def with_changes(*overrides, base=MINIMAL):
    """The base experiment with overrides."""
    return build_config(copy.deepcopy(base), overrides)


def test_written_and_read_again_is_the_same():
    """A run folder's config.toml gives back the same experiment, defaults written out."""
    adaptive = with_changes(CLIENT, "privacy.total_clip=2", ADAPTIVE)
    assert adaptive.privacy.adaptive.quantile == 0.5
    for config in (
        heart(seed=3),
        with_changes(CLIENT),
        with_changes("algorithm={name='fedsgd',learning_rate=0.3}", "mode=local"),
        with_changes("algorithm={name='scaffold',local_steps=3,batch_size='all'}", "model.class_weights=[1.0, 2.0]"),
        with_changes(
            "algorithm.upload=parameters", "server.strategy=median", "secagg.mode=plain", "model.personal=['a*']"
        ),
        adaptive,
        load_config(EXAMPLE.with_name("heart_adaptive.toml")),
    ):
        assert build_config(tomllib.loads(dump_config(config))) == config


def test_absent_privacy_means_none():
    """Without a privacy section there is no plan; sections that are absent have their defaults."""
    config = with_changes()
    assert config.privacy is None
    assert isinstance(config.algorithm, FedAvg)
    assert config.secagg.mode == "secure"
    assert config.secagg.suite == "hybrid"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("privacy.epsilonn=2", r"privacy\.epsilonn: no such key; did you mean privacy\.epsilon\?"),
        ("server.optimiser=sgd", r"server\.optimiser: no such key; did you mean server\.optimizer\?"),
        ("bogus=1", r"^bogus: no such key; known keys: .*rounds"),
        ("algorithm.local_steps=2", r"algorithm\.local_steps: no such key; known keys: name"),
        ("algorithm.name=sgd", r"algorithm\.name: must be one of fedavg, fedsgd, scaffold, dp_fedsgd, not 'sgd'"),
        ("algorithm.name=fedsgd", r'privacy\.unit: "fedsgd" protects a client, not a record'),
        ("rounds=ten", r"^rounds: expected `int`, got `str`"),
        ("rounds=0", r"^rounds: expected `int` >= 1"),
        ("seed=-1", r"^seed: expected `int` >= 0"),
        ("privacy.epsilon=0", r"privacy\.epsilon: expected `float` > 0"),
        ("privacy.epsilon=nan", r"privacy\.epsilon: nan is not a finite number"),
        ("privacy.clip=inf", r"privacy\.clip: inf is not a finite number"),
        ("privacy.total_clip=1", r"privacy\.total_clip: stands in place of privacy\.clip"),
        ("privacy.silos=0", r"privacy\.silos: expected `int` >= 1"),
        ("privacy.silos=1.5", r"privacy\.silos: expected `int`, got `float`"),
        ("privacy.silo=2", r"privacy\.silo: no such key; did you mean privacy\.silos\?"),
        (f"{ADAPTIVE[:-1]},quantil=0.5}}", r"privacy\.adaptive\.quantil: no such key; did you mean .*\.quantile\?"),
        (f"{ADAPTIVE[:-1]},quantile=1}}", r"privacy\.adaptive\.quantile: expected `float` < 1"),
        (f"{ADAPTIVE[:-1]},learning_rate=nan}}", r"privacy\.adaptive\.learning_rate: nan is not a finite number"),
        (f"{ADAPTIVE[:-1]},learning_rate=2}}", r"privacy\.adaptive\.learning_rate: expected `float` <= 1"),
        ("privacy.adaptive={bit_noise=1}", r"privacy\.adaptive: object missing required field `expected`"),
        ("privacy.adaptive=true", r"privacy\.adaptive: expected `object \| null`, got `bool`"),
        ("privacy.delta=2", r"privacy\.delta: expected `float` < 1"),
        ("privacy.unit=patient", r"privacy\.unit: invalid enum value 'patient'"),
        ("privacy.unit=client", r'privacy\.unit: "dp_fedsgd" protects a record, not a client'),
        ("secagg.mode=plain", r"secagg\.mode: .plain. is a float mean"),
        ("data.path=here", r"data: needs exactly one of data\.bundled, data\.path, data\.source"),
        ("data.source=os:getcwd", r"data: needs exactly one of data\.bundled, data\.path, data\.source"),
        ("data.source=os.getcwd", r"data\.source: expected `str` matching regex"),
        ("mode=central", r"^mode: invalid enum value 'central'"),
        ("model.outputs=0", r"model\.outputs: expected `int` >= 1"),
        ("model.class_weights=[1, 0]", r"model\.class_weights\[1\]: expected `float` > 0"),
        ("model.batch_stats=none", r"model\.batch_stats: invalid enum value 'none'"),
        ("model.metrics=mine", r"model\.metrics: expected `str` matching regex"),
        ("server.strategy=mode", r"server\.strategy: invalid enum value 'mode'"),
        ("data.test_fraction=1", r"data\.test_fraction: expected `float` < 1"),
        ("model.hidden=[4]", r'model\.hidden: only the "mlp"'),
        ("name=../escape", r"^name: "),
        ("server.options.momentum=nan", r"server\.options\.momentum: nan is not"),
        ("name.x=1", r"name: is a value, not a section"),
        ("rounds", r'"rounds": an override is written section\.key=value'),
        ("=1", r'"=1": an override is written'),
    ],
)
def test_errors_name_the_full_key(override, message):
    """Every unknown, mistyped or contradictory key is refused by its full path, with the nearest name."""
    with pytest.raises(ConfigError, match=message):
        with_changes(override, base=tomllib.loads(EXAMPLE.read_text()))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algorithm.name=dp_fedsgd", "algorithm.local_epochs=1"], r"algorithm\.local_epochs: no such key"),
        (["algorithm.local_steps=1"], r"exactly one of algorithm\.local_epochs and algorithm\.local_steps"),
        (["privacy={epsilon=1,delta=1e-4,divisor=4}"], r'privacy\.unit: "fedavg" protects a client'),
        (["privacy={epsilon=1,delta=1e-4,divisor=4,unit='client',records_per_site=3}"], r"privacy\.records_per_site"),
        (["model.kind=a:b", "model.outputs=2"], r'model\.outputs: "a:b" has the outputs that its function gives it'),
        (["model.kind=a:b", "model.hidden=[2]"], r'model\.hidden: only the "mlp" has hidden layers, not "a:b"'),
        (["algorithm.upload=gradients"], r"algorithm\.upload: invalid enum value 'gradients'"),
        (["algorithm.proximal=-1"], r"algorithm\.proximal: expected `float` >= 0"),
        (["algorithm.name=scaffold", "algorithm.local_steps=1"], r"exactly one of algorithm\.local_epochs"),
        (["algorithm.name=scaffold", "algorithm.optimizer=adam"], r"algorithm\.optimizer: no such key"),
        (["algorithm={name='scaffold',local_steps=1}", "server.strategy=median", "secagg.mode=plain"], "for the mean"),
        (["algorithm={name='scaffold',local_steps=1}", CLIENT], r'algorithm\.name: "scaffold" sends two vectors'),
        (["algorithm.upload=parameters", CLIENT], r'algorithm\.upload: "parameters" do not fit a clip norm'),
        (["mode=local", "checkpoint.every=2"], r'checkpoint\.every: mode "local" keeps no checkpoints'),
        (["mode=centralized", "simulation.secure_only=['a']"], r"simulation\.secure_only: .* site a asks for it"),
        (["mode=local", "network={upload_mbit=1,download_mbit=1}"], r"network: in mode .* nothing travels"),
        (["network={upload_mbit=1,download_mbit=1e308}"], r"network\.download_mbit: expected `float` <= 1000000000"),
        (["secagg.mode=plain", "secagg.threshold=3"], r"secagg\.threshold: a float mean"),
        (["simulation.lifetime_epsilon=1.0"], r"simulation\.lifetime_epsilon: without a \[privacy\] section"),
        (["simulation.chunk=4"], r"simulation\.chunk: is for simulation\.engine"),
        (["algorithm={name='fedsgd',local_steps=1}"], r"algorithm\.local_steps: no such key"),
        (["privacy={delta=1e-4,divisor=4}"], r"privacy: object missing required field `epsilon`"),
    ],
)
def test_contradictions_are_refused(overrides, message):
    """Keys that do not go together are refused by name."""
    with pytest.raises(ConfigError, match=message):
        with_changes(*overrides)


def test_record_privacy_needs_its_algorithm_and_cap():
    """dp_fedsgd without a privacy section, or without the public cap on records, is refused."""
    table = tomllib.loads(EXAMPLE.read_text())
    del table["privacy"]["records_per_site"]
    with pytest.raises(ConfigError, match=r"privacy\.records_per_site"):
        build_config(table)
    del table["privacy"]
    with pytest.raises(ConfigError, match=r"needs a \[privacy\] section"):
        build_config(table)


def test_overrides_are_toml_or_strings():
    """--set takes numbers, booleans and arrays as TOML, and anything else as a string; the last one wins."""
    config = with_changes(
        "rounds=3", "rounds=5", "model.kind=mlp", "model.hidden=[8, 4]", "server.options.nesterov=true"
    )
    assert config.rounds == 5
    assert config.model.hidden == (8, 4)
    assert config.server.options == {"nesterov": True}


def test_files_that_cannot_be_read_are_named(tmp_path):
    """A missing file, a file that is not TOML and an error inside a file are reported with the file's name."""
    with pytest.raises(ConfigError, match=r"absent\.toml: No such file"):
        load_config(tmp_path / "absent.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("name = ")
    with pytest.raises(ConfigError, match=r"broken\.toml: Invalid value"):
        load_config(broken)
    broken.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"broken\.toml: "):
        load_config(broken)
    broken.write_text("name = 'x'\nround = 3\n")
    with pytest.raises(ConfigError, match=r"broken\.toml: round: no such key; did you mean rounds\?"):
        load_config(broken)


def test_data_paths_are_relative_to_the_file(tmp_path):
    """A data folder is found from where the configuration lies, not from where the command runs."""
    file = tmp_path / "x.toml"
    file.write_text("name = 'x'\nrounds = 1\n[data]\npath = 'sites'\n[algorithm]\nname = 'fedavg'\nlocal_epochs = 1\n")
    assert load_config(file).data.path == str((tmp_path / "sites").resolve())


@pytest.mark.parametrize("mode", ["secure", "ideal"])
@pytest.mark.parametrize("strategy", ["median", "trimmed_mean"])
def test_strategies_that_are_not_linear_are_refused(mode, strategy):
    """S30: a sum knows the mean only; any other strategy is refused by its name, unless floats are averaged."""
    wanted = f"server.strategy={strategy}"
    with pytest.raises(ConfigError, match=rf'server\.strategy: "{strategy}" is not linear, and a secure sum shows no'):
        with_changes(wanted, f"secagg.mode={mode}")
    assert with_changes(wanted, "secagg.mode=plain").server.strategy == strategy
