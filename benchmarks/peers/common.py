"""What every peer is given and prints: plain NumPy, so that each peer's own interpreter can import it beside its script."""

import functools
import importlib.metadata
import json
import statistics
from typing import Any

import numpy as np

CLIENTS, EXAMPLES, FEATURES, HIDDEN, CLASSES, BATCH, RATE = 100, 20, 784, 128, 10, 10, 0.1


@functools.cache
def task() -> tuple[Any, Any, list[Any]]:
    """Features (clients, examples, 784) float32, labels (clients, examples) int64, and the first parameters: w1, b1, w2, b2."""
    rng = np.random.default_rng(0)
    x, y = rng.random((CLIENTS, EXAMPLES, FEATURES), np.float32), rng.integers(0, CLASSES, (CLIENTS, EXAMPLES))
    params: list[Any] = []
    for rows, columns in ((FEATURES, HIDDEN), (HIDDEN, CLASSES)):
        weight = rng.standard_normal((rows, columns), np.float32) * np.float32(np.sqrt(2 / rows))
        params += [weight, np.zeros(columns, np.float32)]
    return x, y, params


def line(peer: str, package: str, beside: str, seconds: list[float], loss: float) -> str:
    """The JSON line that `benchmarks/simulation.py` reads: seconds of each round that counts, and the last loss."""
    row = {
        "peer": peer,
        "version": importlib.metadata.version(package),
        "with": beside,
        "seconds_per_round": statistics.median(seconds),
        "quickest": min(seconds),
        "slowest": max(seconds),
        "rounds": len(seconds),
        "final_loss": loss,
    }
    return json.dumps(row)
