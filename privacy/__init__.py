"""Differential privacy for sums of integers under secure aggregation: plans, noise, accounting, budgets, ledgers."""

from privacy.accounting import EpsilonBound, block_epsilon, epsilon, gaussian_epsilon, noise_multiplier
from privacy.adaptive import AdaptiveClip, AdaptiveCodec
from privacy.budget import Budget
from privacy.codec import FixedPoint, GridCodec
from privacy.errors import (
    AccountingError,
    BudgetExceededError,
    InputError,
    LedgerError,
    PlanError,
    PrivacyError,
    SamplerError,
)
from privacy.ledger import Ledger, LedgerReport, LedgerTotal, Reservation, verify
from privacy.noise import NoiseSource
from privacy.plan import Plan, PlanWarning
from privacy.sampling import DiscreteGaussian

__all__ = [
    "AccountingError",
    "AdaptiveClip",
    "AdaptiveCodec",
    "Budget",
    "BudgetExceededError",
    "DiscreteGaussian",
    "EpsilonBound",
    "FixedPoint",
    "GridCodec",
    "InputError",
    "Ledger",
    "LedgerError",
    "LedgerReport",
    "LedgerTotal",
    "NoiseSource",
    "Plan",
    "PlanError",
    "PlanWarning",
    "PrivacyError",
    "Reservation",
    "SamplerError",
    "block_epsilon",
    "epsilon",
    "gaussian_epsilon",
    "noise_multiplier",
    "verify",
]
