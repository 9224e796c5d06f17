import functools
import json
import math

import numpy as np
import pytest

HOSPITALS = ("cleveland", "hungary", "switzerland", "va_long_beach")
PHASES = ("advertise", "share", "mask", "confirm", "unmask")
ROUNDS = 20

CONFIG = """\
seed = 0
rounds = 20
[data]
bundled = "heart"
[model]
kind = "logistic"
[algorithm]
name = "dp_fedsgd"
[privacy]
epsilon = 1.0
delta = 1e-4
"""

TOY_SCHEMA = """
name = "toy"
[label]
column = "sick"
positive = ["1"]
negative = ["0"]
[[columns]]
name = "a"
kind = "number"
low = -3
high = 3
lowest = -10
highest = 10
[[columns]]
name = "b"
kind = "number"
low = -3
high = 3
lowest = -10
highest = 10
"""

TOY_PRIVACY = {
    "epsilon": 2.0,
    "delta": 1e-4,
    "unit": "record",
    "records_per_site": 64,
    "divisor": 60,
    "colluders": 1,
    "dropouts": 1,
}


TOY_ADAPTIVE = {
    "quantile": 0.5,
    "learning_rate": 1.0,
    "bit_noise": 8.0,
    "expected": 75,
    "min_clip": 0.01,
    "max_clip": 100.0,
}


def dropped_in(number):
    """Who falls silent in a round of the sample run, and at which phase: every fifth round, each phase in turn."""
    return {"switzerland": PHASES[number // 5 % 5]} if number % 5 == 0 else {}


@functools.cache
def make_plan():
    """The plan of the sample run: four hospitals, one dropout, one colluder."""
    from privacy.plan import Plan

    return Plan.solve(
        epsilon=1.0,
        delta=1e-4,
        rounds=ROUNDS,
        unit="record",
        relation="add-remove",
        sites=4,
        dropouts=1,
        colluders=1,
        clip=1.0,
        records_per_site=303,
        dimension=33,
        divisor=720.0,
    )


def make_rounds(plan):
    """Lines of `metrics.jsonl` whose noise and ε follow from the plan and who was there; no ε without a plan."""
    from privacy.accounting import gaussian_epsilon

    lines, spent = [], 0.0
    for number in range(1, ROUNDS + 1):
        dropped = dropped_in(number)
        survivors = [name for name in HOSPITALS if dropped.get(name) not in PHASES[:3]]
        epsilon = sigma = None
        if plan is not None:
            sigma = plan.sigma_effective(len(survivors))
            spent += plan.mu(len(survivors)) ** 2
            epsilon = dict(gaussian_epsilon(spent, plan.delta).routes)
        lines.append(
            {
                "round": number,
                "attempt": 0,
                "survivors": survivors,
                "dropped": dropped,
                "seconds": {
                    "server": {phase: 0.001 * place for place, phase in enumerate(PHASES, start=1)},
                    "client": {phase: 0.002 * place for place, phase in enumerate(PHASES, start=1)},
                },
                "bytes": {
                    "up": {phase: 1000 * place for place, phase in enumerate(PHASES, start=1)},
                    "down": {phase: 2000 * place for place, phase in enumerate(PHASES, start=1)},
                },
                "sigma_eff": sigma,
                "epsilon": epsilon,
                "transcript": f"{number:064x}",
                "update_norm": 0.1 / number,
            }
        )
    return lines


def make_result(plan, lines, *, private):
    """The object of `result.json` that goes with the lines."""
    return {
        "auc": 0.898,
        "accuracy": 0.825,
        "auc_site_mean": 0.844,
        "sites": {
            "cleveland": {"auc": 0.914, "accuracy": 0.852, "positives": 28, "negatives": 33},
            "hungary": {"auc": 0.887, "accuracy": 0.828, "positives": 21, "negatives": 37},
            "switzerland": {"auc": 0.652, "accuracy": 0.92, "positives": 23, "negatives": 2},
            "va_long_beach": {"auc": None, "accuracy": 0.75, "positives": 40, "negatives": 0},
        },
        "baselines": {
            "centralized": {"auc": 0.903, "accuracy": 0.829, "auc_site_mean": 0.847},
            "local": {"auc": 0.861, "accuracy": 0.801, "auc_site_mean": 0.806},
            "federated": {"auc": 0.902, "accuracy": 0.827, "auc_site_mean": 0.845},
        },
        "metric": {"name": "auc", "value": 0.898, "higher_is_better": True},
        "epsilon": None if plan is None else min(lines[-1]["epsilon"].values()),
        "epsilon_planned": None if plan is None else 0.9999,
        "delta": None if plan is None else plan.delta,
        "rounds": len(lines),
        "dropouts": [
            {"round": line["round"], "site": site, "phase": phase}
            for line in lines
            for site, phase in line["dropped"].items()
        ],
        "seconds": dict.fromkeys(PHASES, 0.4) | {"training": 1.25},
        "bytes": dict.fromkeys(PHASES, 60000),
        "private": private,
        "run": "runs/heart",
    }


def write_lines(path, lines):
    """A JSON-lines file."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture
def make_run(tmp_path):
    """Makes a finished run's folder: four hospitals, 20 rounds, one hospital silent in every fifth."""

    def make(*, private=True, protected=True):
        run = tmp_path / "run"
        run.mkdir()
        plan = make_plan() if protected else None
        lines = make_rounds(plan)
        (run / "config.toml").write_text(CONFIG, encoding="utf-8")
        write_lines(run / "metrics.jsonl", lines)
        write_lines(
            run / "evaluation.jsonl",
            [
                {"round": number, "auc": 0.9 - 0.3 * math.exp(-number / 3), "accuracy": 0.83 - 0.2 / number}
                for number in range(1, ROUNDS + 1)
            ],
        )
        (run / "result.json").write_text(json.dumps(make_result(plan, lines, private=private)), encoding="utf-8")
        if plan is not None:
            (run / "plan.json").write_text(plan.to_json(), encoding="utf-8")
            kinds = [kind for _ in lines for kind in ("reserve", "commit")] + ["reserve"]
            write_lines(run / "ledger.jsonl", [{"seq": seq, "kind": kind} for seq, kind in enumerate(kinds)])
        return run

    return make


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory):
    """Four sites of 24 to 30 rows with a linear rule, as site_*.csv beside their schema."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "schema.toml").write_text(TOY_SCHEMA)
    rng = np.random.default_rng(0)
    for name, rows in {"east": 30, "north": 28, "south": 26, "west": 24}.items():
        x = rng.uniform(-3, 3, (rows, 2))
        y = (x @ [1.0, -0.5] + rng.normal(0, 0.5, rows) > 0).astype(int)
        lines = ["a,b,sick", *(f"{a:.4f},{b:.4f},{label}" for (a, b), label in zip(x, y, strict=True))]
        (folder / f"site_{name}.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def toy(toy_folder):
    """A function that gives a small experiment: federated averaging, or record-level privacy, its clip norm adaptive or not."""
    from fl.config import build_config

    def config(*overrides, private=False, adaptive=False, mode="secure", rounds=2):
        table = {
            "name": "toy",
            "rounds": rounds,
            "data": {"path": str(toy_folder), "test_fraction": 0.3},
            "algorithm": {"name": "dp_fedsgd"} if private else {"name": "fedavg", "local_epochs": 1, "batch_size": 8},
            "secagg": {"mode": mode, "suite": "classical"},
        }
        if private:
            table |= {"privacy": TOY_PRIVACY, "server": {"learning_rate": 0.5, "average": "last_half"}}
        if adaptive:
            table["privacy"] = TOY_PRIVACY | {"adaptive": TOY_ADAPTIVE}
        return build_config(table, overrides)

    return config
