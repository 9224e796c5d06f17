"""Float aggregation, without protocol and without privacy: the weighted mean, and strategies that are not linear.

A secure sum yields sums; a median or a trimmed mean needs every site's own values, so these are for plain runs only.
"""

import math
from collections.abc import Mapping
from typing import Literal, TypeAlias

import numpy as np

from fl.algorithms.base import Mean
from fl.algorithms.encoding import SiteUpdate, mean_of
from fl.algorithms.training import Upload
from privacy.errors import InputError

Strategy: TypeAlias = Literal["mean", "median", "trimmed_mean"]
TRIM = 0.1  # the part of the values that a trimmed mean leaves out at each end, rounded up


def plain_mean(
    updates: Mapping[str, SiteUpdate],
    *,
    upload: Upload = "delta",
    strategy: Strategy = "mean",
    uniform: bool = False,
) -> tuple[Mean, tuple[str, ...]]:
    """Average sites' updates in floats, in the order given, and tell which sites were left out.

    Args:
        updates: By site name.
        upload: What they are.
        strategy: "mean": weighted by records. "median", "trimmed_mean" (a tenth off at each end, at least one value where
            three or more are there): per entry, every site that has records alike [YCKB18].
        uniform: The mean counts every site that has records as one.

    Returns:
        The mean over the finite updates, and the names of the sites whose update is not finite.

    Raises:
        InputError: a weight is negative, or a vector has another shape than the first one; the message names the site.
    """
    shape = next(iter(updates.values())).delta.shape if updates else ()
    for name, update in updates.items():
        if update.weight < 0:
            raise InputError(f"site {name}: weight {update.weight} is negative")
        for vector in (update.delta, *update.extra.values()):
            if vector.shape != shape:  # NumPy would stretch a single value over all of them
                raise InputError(f"site {name}: a change of shape {vector.shape} among changes of shape {shape}")
    finite = {name: update for name, update in updates.items() if _is_finite(update)}
    excluded = tuple(name for name in updates if name not in finite)
    members = [update for update in finite.values() if update.weight]
    if not members:
        return Mean(None, weight=0), excluded
    weights = [min(u.weight, 1) if uniform or strategy != "mean" else u.weight for u in members]
    total = sum(weights)
    loss = sum(u.loss * w for u, w in zip(members, weights, strict=True)) / total
    if strategy != "mean":
        value = _robust(np.stack([u.delta for u in members]).astype(np.float64), strategy)
        return mean_of(upload, value, weight=total, loss=loss), excluded

    def average(
        vectors: list[np.ndarray[tuple[int, ...], np.dtype[np.floating]]],
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        sum_ = np.zeros(shape, np.float64)
        for vector, weight in zip(vectors, weights, strict=True):
            sum_ += vector.astype(np.float64) * weight
        return sum_ / total

    extra = {name: average([u.extra[name] for u in members]) for name in members[0].extra}
    return mean_of(upload, average([u.delta for u in members]), weight=total, loss=loss, extra=extra), excluded


def _is_finite(update: SiteUpdate) -> bool:
    vectors = (update.delta, *update.extra.values())
    return bool(np.isfinite(update.loss)) and all(np.isfinite(vector).all() for vector in vectors)


def _robust(
    values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], strategy: Strategy
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """The median or trimmed mean (d,) of each column of (sites, d)."""
    if strategy == "median":
        return np.median(values, axis=0)
    # Rounded down, fewer than ten sites would lose nothing, and a trimmed mean would be the plain one.
    cut = min(math.ceil(TRIM * len(values)), (len(values) - 1) // 2)
    return np.asarray(np.sort(values, axis=0)[cut : len(values) - cut].mean(axis=0))
