"""What a run came to: the object in result.json that `--json` prints and the report shows."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fl.experiment import Experiment
from fl.metrics import SiteReport
from fl.rounds import RoundRecord
from fl.scoring import kind_of, main_metric
from fl.simulation.clock import simulated_clock
from privacy.ledger import Ledger
from privacy.plan import Plan
from secagg.params import PHASES


def summarize(
    experiment: Experiment,
    history: Sequence[RoundRecord],
    report: SiteReport,
    ledgers: Mapping[str, Ledger],
    folder: Path,
) -> dict[str, Any]:
    """Quality, privacy, and cost of a run.

    Args:
        experiment: What ran.
        history: Its committed rounds, at least one.
        report: The published model's metrics.
        ledgers: The sites' own ledgers, by site.
        folder: The run folder.
    """
    plan, model, pooled = experiment.agreement.plan, experiment.config.model, dict(report["pooled"])
    return {
        **pooled,
        "auc_site_mean": report["auc_site_mean"],
        "sites": report["sites"],
        "baselines": {},
        "metric": main_metric(model, pooled, kind_of(model, experiment.test)),
        "epsilon": _spent(plan, history),
        "epsilon_planned": plan.accounted_epsilon().upper if plan is not None else None,
        "delta": plan.delta if plan is not None else None,
        "rounds": len(history),
        "mode": experiment.config.mode,
        "dropouts": [
            {"round": record.round, "site": site, "phase": phase}
            for record in history
            for site, phase in record.dropped.items()
        ],
        "seconds": {
            phase: sum(side[phase] for record in history for side in record.seconds.values()) for phase in PHASES
        },
        "bytes": {phase: sum(way[phase] for record in history for way in record.bytes.values()) for phase in PHASES},
        "network": simulated_clock(experiment, history),
        "private": experiment.agreement.private,
        "run": str(folder),
        "epsilon_lifetime": _lifetime(experiment, ledgers),
        "insecure_test_seed": experiment.agreement.test_seed is not None,
    }


def _lifetime(experiment: Experiment, ledgers: Mapping[str, Ledger]) -> dict[str, float | None]:
    """Each data set's ε over every run that its ledger knows, at this run's δ; None where no bound covers them all."""
    plan = experiment.agreement.plan
    if plan is None:
        return {}
    totals = {name: ledger.total(plan.delta) for name, ledger in ledgers.items()}
    return {
        name: total.epsilon.upper if total.private and math.isfinite(total.epsilon.upper) else None
        for name, total in totals.items()
    }


def _spent(plan: Plan | None, history: Sequence[RoundRecord]) -> float | None:
    """The smallest of the proved bounds; with Poisson batches the plan's own, at its floor, is mostly that."""
    bounds = [bound for bound in (history[-1].epsilon or {}).values() if bound is not None]
    if plan is not None and plan.sample_rate < 1:
        bounds.append(plan.accounted_epsilon(rounds=sum(record.attempt + 1 for record in history)).upper)
    return min(bounds) if bounds else None
