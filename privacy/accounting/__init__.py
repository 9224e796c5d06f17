"""Every ε by two independent routes, or a refusal."""

from privacy.accounting.routes import EpsilonBound, Relation, epsilon, gaussian_epsilon, noise_multiplier

__all__ = ["EpsilonBound", "Relation", "epsilon", "gaussian_epsilon", "noise_multiplier"]
