"""Federated learning on JAX, Flax and Optax, under secure aggregation and differential privacy."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fl.config import build_config, load_config
    from fl.rounds import RoundRecord
    from fl.sections import Config
    from fl.simulation import RunResult, resume, run

__all__ = ["Config", "RoundRecord", "RunResult", "build_config", "load_config", "resume", "run"]

_HOMES = {
    "Config": "fl.sections",
    "build_config": "fl.config",
    "load_config": "fl.config",
    "RoundRecord": "fl.rounds",
    "RunResult": "fl.simulation",
    "resume": "fl.simulation",
    "run": "fl.simulation",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: JAX takes 2 s, and `fl report` or a usage error needs none of it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fl' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
