import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fl.data import SiteData
from fl.errors import ConfigError, DataError
from fl.model import MLP, Adapter, Functional
from fl.scoring import kind_of, main_metric, scorer
from fl.sections import Model


def site(name, x, y):
    """A site's rows."""
    return SiteData(name, np.asarray(x, np.float32), np.asarray(y), (), name)


def passing(dtype="float32", outputs=None):
    """A model that gives back its first feature, or all of them, times a level that is 1."""

    def apply(params, state, x, **_):
        return (x[:, 0] if outputs is None else x[:, :outputs]).astype(dtype) * params["level"], state

    return Adapter.of(Functional({"level": jnp.ones((), dtype)}, apply))


def score(adapter, model, sites):
    """The report of the model as built."""
    return scorer(adapter, model, sites)([adapter.params] * len(sites), [adapter.local] * len(sites))


def labels(values, dtype=np.int32):
    """One row for each label."""
    return {"a": site("a", np.zeros((len(values), 1)), np.asarray(values, dtype))}


def test_the_loss_says_what_is_predicted():
    """Classes, a quantity, one of two, or what a loss of one's own means by it."""
    assert kind_of(Model(loss="logistic"), labels([0, 1])) == "binary"
    assert kind_of(Model(loss="squared"), labels([0, 1])) == "binary"
    assert kind_of(Model(loss="squared"), labels([0.5, 9], np.float32)) == "quantity"
    assert kind_of(Model(loss="softmax"), labels([0, 4, 2])) == "classes"
    assert kind_of(Model(loss="a:b"), labels([-3, 7])) == "own"


@pytest.mark.parametrize(
    ("loss", "values", "dtype", "message"),
    [
        ("logistic", [0, 2], np.int32, r'site a: labels other than 0 and 1, and model\.loss is "logistic"'),
        ("squared", [-1, 1], np.int32, r'site a: labels other than 0 and 1, and model\.loss is "squared"'),
        ("softmax", [0, -1], np.int32, "site a: labels that are no class numbers"),
        ("softmax", [0, 1], np.float32, "site a: labels that are no class numbers"),
    ],
)
def test_labels_that_do_not_fit_are_named(loss, values, dtype, message):
    """A label that the loss does not know is refused by its site."""
    with pytest.raises(DataError, match=message):
        kind_of(Model(loss=loss), labels(values, dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_logits_become_probabilities(dtype):
    """Logits go through the sigmoid, also those of 16 bits, which scikit-learn does not know."""
    sites = {"a": site("a", [[-2], [1], [3]], np.int32([0, 0, 1])), "b": site("b", [[-1]], np.int32([1]))}
    report = score(passing(dtype), Model(), sites)
    assert report["sites"]["a"] == {"auc": 1.0, "accuracy": 2 / 3, "positives": 1, "negatives": 2}
    assert report["sites"]["b"] == {"auc": None, "accuracy": 0.0, "positives": 1, "negatives": 0}
    assert report["pooled"] == {"auc": 0.75, "accuracy": 0.5}


def test_least_squares_outputs_are_clamped():
    """A least-squares model's outputs are probabilities, cut to [0, 1]: 0.4 says no and 9 says yes."""
    sites = {"a": site("a", [[-2], [0.4], [9]], np.int32([0, 1, 1]))}
    assert score(passing(), Model(loss="squared"), sites)["pooled"] == {"auc": 1.0, "accuracy": 2 / 3}


def test_classes_are_counted_right():
    """The largest output is the class; a site without rows has no accuracy and does not count."""
    sites = {
        "a": site("a", [[1, 0, 0], [0, 2, 0], [0, 0, 3], [5, 0, 0]], np.int32([0, 1, 2, 1])),
        "empty": site("empty", np.zeros((0, 3)), np.zeros(0, np.int32)),
    }
    report = score(passing(outputs=3), Model(loss="softmax"), sites)
    assert report["pooled"] == {"auc": None, "accuracy": 0.75}
    assert [one["accuracy"] for one in report["sites"].values()] == [0.75, None]
    assert report["auc_site_mean"] is None


def test_quantities_have_errors():
    """Root mean square and mean absolute error, per site and pooled."""
    sites = {"a": site("a", [[1], [2]], np.float32([1, 5])), "b": site("b", [[0]], np.float32([-3]))}
    report = score(passing(), Model(loss="squared"), sites)
    assert report["pooled"]["rmse"] == pytest.approx(6**0.5)
    assert report["pooled"]["mae"] == 2.0
    assert report["sites"]["b"]["rmse"] == 3.0


def test_outputs_that_are_not_finite_are_flagged():
    """A model that diverged has no accuracy, and the metric's name is listed."""
    sites = {"a": site("a", [[1, 0]], np.int32([0]))}
    report = scorer(passing(outputs=2), Model(loss="softmax"), sites)([{"['level']": jnp.float32(jnp.nan)}], [{}])
    assert report["pooled"] == {"auc": None, "accuracy": None, "not_finite": ["accuracy"]}


def own_metrics(y, outputs):
    """A number, one that is none, and one that is infinite."""
    return {"bias": np.mean(outputs[:, 0] - y), "lost": np.nan, "far": np.float64(np.inf)}


def numbers(y, outputs):
    """What is no number by name."""
    del y
    return [float(outputs.sum())]


def words(y, outputs):
    """What is no number."""
    del y, outputs
    return {"grade": "good"}


def test_metrics_of_ones_own():
    """F14: a metric that is no finite number becomes null and is listed by name; sites without rows have none."""
    sites = {
        "a": site("a", [[1, 0], [4, 0]], np.int32([0, 1])),
        "empty": site("empty", np.zeros((0, 2)), np.zeros(0, np.int32)),
    }
    model = Model(loss="own:loss", metrics=f"{__name__}:own_metrics")
    report = score(passing(outputs=2), model, sites)
    expected = {"bias": 2.0, "lost": None, "far": None, "not_finite": ["far", "lost"]}
    assert report["pooled"] == {"auc": None, "accuracy": None} | expected
    assert report["sites"]["a"]["bias"] == 2.0
    assert "bias" not in report["sites"]["empty"]
    assert main_metric(model, report["pooled"], "own") == {"name": "bias", "value": 2.0, "higher_is_better": True}


@pytest.mark.parametrize("function", ["numbers", "words"])
def test_metrics_that_are_no_numbers_are_named(function):
    """A function that gives something else is refused by its key and its name."""
    sites = {"a": site("a", [[1, 0]], np.int32([0]))}
    report = scorer(passing(outputs=2), Model(loss="own:loss", metrics=f"{__name__}:{function}"), sites)
    with pytest.raises(ConfigError, match=rf"model\.metrics: .*:{function} gives no numbers by name"):
        report([{"['level']": jnp.float32(1)}], [{}])


def test_metrics_that_are_not_there_are_said_before_training():
    """A name that cannot be imported is refused when the score is set up."""
    with pytest.raises(ConfigError, match=r"^model\.metrics: "):
        scorer(passing(), Model(metrics="absent:f"), labels([0, 1]))


def test_the_number_that_runs_are_compared_by():
    """The metric of the kind, and which way is better."""
    pooled = {"auc": 0.9, "accuracy": 0.8, "rmse": 3.0}
    found = {kind: main_metric(Model(), pooled, kind) for kind in ("binary", "classes", "quantity", "own")}
    assert found["binary"] == {"name": "auc", "value": 0.9, "higher_is_better": True}
    assert found["classes"] == {"name": "accuracy", "value": 0.8, "higher_is_better": True}
    assert found["quantity"] == {"name": "rmse", "value": 3.0, "higher_is_better": False}
    assert found["own"] == {"name": "loss", "value": None, "higher_is_better": False}


def test_each_site_is_scored_with_its_own_leaves():
    """Personal parameters of a site meet that site's rows only."""
    adapter = Adapter.of(MLP(1, (), nnx.Rngs(0)), personal=["*.bias"])
    sites = {name: site(name, np.zeros((2, 1)), np.int32([1, 1])) for name in "ab"}
    own = [{"['layers'][0]['bias']": jnp.float32([level])} for level in (5, -5)]
    report = scorer(adapter, Model(), sites)([adapter.params] * 2, own)
    assert [one["accuracy"] for one in report["sites"].values()] == [1.0, 0.0]


def test_scoring_changes_no_statistics():
    """Evaluation uses the stored statistics and random layers are off: twice scored is twice the same."""
    model = nnx.Sequential(
        nnx.BatchNorm(2, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(0)), nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    )
    adapter, rng = Adapter.of(model), np.random.default_rng(0)
    sites = {"a": site("a", rng.normal(size=(40, 2)), rng.integers(0, 2, 40).astype(np.int32))}
    first = score(adapter, Model(), sites)
    assert first == score(adapter, Model(), {"a": dataclasses.replace(sites["a"])})


def failing(y, outputs):
    """A mistake."""
    return {"x": y[len(outputs)]}


def taken(y, outputs):
    """A name that a line of metrics has already."""
    del y, outputs
    return {"f1": 1.0, "round": 2.0}


@pytest.mark.parametrize(
    ("function", "message"), [("failing", "failed: IndexError"), ("taken", 'gives "round", a name that a run has')]
)
def test_metrics_that_fail_or_take_a_name_are_refused(function, message):
    """What the author's function raises, and a name with a meaning of its own, are the configuration's fault."""
    sites = {"a": site("a", [[1, 0]], np.int32([0]))}
    with pytest.raises(ConfigError, match=rf"model\.metrics: .*:{function}\"? {message}"):
        score(passing(outputs=2), Model(loss="own:loss", metrics=f"{__name__}:{function}"), sites)
