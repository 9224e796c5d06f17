"""Each site by itself: what a site has without the others, as a run with the same rounds, split and metrics."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fl.algorithms import Mean
from fl.baselines import Federation
from fl.experiment import Experiment
from fl.files import append_line, finite, write_file
from fl.report import write_report
from fl.rounds import RoundRecord
from fl.scoring import Score
from fl.simulation.stopping import stopping
from fl.simulation.summary import summarize
from secagg.params import PHASES


def run_alone(
    experiment: Experiment, folder: Path, score: Score, progress: Callable[[RoundRecord], None]
) -> tuple[list[RoundRecord], dict[str, Any], dict[str, Any]]:
    """Train every site's own model, and write the run folder.

    It has no checkpoints and publishes no model: a run that is killed starts anew, and the models are what this returns.

    Args:
        experiment: What to run; each site is scored with its own model on its own held-out rows.
        folder: The run folder.
        score: Reports on parameters and local state for each site.
        progress: Called after every round.

    Returns:
        The rounds, the result, and each site's model by name.

    Raises:
        RunStopped: Ctrl-C or SIGTERM came.
    """
    for name in ("metrics.jsonl", "evaluation.jsonl", "result.json", "report.html"):
        (folder / name).unlink(missing_ok=True)
    seed, config = experiment.config.seed, experiment.config
    alone = {name: Federation(experiment.algorithm, {name: site}, seed=seed) for name, site in experiment.train.items()}
    history: list[RoundRecord] = []
    with stopping() as stop:
        for number in range(config.rounds):
            means = [federation.round(number, (name,)) for name, federation in alone.items()]
            history.append(_record(number, list(alone), means))
            append_line(folder / "metrics.jsonl", asdict(history[-1]))
            if number + 1 == config.rounds or (number + 1) % config.simulation.evaluate_every == 0:
                report = score([f.state.params for f in alone.values()], [f.local[n] for n, f in alone.items()])
                append_line(folder / "evaluation.jsonl", {"round": number, **report["pooled"]})
            progress(history[-1])
            if number + 1 < config.rounds:
                stop.check()
    finals = {name: federation.final for name, federation in alone.items()}
    report = score(list(finals.values()), [f.local[name] for name, f in alone.items()])
    summary = finite(summarize(experiment, history, report, {}, folder) | {"ended": None})
    write_file(folder / "result.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    write_report(folder)
    models = {name: experiment.adapter.merge(finals[name], f.local[name]) for name, f in alone.items()}
    return history, summary, models


def _record(number: int, names: list[str], means: list[Mean]) -> RoundRecord:
    weight = sum(mean.weight or 0 for mean in means)
    loss = sum((mean.loss or 0.0) * (mean.weight or 0) for mean in means) / weight if weight else None
    return RoundRecord(
        round=number,
        attempt=0,
        survivors=names,
        dropped={},
        seconds={side: dict.fromkeys(PHASES, 0.0) for side in ("server", "client")},
        bytes={way: dict.fromkeys(PHASES, 0) for way in ("up", "down")},
        sigma_eff=None,
        epsilon=None,
        transcript="",
        update_norm=0.0,
        loss=loss,
        weight=weight,
    )
