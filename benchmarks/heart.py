"""What does privacy cost on the heart table, and what does the protocol cost in time?

Means over seeds of the demo's settings; the last columns are the run's wall time and its ratio to the same run with the ideal
sum (integers without cryptography), measured side by side. Usage: heart.py [FIRST_SEED [SEEDS]]
"""

import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import msgspec

from fl import run
from fl.demo import heart
from fl.sections import Config
from secagg.params import SlackWarning

EPSILONS = (1.0, 0.5, 0.25)


def without_protocol(config: Config) -> Config:
    """The same experiment with the ideal sum."""
    return msgspec.structs.replace(config, secagg=msgspec.structs.replace(config.secagg, mode="ideal"))


def timed(config: Config, folder: Path) -> tuple[dict[str, object], float]:
    """A run's summary and its seconds."""
    start = time.perf_counter()
    result = run(config, out=folder, ledgers=folder.parent / "ledgers")
    return result.summary, time.perf_counter() - start


def main() -> None:
    """Print one table."""
    warnings.simplefilter("ignore", SlackWarning)
    first, count = [int(text) for text in sys.argv[1:3]] + [0, 5][len(sys.argv) - 1 :]
    seeds = range(first, first + count)
    print(f"seeds {first}..{first + count - 1}, 40 rounds, delta = 1e-4")
    print(f"{'':<28} {'AUC':>7} {'accuracy':>9} {'site AUC':>9} {'epsilon':>8} {'seconds':>8} {'/ ideal':>8}")
    baselines = None
    with tempfile.TemporaryDirectory() as scratch:
        for epsilon in EPSILONS:
            runs, ideal = [], []
            for seed in seeds:
                config = heart(seed=seed, epsilon=epsilon)
                runs.append(timed(config, Path(scratch, f"secure-{epsilon}-{seed}")))
                ideal.append(timed(without_protocol(config), Path(scratch, f"ideal-{epsilon}-{seed}"))[1])
            rows = [summary for summary, _ in runs]
            seconds = statistics.median(s for _, s in runs)
            ratio = statistics.median(s / i for (_, s), i in zip(runs, ideal, strict=True))
            print(
                f"{f'private, epsilon <= {epsilon:g}':<28} {figures(rows)} {mean(rows, 'epsilon'):>8.3f} {seconds:>8.2f} {ratio:>8.2f}"
            )
            baselines = baselines or [row["baselines"] for row in rows]
    for name in ("federated", "centralized", "local"):
        print(f"{name + ', not private':<28} {figures([row[name] for row in baselines])}")


def mean(rows: list[dict[str, float]], key: str) -> float:
    """Over the seeds."""
    return statistics.mean(row[key] for row in rows)


def figures(rows: list[dict[str, float]]) -> str:
    """The three metrics' means."""
    return f"{mean(rows, 'auc'):>7.4f} {mean(rows, 'accuracy'):>9.4f} {mean(rows, 'auc_site_mean'):>9.4f}"


if __name__ == "__main__":
    main()
