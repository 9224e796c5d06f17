import dataclasses

import numpy as np
import pytest

from fl.baselines import _descent, baselines, scorer
from fl.errors import ConfigError
from fl.experiment import prepare
from fl.model import LOSSES, Adapter


@pytest.fixture(scope="module")
def experiment(toy):
    """Four small sites and logistic regression, with the average of the last half."""
    return prepare(toy(private=True, rounds=6), "run-1")


def gradient(vector, sites):
    """Of the mean logistic loss over all rows of some sites, in float64."""
    x = np.concatenate([site.x for site in sites]).astype(float)
    y = np.concatenate([site.y for site in sites])
    error = (1 / (1 + np.exp(-(x @ vector[1:] + vector[0]))) - y) / len(y)
    return np.concatenate([[error.sum()], x.T @ error])


def test_descent_is_full_batch_over_the_members(experiment):
    """A step goes along the mean gradient over all rows of the sites that take part in it, whatever their sizes."""
    sites = list(experiment.train.values())
    alive = np.array([[1, 1, 1, 1], [0, 1, 0, 1]], bool)
    iterates = _descent(experiment.server, LOSSES["logistic"], experiment.train)(alive)
    vector = experiment.adapter.ravel(experiment.adapter.params)
    for members, iterate in zip(alive, iterates, strict=True):
        vector = vector - 0.5 * gradient(vector, [site for site, member in zip(sites, members, strict=True) if member])
        np.testing.assert_allclose(iterate, vector, atol=1e-5)


def test_baselines_are_scored_on_the_same_rows(experiment):
    """Three baselines with three metrics each; federated with everybody present is the centralised one."""
    score = scorer(experiment.adapter, "logistic", experiment.test)
    locals_ = [experiment.adapter.local] * 4
    seen = []

    def scored(params):
        seen.append([experiment.adapter.hash(p) for p in params])
        return score(params, locals_)

    result = baselines(experiment.server, LOSSES["logistic"], experiment.train, scored, np.ones((6, 4), bool))
    assert list(result) == ["centralized", "local", "federated"]
    assert all(set(metrics) == {"auc", "accuracy", "auc_site_mean"} for metrics in result.values())
    assert result["federated"] == result["centralized"]
    assert [len(set(hashes)) for hashes in seen] == [1, 4, 1]


def test_federated_misses_what_the_run_missed(experiment):
    """A site that was out in every round of the run does not shape the federated baseline."""
    seen = []

    def scored(params):
        seen.append(experiment.adapter.hash(params[0]))
        return scorer(experiment.adapter, "logistic", experiment.test)(params, [experiment.adapter.local] * 4)

    alive = np.ones((6, 4), bool)
    alive[:, 1:] = False
    baselines(experiment.server, LOSSES["logistic"], experiment.train, scored, alive)
    centralized, first_site_alone, federated = seen
    assert federated == first_site_alone != centralized


def test_scores_are_probabilities(experiment):
    """Logits become probabilities; a least-squares model's outputs are clamped to them."""
    for loss in LOSSES:
        report = scorer(experiment.adapter, loss, experiment.test)(
            [experiment.adapter.params] * 4, [experiment.adapter.local] * 4
        )
        assert sum(site["positives"] + site["negatives"] for site in report["sites"].values()) == sum(
            len(site.y) for site in experiment.test.values()
        )


def test_scores_of_small_floats(experiment):
    """A model whose outputs are bfloat16, which scikit-learn does not know, is scored like any other."""
    from flax import nnx

    class Small(nnx.Module):
        def __init__(self):
            self.level = nnx.Param(np.ones((), "bfloat16"))

        def __call__(self, x):
            return x[:, 0].astype("bfloat16") * self.level.get_value()

    adapter = Adapter.of(Small())
    report = scorer(adapter, "logistic", experiment.test)([adapter.params] * 4, [adapter.local] * 4)
    assert 0.5 < report["pooled"]["auc"] < 1


def test_batch_statistics_are_refused(experiment):
    """Full-batch descent over sites does not define batch statistics, so such a model has no baselines."""
    from flax import nnx

    class Normed(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(2, rngs=rngs)
            self.linear = nnx.Linear(2, 1, rngs=rngs)

        def __call__(self, x):
            return self.linear(self.norm(x))

    server = dataclasses.replace(experiment.server, adapter=Adapter.of(Normed(nnx.Rngs(0))))
    with pytest.raises(ConfigError, match=r"simulation\.baselines: .*\['norm'\]\['mean'\]"):
        baselines(server, LOSSES["logistic"], experiment.train, lambda _params: None, np.ones((6, 4), bool))
