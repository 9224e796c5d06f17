"""Every ε by two independent routes, or a refusal."""

from privacy.accounting.block import Coin, block_epsilon
from privacy.accounting.guard import Relation, Sampling, Unit
from privacy.accounting.routes import EpsilonBound, epsilon, gaussian_epsilon, noise_multiplier

__all__ = [
    "Coin",
    "EpsilonBound",
    "Relation",
    "Sampling",
    "Unit",
    "block_epsilon",
    "epsilon",
    "gaussian_epsilon",
    "noise_multiplier",
]
