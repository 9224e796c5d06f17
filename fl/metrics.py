"""Binary classification metrics, per site and pooled, safe to write as JSON."""

import csv
import io
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from fl.errors import DataError

_LOG = logging.getLogger(__name__)


class BinaryMetrics(TypedDict):
    """One test set's metrics.

    `auc` is None where a class is absent, `accuracy` is None where there is no row; both where a score is not finite, and
    `not_finite` names them then.
    """

    auc: float | None
    accuracy: float | None
    positives: int
    negatives: int
    not_finite: NotRequired[list[str]]


class PooledMetrics(TypedDict):
    """Metrics of all sites' test rows together."""

    auc: float | None
    accuracy: float | None
    not_finite: NotRequired[list[str]]


class SiteReport(TypedDict):
    """Metrics per site and over all sites; `auc_site_mean` is None where no site has enough of each class."""

    pooled: PooledMetrics
    auc_site_mean: float | None
    sites: dict[str, BinaryMetrics]


def binary_metrics(y: NDArray[np.int32], score: NDArray[np.floating], *, name: str = "test set") -> BinaryMetrics:
    """AUC, and accuracy where a probability of 0.5 or more says 1.

    Args:
        y: int (rows,), 0 or 1.
        score: float (rows,), probability of 1.
        name: Whose rows these are, for errors.

    Returns:
        The metrics, all finite or None.

    Raises:
        DataError: Shapes differ, a label is not 0 or 1, a finite score is not a probability; the message has `name`.

    Guarantees:
        Every number is a finite Python int or float: `json.dumps(..., allow_nan=False)` takes it.
    """
    if y.ndim != 1 or y.shape != score.shape:
        raise DataError(f"{name}: labels {y.shape} and scores {score.shape} must be one-dimensional and equally long")
    if not np.isin(y, (0, 1)).all():
        raise DataError(f"{name}: labels other than 0 and 1")
    positives = int(np.count_nonzero(y))
    negatives = len(y) - positives
    lost = int(np.count_nonzero(~np.isfinite(score)))
    if lost:
        _LOG.warning("%s: %d of %d scores are not finite (did training diverge?)", name, lost, len(score))
        return BinaryMetrics(
            auc=None, accuracy=None, positives=positives, negatives=negatives, not_finite=["auc", "accuracy"]
        )
    if len(score) and not 0 <= score.min() <= score.max() <= 1:
        raise DataError(f"{name}: scores from {score.min():g} to {score.max():g} are not probabilities")
    auc = None
    if positives and negatives:
        from sklearn.metrics import roc_auc_score  # noqa: PLC0415 - 0.8 s to import

        auc = float(roc_auc_score(y, score))
    accuracy = float(np.mean((score >= 0.5) == (y == 1))) if len(y) else None
    return BinaryMetrics(auc=auc, accuracy=accuracy, positives=positives, negatives=negatives)


def site_report(
    scored: Mapping[str, tuple[NDArray[np.int32], NDArray[np.floating]]], *, min_per_class: int = 5
) -> SiteReport:
    """Metrics per site and pooled.

    The pooled AUC flatters where sites differ in prevalence, since telling sites apart already ranks their patients;
    the mean of the sites' own AUC does not.

    Args:
        scored: Site → (labels int (rows,), probabilities float (rows,)); sites may have no rows.
        min_per_class: A site counts in `auc_site_mean` from this many test rows of each class on.

    Returns:
        The report; sites in the order given.

    Raises:
        DataError: As for `binary_metrics`, with the site's name; also no site, or `min_per_class` below 1.

    Guarantees:
        Which sites count in `auc_site_mean` depends on labels only: the same for every model on one split.
    """
    if not scored:
        raise DataError("no site to report on")
    if min_per_class < 1:
        raise DataError(f"min_per_class must be at least 1, is {min_per_class}: an AUC needs both classes")
    sites = {name: binary_metrics(y, score, name=f"site {name}") for name, (y, score) in scored.items()}
    labels, scores = (np.concatenate(parts) for parts in zip(*scored.values(), strict=True))
    pooled = binary_metrics(labels, scores, name="all sites")
    counted = [
        metrics["auc"]
        for metrics in sites.values()
        if metrics["auc"] is not None and min(metrics["positives"], metrics["negatives"]) >= min_per_class
    ]
    return SiteReport(
        pooled=_pooled(pooled),
        auc_site_mean=math.fsum(counted) / len(counted) if counted else None,
        sites=sites,
    )


def metrics_csv(
    rounds: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]], *, private: bool | None = None
) -> str:
    """A run's metrics as a table for a spreadsheet: a row for each round, in the same few columns however many sites there are.

    `survivors` and `dropped` are counts; `seconds`, `bytes_up` and `bytes_down` are sums over phases; epsilon has a column for
    each route; the evaluation's columns begin with `test.`; `private` is the last. What is None, or was not evaluated, is an
    empty cell.

    Args:
        rounds: The lines of metrics.jsonl.
        evaluations: Those of evaluation.jsonl.
        private: Whether the run's privacy promise holds; None: no such column.
    """
    tested = {line["round"]: line for line in evaluations}
    rows = [_row(line, tested.get(line["round"], {})) for line in rounds]
    text = io.StringIO()
    said = {} if private is None else {"private": "true" if private else "false"}
    names = [*dict.fromkeys(key for row in rows for key in row), *said]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row | said for row in rows)
    return text.getvalue()


def _row(line: Mapping[str, Any], test: Mapping[str, Any]) -> dict[str, Any]:
    row = {"round": line["round"], "attempt": line["attempt"]}
    row |= {key: len(line[key]) for key in ("survivors", "dropped")}
    row |= {key: line[key] for key in ("loss", "weight", "update_norm", "sigma_eff")}
    row |= {f"epsilon.{route}": bound for route, bound in (line["epsilon"] or {}).items()}
    row |= {key: line[key] for key in ("clip", "within")}
    row |= {f"bytes_{way}": sum(line["bytes"][way].values()) for way in ("up", "down")}
    row["seconds"] = sum(sum(phases.values()) for phases in line["seconds"].values())
    if "not_finite" in line:
        row["not_finite"] = " ".join(line["not_finite"])
    measured = {f"test.{key}": value for key, value in test.items() if key != "round"}
    return row | {key: " ".join(value) if isinstance(value, list) else value for key, value in measured.items()}


def _pooled(metrics: BinaryMetrics) -> PooledMetrics:
    pooled = PooledMetrics(auc=metrics["auc"], accuracy=metrics["accuracy"])
    if "not_finite" in metrics:
        pooled["not_finite"] = metrics["not_finite"]
    return pooled
