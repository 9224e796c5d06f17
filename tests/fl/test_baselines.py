import dataclasses
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from flax import nnx

from fl.algorithms import Server
from fl.baselines import Federation, baselines, federate, who_was_there
from fl.builders import build_algorithm, build_optimizer, example_of, unprotected
from fl.experiment import EVERYBODY, pooled, prepare
from fl.scoring import scorer
from fl.sections import Scaffold


@pytest.fixture(scope="module")
def experiment(toy):
    """Four small sites and logistic regression, with the average of the last half."""
    return prepare(toy(private=True, rounds=6), "run-1")


def bare(experiment, sites=4):
    """The experiment's algorithm without privacy."""
    config = experiment.config
    server = Server(experiment.adapter, build_optimizer(config), config.server.average, config.rounds, None)
    return build_algorithm(unprotected(config), server, None, sites, example_of(experiment.train))


@pytest.fixture(scope="module")
def algorithm(experiment):
    """The bare algorithm over the four sites."""
    return bare(experiment)


@pytest.fixture(scope="module")
def compared(experiment):
    """The baselines of the experiment with everybody present, and what was scored."""
    return compare(experiment)


def compare(experiment, alive=None):
    """The baselines, and what was scored for each: (parameters, local leaves) for each site."""
    score, seen = scorer(experiment.adapter, experiment.config.model, experiment.test), []

    def scored(params, local):
        seen.append((params, local))
        return score(params, local)

    found = baselines(experiment, scored, np.ones((6, 4), bool) if alive is None else alive)
    return found, dict(zip(found, seen, strict=True))


def vectors(experiment, pair):
    """The parameters of each site as vectors."""
    return np.array([experiment.adapter.ravel(params) for params in pair[0]])


def gradient(vector, sites):
    """Of the mean logistic loss over all rows of some sites, in float64."""
    x = np.concatenate([site.x for site in sites]).astype(float)
    y = np.concatenate([site.y for site in sites])
    error = (1 / (1 + np.exp(-(x @ vector[1:] + vector[0]))) - y) / len(y)
    return np.concatenate([[error.sum()], x.T @ error])


def test_descent_is_full_batch_over_the_members(experiment, algorithm):
    """A step goes along the mean gradient over all rows of the sites that take part in it, whatever their sizes."""
    sites = list(experiment.train.values())
    alive = np.array([[1, 1, 1, 1], [0, 1, 0, 1], [1, 0, 0, 1]], bool)
    vector = experiment.adapter.ravel(experiment.adapter.params)
    for number, members in enumerate(alive, start=1):
        vector = vector - 0.5 * gradient(vector, [site for site, member in zip(sites, members, strict=True) if member])
        trained = federate(algorithm, experiment.train, alive[:number], seed=0)
        np.testing.assert_allclose(experiment.adapter.ravel(trained.final), vector, atol=1e-5)


def test_baselines_are_scored_on_the_same_rows(experiment, compared):
    """Three baselines with three metrics each; federated with everybody present is the centralised one."""
    result, seen = compared
    assert list(result) == ["centralized", "local", "federated"]
    assert all(set(metrics) == {"auc", "accuracy", "auc_site_mean"} for metrics in result.values())
    assert result["federated"] == result["centralized"]
    models = {name: vectors(experiment, pair) for name, pair in seen.items()}
    assert [len(np.unique(rows, axis=0)) for rows in models.values()] == [1, 4, 1]
    np.testing.assert_allclose(models["federated"], models["centralized"], atol=1e-6)


def test_federated_misses_what_the_run_missed(experiment):
    """A site that was out in every round of the run does not shape the federated baseline."""
    alive = np.ones((6, 4), bool)
    alive[:, 1:] = False
    _, seen = compare(experiment, alive)
    centralized, alone, federated = (vectors(experiment, pair)[0] for pair in seen.values())
    assert np.array_equal(federated, alone)
    assert not np.array_equal(federated, centralized)


def test_baselines_know_no_privacy(experiment, algorithm):
    """The baselines of a private run have no clip norm, no noise and no cap on rows."""
    assert experiment.agreement.plan is not None
    assert [block.name for block in algorithm.blocks] == ["update", "weight", "loss"]
    assert algorithm.max_rows > 10**9
    assert federate(algorithm, experiment.train, np.ones((1, 4), bool), seed=0).state.clip is None


def test_control_variates_know_how_many_sites_there_are(toy):
    """SCAFFOLD over one site corrects nothing, so centralised training is plain descent of the same steps."""
    settings = ("algorithm={name='fedavg',local_steps=3,batch_size=8}", "server.learning_rate=1.0")
    descent = prepare(toy(*settings, mode="plain", rounds=6), "run-1")
    alone = federate(bare(descent, 1), {EVERYBODY: pooled(descent.train)}, np.ones((6, 1), bool), seed=0)
    chosen = msgspec.structs.replace(descent.config, algorithm=Scaffold(local_steps=3, batch_size=8))
    _, seen = compare(dataclasses.replace(descent, config=chosen))
    expected = descent.adapter.ravel(alone.final)
    np.testing.assert_allclose(vectors(descent, seen["centralized"])[0], expected, atol=1e-5)
    assert np.abs(expected - descent.adapter.ravel(descent.adapter.params)).max() > 0.1


class Normed(nnx.Module):
    """Normalisation with running statistics before a linear unit."""

    def __init__(self, features, rngs):
        self.norm = nnx.BatchNorm(features, rngs=rngs)
        self.linear = nnx.Linear(features, 1, rngs=rngs)

    def __call__(self, x):
        """(batch, features) → (batch, 1)."""
        return self.linear(self.norm(x))


def test_every_model_is_scored_with_its_own_statistics(toy):
    """Batch statistics that stay local: of all rows in one place, of each site alone, and of each site in the federation."""
    experiment = prepare(toy(f"model.kind={__name__}:Normed", "model.personal=['norm.*']", mode="plain", rounds=6), "a")
    result, seen = compare(experiment)
    means = {name: [np.asarray(own["['norm']['mean']"]) for own in local] for name, (_, local) in seen.items()}
    assert len({mean.tobytes() for mean in means["centralized"]}) == 1
    assert len({mean.tobytes() for mean in means["local"]}) == len({m.tobytes() for m in means["federated"]}) == 4
    for rows, mean in zip(experiment.train.values(), means["local"], strict=True):
        assert np.linalg.norm(mean - 0.5 * rows.x.mean(axis=0)) < np.linalg.norm(rows.x.mean(axis=0)) + 0.2
    assert all(metrics["auc"] > 0.5 for metrics in result.values())


def test_a_site_without_rows_has_a_baseline(experiment, algorithm):
    """F17: alone it keeps the first model, and in the federation it changes nothing."""
    adapter, empty = experiment.adapter, experiment.train["west"].take(np.arange(0))
    alone = federate(algorithm, {"west": empty}, np.ones((2, 1), bool), seed=0)
    assert adapter.hash(alone.final) == adapter.hash(adapter.params)
    with_it = federate(algorithm, {**experiment.train, "west": empty}, np.ones((2, 4), bool), seed=0)
    without = federate(algorithm, experiment.train, np.array([[1, 1, 1, 0]] * 2, bool), seed=0)
    assert adapter.hash(with_it.final) == adapter.hash(without.final) != adapter.hash(adapter.params)


def test_who_was_there_is_read_off_the_rounds():
    """One row a round, one column a site, in the order of the sites."""
    history = [SimpleNamespace(survivors=["b", "a"]), SimpleNamespace(survivors=["c"])]
    assert who_was_there(["a", "b", "c"], history).tolist() == [[True, True, False], [False, False, True]]


def test_an_update_that_is_not_finite_changes_nothing(experiment, algorithm):
    """F1: a site whose training went to NaN is left out of the mean and keeps its own state."""

    def spoiled(params, local, records, **rest):
        update, _ = algorithm.client_update(params, local, records, **rest)
        lost = records.present.sum() == len(experiment.train["north"].y)
        delta = update.delta * np.nan if lost else update.delta
        return dataclasses.replace(update, delta=delta), {"trained": bool(lost)}

    federation = Federation(dataclasses.replace(algorithm, client_update=spoiled), experiment.train, seed=0)
    mean = federation.round(0, experiment.train)
    rows = {name: len(site.y) for name, site in experiment.train.items()}
    assert len(set(rows.values())) == 4
    assert mean.weight == sum(rows.values()) - rows["north"]
    assert federation.local == {name: {} if name == "north" else {"trained": False} for name in rows}
