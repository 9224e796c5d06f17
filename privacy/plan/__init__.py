"""What a run promises about privacy: plans, solved for what is missing, and how they look before there is data."""

from privacy.plan.outlook import Signal, epsilon_by_colluders, epsilon_by_rounds, signal
from privacy.plan.plan import Plan, PlanWarning

__all__ = ["Plan", "PlanWarning", "Signal", "epsilon_by_colluders", "epsilon_by_rounds", "signal"]
