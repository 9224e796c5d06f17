"""`secagg bench`: whole rounds in this process, timed, beside what they were predicted to cost."""

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import click
import numpy as np

from secagg.cost import Cost, calibrate, predict
from secagg.crypto.sealing import SUITES
from secagg.engines.inprocess import Tap
from secagg.errors import SecaggError
from secagg.params import COMPLETE_GRAPH_MAX, PHASES, Block, RoundParams
from secagg.session import RoundOutcome
from secagg.testing import Inputs, simulate_round

_DISTINCT = 4
"""Different vectors among the clients: a large cohort's own would not fit into memory."""


@click.command()
@click.option("--clients", "-n", default=10, show_default=True, help="Cohort size.")
@click.option("--length", "-d", default=100_000, show_default=True, help="Coordinates of the vector.")
@click.option("--bits", default=32, show_default=True, help="Ring width.")
@click.option("--suite", type=click.Choice(sorted(SUITES)), default="hybrid", show_default=True)
@click.option("--drop", default=0, show_default=True, help="Clients that fall silent before they send their vector.")
@click.option("--corrupt", default=0, show_default=True, help="Clients that may collude.")
@click.option(
    "--degree", type=int, help="Neighbours of a client; with --threshold.  [default: all, or what fits n > 200]"
)
@click.option("--threshold", type=int, help="Shares that open a secret.  [default: the least that is sound]")
@click.option("--repeat", default=3, show_default=True, help="Rounds to take the median over.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def bench(
    *,
    clients: int,
    length: int,
    bits: int,
    suite: str,
    drop: int,
    corrupt: int,
    degree: int | None,
    threshold: int | None,
    repeat: int,
    as_json: bool,
) -> None:
    """Time whole rounds in this process with the real cryptography, and compare with the prediction.

    Example: secagg bench -n 10 -d 1000000 --drop 3
    """
    params = RoundParams(
        cohort=tuple(range(clients)),
        blocks=(Block("update", length, bits, 2 ** (bits - 1) // max(clients, 1) - 1),),
        suite=suite,
        colluders=corrupt,
        degree=degree,  # type: ignore[arg-type]  # None, here and below: the default
        threshold=threshold,  # type: ignore[arg-type]
        dropouts=max(drop, clients // 20) if clients > COMPLETE_GRAPH_MAX else None,  # type: ignore[arg-type]
    )
    cost = predict(params, drop)
    predicted = cost.seconds(calibrate(params))
    inputs = _inputs(params)
    silent = dict.fromkeys(params.cohort[clients - drop :] if drop else (), "mask")
    rounds = max(repeat, 1)
    outcomes, walls = [], []
    with _progress(rounds * (len(PHASES) * clients - 3 * drop)) as tap:
        for _ in range(rounds):
            start = time.perf_counter()
            outcomes.append(simulate_round(params, inputs, silent, tap=tap))
            walls.append(time.perf_counter() - start)
            _check(outcomes[-1], inputs)
    report = _summary(params, outcomes, cost, predicted) | {
        "drop": drop,
        "wall_s": statistics.median(walls),
        "rounds": rounds,
    }
    if as_json:
        click.echo(json.dumps(report))
    else:
        _print(report)


def _inputs(params: RoundParams) -> dict[int, Inputs]:
    rng, block = np.random.default_rng(0), params.blocks[0]
    vectors = [rng.integers(-block.bound, block.bound, block.length, endpoint=True) for _ in range(_DISTINCT)]
    return {client: {block.name: vectors[place % _DISTINCT]} for place, client in enumerate(params.cohort)}


def _check(outcome: RoundOutcome, inputs: dict[int, Inputs]) -> None:
    for name, total in outcome.sums.items():
        expected = np.zeros_like(total)
        for client in outcome.survivors:
            expected += inputs[client][name]
        if not np.array_equal(total, expected):
            raise SecaggError("the sum is not the sum of the survivors' inputs")


@contextlib.contextmanager
def _progress(frames: int) -> Iterator[Tap | None]:
    """A bar on standard error that moves with each frame; nothing where nobody looks."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # noqa: PLC0415 - only a terminal pays for it
    from rich.progress import Progress  # noqa: PLC0415

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("rounds", total=frames)

        def tap(phase: str, _client: int, _frame: bytes) -> None:
            bar.update(task, advance=1, description=phase)

        yield tap


def _summary(
    params: RoundParams, outcomes: list[RoundOutcome], cost: Cost, predicted: dict[str, dict[str, float]]
) -> dict[str, Any]:
    phases = {
        phase: {
            "client_s": statistics.median(o.seconds["client"][phase] for o in outcomes),
            "predicted_client_s": predicted["client"][phase],
            "server_s": statistics.median(o.seconds["server"][phase] for o in outcomes),
            "predicted_server_s": predicted["server"][phase],
            "bytes_up": outcomes[-1].bytes_up[phase],
            "predicted_bytes_up": cost.bytes_up[phase],
            "bytes_down": outcomes[-1].bytes_down[phase],
            "predicted_bytes_down": cost.bytes_down[phase],
        }
        for phase in PHASES
    }
    return {
        "clients": len(params.cohort),
        "length": params.blocks[0].length,
        "bits": params.blocks[0].bits,
        "suite": params.suite,
        "degree": params.degree,
        "threshold": params.threshold,
        "survivors": len(outcomes[-1].survivors),
        "phases": phases,
        "version": metadata.version("secagg"),
    }


_COLUMNS = (
    ("client", "client_s", 1e3),
    ("server", "server_s", 1e3),
    ("up", "bytes_up", 1e-3),
    ("down", "bytes_down", 1e-3),
)


def _print(report: dict[str, Any]) -> None:
    click.echo(
        f"{report['clients']} clients, d = {report['length']}, {report['bits']}-bit ring, {report['suite']}, k = {report['degree']}, "
        f"t = {report['threshold']}, {report['drop']} silent; median of {report['rounds']}; measured (predicted)"
    )
    click.echo(f"{'phase':<10}{'client ms':>20}{'server ms':>20}{'up kB, all':>24}{'down kB, all':>24}")
    totals = dict.fromkeys(report["phases"][PHASES[0]], 0)
    for phase in PHASES:
        totals = {name: totals[name] + value for name, value in report["phases"][phase].items()}
    for phase, row in {**report["phases"], "all": totals}.items():
        cells = (
            f"{scale * row[name]:.2f} ({scale * row[f'predicted_{name}']:.2f})".rjust(20 if scale > 1 else 24)
            for _, name, scale in _COLUMNS
        )
        click.echo(f"{phase:<10}{''.join(cells)}")
    click.echo(f"whole round {1e3 * report['wall_s']:.1f} ms")
