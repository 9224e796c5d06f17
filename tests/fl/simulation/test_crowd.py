import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fl import build_config, run
from fl.algorithms.scaffold import CONTROL, OWN
from fl.data import GeneratedPopulation
from fl.errors import ConfigError, ModelError
from fl.experiment import prepare
from fl.model import Adapter
from fl.simulation import resume
from fl.simulation.crowd import Crowd
from fl.site import Announcement
from secagg.cores import CORES

RULE = np.array([1.0, -2.0, 0.5, 0.0], np.float32)


def population(seed):
    """A million clients of eight records each, and held-out records of the same law."""

    def generate(key, _client, rule):
        x = jax.random.normal(key, (8, 4))
        return x, (x @ rule > 0).astype(jnp.int32), jnp.ones(8, bool)

    x = np.random.default_rng(1).normal(size=(200, 4)).astype(np.float32)
    clients = GeneratedPopulation(1_000_000, 8, generate, seed, jnp.asarray(RULE))
    return clients, {"held out": (x, (x @ RULE > 0).astype(np.int32))}


def source(seed):
    """Twelve clients with rows of their own."""
    rng = np.random.default_rng(seed)
    clients = {}
    for index in range(12):
        x = rng.normal(size=(10 + index, 4)).astype(np.float32)
        clients[f"c{index:02d}"] = (x, (x @ RULE > 0).astype(np.int32))
    return clients


def config(*overrides, mode="ideal", rounds=3, data=None, **sections):
    """A small cohort experiment."""
    table = {
        "name": "crowd",
        "rounds": rounds,
        "data": data or {"population": f"{__name__}:population"},
        "algorithm": {"name": "fedavg", "local_epochs": 1, "batch_size": 4, "learning_rate": 1.0},
        "secagg": {"mode": mode, "suite": "classical"},
        "simulation": {"engine": "cohort", "cohort": 6},
    }
    return build_config(table | sections, overrides)


def weights(result):
    """The published model as exact bytes."""
    adapter = Adapter.of(result.model)
    return adapter.hash(adapter.params)


PRIVACY = {"unit": "client", "epsilon": 8.0, "delta": 1e-3, "clip": 0.5, "divisor": 6, "dropouts": 2}


@pytest.mark.parametrize("privacy", [None, PRIVACY], ids=["exact", "private"])
def test_ideal_is_the_protocols_sum(tmp_path, privacy):
    """The compiled program's sums are those of the real protocol over the same clients, silences and noise included."""
    sections = {"privacy": privacy} if privacy else {}
    results = {
        mode: run(config("simulation.drop_rate=0.34", mode=mode, **sections), out=tmp_path / mode, insecure_test_seed=5)
        for mode in ("ideal", "secure")
    }
    assert weights(results["ideal"]) == weights(results["secure"])
    for one, two in zip(results["ideal"].history, results["secure"].history, strict=True):
        assert one.survivors == two.survivors
        assert len(one.survivors) == 4
    assert sum(results["secure"].summary["bytes"].values()) > 0
    assert results["ideal"].summary["auc"] > 0.8 or privacy


def test_each_round_draws_its_own_cohort(tmp_path):
    """Six of a million clients, others in every round, the same ones under the same seed."""
    first, again = (run(config(mode="plain"), out=tmp_path / name) for name in ("one", "two"))
    assert weights(first) == weights(again)
    drawn = [frozenset(names) for names in first.survivors]
    assert [len(names) for names in drawn] == [6, 6, 6]
    assert len(frozenset.union(*drawn)) > 12


def test_clients_with_rows_of_their_own_may_keep_state(tmp_path):
    """Personal parameters stay with each client from round to round, and a resumed run has them again."""
    data = {"source": f"{__name__}:source"}
    chosen = config("model.personal=['bias']", data=data, rounds=4, checkpoint={"every": 2})
    whole = run(chosen, out=tmp_path / "whole")

    def stop(record):
        if record.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(chosen, out=tmp_path / "cut", progress=stop)
    again = resume(tmp_path / "cut")
    assert weights(again) == weights(whole)
    ours, theirs = (
        [dataclasses.replace(r, seconds={}, transcript="") for r in each.history] for each in (again, whole)
    )
    assert ours == theirs


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.personal=['bias']",), r"leaf \['bias'\] .* generated clients keep nothing"),
        (("server.strategy='median'", "secagg.mode='plain'"), r'server\.strategy: "median" looks at every update'),
        (("simulation.lifetime_epsilon=1.0",), r"simulation\.lifetime_epsilon"),
        (("simulation.drop_site='c1'",), r"simulation\.drop_site"),
        (("simulation.cohort=2000000",), r"simulation\.cohort: 2000000 clients a round, and there are 1000000"),
    ],
)
def test_what_a_crowd_cannot_do_is_refused(tmp_path, overrides, message):
    """Local state of generated clients, and a cohort larger than the population, are refused by name."""
    with pytest.raises((ConfigError, ModelError), match=message):
        run(config(*overrides), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_scaffolds_control_is_the_mean_over_all_clients():
    """A round of four of twelve clients moves the server's control by a third of their mean change: it stays the mean of all."""
    data = {"source": f"{__name__}:source"}
    algorithm = {"name": "scaffold", "local_epochs": 1, "batch_size": 4, "learning_rate": 0.1}
    chosen = config("simulation.cohort=4", data=data, algorithm=algorithm, mode="plain")
    experiment = prepare(chosen, "crowd-1")
    crowd, state = Crowd(experiment), experiment.algorithm.init(experiment.algorithm.params)
    for number in range(3):
        model = experiment.adapter.ravel(state.params)
        told = state.broadcast
        announced = Announcement(number, 0, model, experiment.adapter.hash(state.params, told), broadcast=told)
        state = experiment.algorithm.server_update(state, crowd.aggregate(announced).mean)
    own = np.mean([local[OWN] for local in crowd.local.values()], axis=0)
    assert np.abs(own).max() > 0.01
    np.testing.assert_allclose(state.broadcast[CONTROL], own, atol=1e-6)


PRIVATE = """
import importlib.util, pathlib, sys
import jax
spec = importlib.util.spec_from_file_location("here", sys.argv[1])
here = importlib.util.module_from_spec(spec)
sys.modules["here"] = here
spec.loader.exec_module(here)
data, folder = {"population": "here:population"}, pathlib.Path(sys.argv[2])
bits = [
    here.weights(here.run(here.config(mode=mode, data=data, privacy=here.PRIVACY), out=folder / mode, insecure_test_seed=1))
    for mode in ("ideal", "secure")
]
print(jax.local_device_count(), bits[0] == bits[1])
"""


def test_a_private_cohort_over_a_device_for_each_core(tmp_path):
    """In a process of its own a run splits its cohort over a device a core, clip norm and noise included, to the protocol's bits."""
    done = subprocess.run(
        [sys.executable, "-c", PRIVATE, __file__, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [str(CORES), "True"]
