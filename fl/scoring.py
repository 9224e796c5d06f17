"""A model's quality on held-out records, per site and pooled, by the metrics that its loss or its author names."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from fl.data import SiteData
from fl.errors import ConfigError, DataError
from fl.metrics import SiteReport, site_report
from fl.model import Adapter, Local, Params
from fl.plugins import blame, import_function
from fl.sections import Model

Score: TypeAlias = Callable[[Sequence[Params], Sequence[Local]], SiteReport]
Kind: TypeAlias = Literal["binary", "classes", "quantity", "own"]
Array: TypeAlias = npt.NDArray[Any]
NOT_FINITE = "not_finite"  # among metrics: the names of those that came out as no finite number
_NOTHING: dict[str, Any] = {"auc": None, "accuracy": None}
_MEASURES = (*_NOTHING, "rmse", "mae", NOT_FINITE, "positives", "negatives", "auc_site_mean")
_RUN = ("round", "rounds", "sites", "baselines", "metric", "mode", "dropouts", "seconds", "bytes", "network", "run")
_PRIVACY = ("epsilon", "epsilon_planned", "epsilon_lifetime", "delta", "private", "insecure_test_seed", "ended")
_RESERVED = frozenset((*_MEASURES, *_RUN, *_PRIVACY))  # names that mean something in a run's files already


def probabilities(loss: str, outputs: jax.Array) -> jax.Array:
    """What a model's outputs say, by its loss: of a positive label, of the classes, or the outputs where that is its author's."""
    if loss == "logistic":
        return jax.nn.sigmoid(outputs)
    if loss == "squared":
        return jnp.clip(outputs, 0, 1)
    return jax.nn.softmax(outputs) if loss == "softmax" else outputs


def kind_of(model: Model, sites: Mapping[str, SiteData]) -> Kind:
    """What is predicted: one of two classes, one of several, a quantity, or what the author's own metrics say.

    Raises:
        DataError: labels do not fit the loss; the message names the site.
    """
    floats = any(site.y.dtype == np.float32 for site in sites.values())
    kind: Kind
    if model.loss == "softmax":
        kind = "classes"
    elif model.loss == "squared" and floats:
        kind = "quantity"
    elif model.loss in {"logistic", "squared"}:
        kind = "binary"
    else:
        kind = "own"
    for name, site in sites.items():
        if kind == "binary" and not np.isin(site.y, (0, 1)).all():
            raise DataError(f'site {name}: labels other than 0 and 1, and model.loss is "{model.loss}"')
        if kind == "classes" and (site.y.dtype != np.int32 or (site.y.size and site.y.min() < 0)):
            raise DataError(f'site {name}: labels that are no class numbers from 0, and model.loss is "softmax"')
    return kind


def scorer(adapter: Adapter, model: Model, test: Mapping[str, SiteData]) -> Score:
    """A function of (shared leaves for each site, local leaves for each site) that reports on the held-out records.

    Args:
        adapter: The model.
        model: Its loss and metrics. "logistic": outputs are logits. "squared" with classes: probabilities, clamped to [0, 1].
        test: Held-out records by site.

    Raises:
        ConfigError: the metrics cannot be imported; later, they raise anything, or give no numbers by name, or by a name that
            is taken.
        DataError: as for `kind_of`; later, outputs are not finite.
    """
    kind = kind_of(model, test)
    if model.metrics is not None:
        import_function("model.metrics", model.metrics)  # what cannot be found is said before training
    measure = partial(_own, model.metrics) if model.metrics is not None else None
    longest = max(1, *(len(site.y) for site in test.values()))
    padded = [np.pad(s.x, ((0, longest - len(s.y)), *((0, 0),) * (s.x.ndim - 1))) for s in test.values()]

    @jax.jit
    def predict(params: Params, local: Local, x: jax.Array) -> jax.Array:
        outputs = adapter.forward(params, local, x, key=jax.random.key(0), train=False)[0]
        if kind == "binary":
            outputs = probabilities(model.loss, outputs.reshape(-1))
        return outputs.astype(jnp.float32)

    def report(params: Sequence[Params], local: Sequence[Local]) -> SiteReport:
        outputs = {
            name: np.asarray(predict(p, s, x))[: len(site.y)]
            for (name, site), p, s, x in zip(test.items(), params, local, padded, strict=True)
        }
        scored = {name: (site.y, outputs[name]) for name, site in test.items()}
        if kind == "binary":
            result = site_report({name: (y, o.astype(np.float64)) for name, (y, o) in scored.items()})
        else:
            result = _report(kind, scored)
        if measure is not None:
            for name, pair in scored.items():
                result["sites"][name] |= measure(*pair)  # type: ignore[typeddict-item]  # further names
            result["pooled"] |= measure(*_pool(scored))  # type: ignore[typeddict-item]
        return result

    return report


def main_metric(model: Model, pooled: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """The one number that runs are compared by: the first of the author's own, or that of the kind."""
    first = next((name for name in pooled if name not in {*_NOTHING, "rmse", "mae", NOT_FINITE}), None)
    if model.metrics is not None and first is not None:
        name = first
    else:
        name = {"binary": "auc", "classes": "accuracy", "quantity": "rmse", "own": "loss"}[kind]
    return {"name": name, "value": pooled.get(name), "higher_is_better": name not in {"rmse", "mae", "loss"}}


def _report(kind: Kind, scored: Mapping[str, tuple[Array, Array]]) -> SiteReport:
    sites: dict[str, Any] = {
        name: {**_measures(kind, *pair), "positives": None, "negatives": None} for name, pair in scored.items()
    }
    pooled: Any = _measures(kind, *_pool(scored))
    return SiteReport(pooled=pooled, auc_site_mean=None, sites=sites)


def _measures(kind: Kind, y: Array, outputs: Array) -> dict[str, float | None]:
    if kind == "own" or not len(y):
        return dict(_NOTHING)
    if not np.isfinite(outputs).all():
        lost = ["accuracy"] if kind == "classes" else ["rmse", "mae"]
        return _NOTHING | dict.fromkeys(lost) | {NOT_FINITE: lost}
    if kind == "classes":
        return _NOTHING | {"accuracy": float(np.mean(outputs.argmax(axis=-1) == y))}
    errors = outputs.reshape(y.shape).astype(np.float64) - y
    return _NOTHING | {"rmse": math.sqrt(float(np.mean(errors**2))), "mae": float(np.mean(np.abs(errors)))}


def _own(name: str, y: Array, outputs: Array) -> dict[str, Any]:
    """The author's metrics; one that is no finite number becomes None, and its name is listed."""
    function = import_function("model.metrics", name)
    with blame("model.metrics", name):
        given = function(y, outputs) if len(y) else {}
    try:
        measured = {str(key): float(value) for key, value in given.items()}
    except Exception as error:  # of whatever object the function gives
        raise ConfigError(f"model.metrics: {name} gives no numbers by name: {error}") from error
    if taken := sorted(measured.keys() & _RESERVED):
        raise ConfigError(
            f'model.metrics: {name} gives "{taken[0]}", a name that a run has a meaning for: take another'
        )
    lost = sorted(key for key, value in measured.items() if not math.isfinite(value))
    found: dict[str, Any] = {key: None if key in lost else value for key, value in measured.items()}
    return found | ({NOT_FINITE: lost} if lost else {})


def _pool(scored: Mapping[str, tuple[Array, Array]]) -> tuple[Array, Array]:
    labels, outputs = zip(*scored.values(), strict=True)
    return np.concatenate(labels), np.concatenate(outputs)
