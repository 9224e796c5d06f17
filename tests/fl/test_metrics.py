import csv
import io
import json

import numpy as np
import pytest

from fl.errors import DataError
from fl.metrics import binary_metrics, metrics_csv, site_report


def labels(*values):
    """Labels as the loaders give them."""
    return np.array(values, dtype=np.int32)


def scores(*values):
    """Probabilities as a float32 model gives them."""
    return np.array(values, dtype=np.float32)


def pairwise_auc(y, score):
    """Share of (positive, negative) pairs in the right order, ties half: the definition, by brute force."""
    pairs = [(p, n) for p in score[y == 1] for n in score[y == 0]]
    return sum((p > n) + 0.5 * (p == n) for p, n in pairs) / len(pairs)


def test_matches_the_definition():
    """AUC and accuracy equal their definitions, ties and the threshold itself included."""
    generator = np.random.default_rng(1)
    y = generator.integers(0, 2, 60).astype(np.int32)
    score = generator.integers(0, 11, 60).astype(np.float32) / 10
    metrics = binary_metrics(y, score)
    assert metrics["auc"] == pytest.approx(pairwise_auc(y, score))
    assert metrics["accuracy"] == pytest.approx(sum((s >= 0.5) == t for s, t in zip(score, y, strict=True)) / 60)
    assert metrics["positives"] == y.sum()
    assert metrics["negatives"] == 60 - y.sum()


def test_half_says_one():
    """A probability of exactly 0.5 is a prediction of 1."""
    assert binary_metrics(labels(1, 0), scores(0.5, 0.5))["accuracy"] == 0.5
    assert binary_metrics(labels(1, 1), scores(0.5, 0.5))["accuracy"] == 1


@pytest.mark.parametrize(("y", "score", "accuracy"), [((1, 1), (0.9, 0.1), 0.5), ((0,), (0.1,), 1.0), ((), (), None)])
def test_no_auc_without_both_classes(y, score, accuracy):
    """One class, one row, no row: AUC is None, and the counts say why (F14, F17)."""
    metrics = binary_metrics(labels(*y), scores(*score))
    assert metrics == {"auc": None, "accuracy": accuracy, "positives": sum(y), "negatives": len(y) - sum(y)}


@pytest.mark.parametrize(
    ("y", "score", "named"),
    [
        (labels(0, 1), scores(-0.1, 1), "scores from -0.1 to 1 are not probabilities"),
        (labels(0, 1), scores(0, 3), "not probabilities"),
        (labels(0, 2), scores(0, 1), "labels other than 0 and 1"),
        (labels(0, 1), scores(0), "equally long"),
        (labels(0, 1), scores(0, 1)[:, None], "one-dimensional"),
    ],
)
def test_refuses_by_site(y, score, named):
    """Scores that are no probabilities, and labels that do not fit them, are refused with the site's name."""
    good = (labels(0, 1), scores(0, 1))
    with pytest.raises(DataError, match=f"site south: .*{named}"):
        site_report({"north": good, "south": (y, score)})


@pytest.mark.parametrize("score", [scores(0.1, np.nan), scores(-np.inf, np.inf)])
def test_scores_that_are_not_finite_give_no_metric_and_say_so(score, caplog):
    """F14: the metrics are None, by name, at that site and over all; the other site keeps its own."""
    report = site_report({"north": (labels(0, 1), scores(0, 1)), "south": (labels(0, 1), score)})
    nothing = {"auc": None, "accuracy": None, "not_finite": ["auc", "accuracy"]}
    assert report["pooled"] == nothing
    assert report["sites"]["south"] == nothing | {"positives": 1, "negatives": 1}
    assert report["sites"]["north"]["auc"] == 1
    assert "site south" in caplog.text
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_a_table_has_a_row_for_each_round():
    """Counts and sums stand for lists and phases, epsilon has its routes, None is empty, and a round without evaluation has none."""
    seconds = {"server": {"mask": 0.5, "share": 0.25}, "client": {"mask": 1.0}}
    whole = {"attempt": 0, "weight": 4, "update_norm": 0.5, "sigma_eff": None, "clip": None, "within": None}
    whole |= {"seconds": seconds, "bytes": {"up": {"mask": 3, "share": 4}, "down": {"mask": 5}}, "transcript": "ab"}
    rounds = [
        whole
        | {
            "round": 0,
            "survivors": ["a", "b"],
            "dropped": {},
            "loss": None,
            "epsilon": None,
            "not_finite": ["loss", "x"],
        },
        whole
        | {
            "round": 1,
            "survivors": ["a"],
            "dropped": {"b": "mask"},
            "loss": 0.25,
            "epsilon": {"rdp": 0.5, "pld": None},
        },
    ]
    text = metrics_csv(rounds, [{"round": 1, "auc": 0.75, "accuracy": None, "not_finite": ["accuracy"]}])
    first, second = csv.DictReader(io.StringIO(text))
    assert first == dict.fromkeys(first, "") | {
        "round": "0",
        "attempt": "0",
        "survivors": "2",
        "dropped": "0",
        "weight": "4",
        "update_norm": "0.5",
        "bytes_up": "7",
        "bytes_down": "5",
        "seconds": "1.75",
        "not_finite": "loss x",
    }
    assert (second["survivors"], second["dropped"], second["loss"]) == ("1", "1", "0.25")
    assert (second["epsilon.rdp"], second["epsilon.pld"]) == ("0.5", "")
    assert (second["test.auc"], second["test.accuracy"], second["test.not_finite"]) == ("0.75", "", "accuracy")
    assert "ab" not in text
    assert metrics_csv([], []) == "\n"


def test_report_pools_rows_and_averages_sites():
    """Pooled is over all rows; the site mean is over sites with enough of each class, and only those."""
    generator = np.random.default_rng(2)
    sites = {
        name: (
            labels(*[1] * positives, *[0] * negatives),
            generator.random(positives + negatives).astype(np.float32),
        )
        for name, positives, negatives in (("a", 5, 5), ("b", 9, 7), ("c", 30, 4), ("d", 3, 0), ("e", 0, 0))
    }
    report = site_report(sites)
    y, score = (np.concatenate(parts) for parts in zip(*sites.values(), strict=True))
    assert report["pooled"]["auc"] == pytest.approx(pairwise_auc(y, score))
    assert report["pooled"]["accuracy"] == pytest.approx(((score >= 0.5) == (y == 1)).mean())
    assert report["auc_site_mean"] == pytest.approx((pairwise_auc(*sites["a"]) + pairwise_auc(*sites["b"])) / 2)
    assert list(report["sites"]) == list("abcde")
    assert report["sites"]["c"]["auc"] == pytest.approx(pairwise_auc(*sites["c"]))
    assert report["sites"]["d"]["auc"] is None
    assert site_report(sites, min_per_class=4)["auc_site_mean"] != report["auc_site_mean"]


def test_pooled_flatters_where_prevalence_differs():
    """Scores that only tell the site apart have a pooled AUC above 0.8 and a site mean of one half."""
    ill, healthy = labels(*[1] * 90, *[0] * 10), labels(*[1] * 10, *[0] * 90)
    report = site_report({"ill": (ill, np.full(100, 0.9)), "healthy": (healthy, np.full(100, 0.1))})
    assert report["pooled"]["auc"] > 0.8
    assert report["auc_site_mean"] == 0.5


def test_the_same_sites_count_for_every_model():
    """Which sites are averaged does not depend on the scores."""
    y = {"big": labels(*[0, 1] * 10), "small": labels(0, 0, 1)}
    for score in (0.0, 1.0):
        report = site_report({name: (part, np.full(len(part), score)) for name, part in y.items()})
        assert report["auc_site_mean"] == 0.5 == report["sites"]["big"]["auc"]


def test_no_site_has_enough():
    """Without a site that counts the mean is None, not NaN (F14)."""
    assert site_report({"a": (labels(0, 1), scores(0, 1))})["auc_site_mean"] is None


def test_every_number_is_safe_to_write():
    """The report survives strict JSON with its values and types."""
    report = site_report({"a": (labels(*[0, 1] * 6), scores(*[0.25, 0.75] * 6)), "b": (labels(), scores())})
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_refuses_nothing_to_report():
    """No site, and a class count of 0, are refused."""
    with pytest.raises(DataError, match="no site"):
        site_report({})
    with pytest.raises(DataError, match="min_per_class must be at least 1, is 0"):
        site_report({"a": (labels(0, 1), scores(0, 1))}, min_per_class=0)
