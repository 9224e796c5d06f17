"""`secagg bench`: whole rounds in this process, timed."""

import json
import statistics
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import click
import numpy as np

from secagg.crypto.sealing import SUITES
from secagg.errors import SecaggError
from secagg.params import PHASES, Block, RoundParams
from secagg.session import RoundOutcome
from secagg.testing import simulate_round


@click.command()
@click.option("--clients", "-n", default=10, show_default=True, help="Cohort size.")
@click.option("--length", "-d", default=100_000, show_default=True, help="Coordinates of the vector.")
@click.option("--bits", default=32, show_default=True, help="Ring width.")
@click.option("--suite", type=click.Choice(sorted(SUITES)), default="hybrid", show_default=True)
@click.option("--drop", default=0, show_default=True, help="Clients that fall silent before they send their vector.")
@click.option("--repeat", default=3, show_default=True, help="Rounds to take the median over.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def bench(*, clients: int, length: int, bits: int, suite: str, drop: int, repeat: int, as_json: bool) -> None:
    """Time whole rounds in this process with the real cryptography.

    Example: secagg bench -n 10 -d 1000000 --drop 3
    """
    cohort = tuple(range(clients))
    bound = 2 ** (bits - 1) // max(clients, 1) - 1
    params = RoundParams(cohort=cohort, blocks=(Block("update", length, bits, bound),), suite=suite)
    rng = np.random.default_rng(0)
    inputs = {i: {"update": rng.integers(-bound, bound + 1, length)} for i in cohort}
    drops = dict.fromkeys(cohort[clients - drop :] if drop else (), "mask")
    outcomes, walls = [], []
    for _ in range(max(repeat, 1)):
        start = time.perf_counter()
        outcomes.append(simulate_round(params, inputs, drops))
        walls.append(time.perf_counter() - start)
        if not np.array_equal(outcomes[-1].sums["update"], sum(inputs[i]["update"] for i in outcomes[-1].survivors)):
            raise SecaggError("the sum is not the sum of the survivors' inputs")
    report = _summary(outcomes, walls, params)
    if as_json:
        click.echo(json.dumps(report))
        return
    click.echo(f"{clients} clients, d = {length}, {bits}-bit ring, {suite}, {drop} silent; median of {len(walls)}")
    click.echo(f"{'phase':<10} {'client ms':>10} {'server ms':>10} {'up kB/client':>13}")
    for phase in PHASES:
        row = report["phases"][phase]
        click.echo(
            f"{phase:<10} {1e3 * row['client_s']:>10.2f} {1e3 * row['server_s']:>10.2f} {row['bytes_up'] / 1e3 / clients:>13.1f}"
        )
    click.echo(f"whole round {1e3 * report['wall_s']:.1f} ms")


def _summary(outcomes: Sequence[RoundOutcome], walls: Sequence[float], params: RoundParams) -> dict[str, Any]:
    phases = {
        phase: {
            "client_s": statistics.median(o.seconds["client"][phase] for o in outcomes),
            "server_s": statistics.median(o.seconds["server"][phase] for o in outcomes),
            "bytes_up": outcomes[-1].bytes_up[phase],
            "bytes_down": outcomes[-1].bytes_down[phase],
        }
        for phase in PHASES
    }
    return {
        "clients": len(params.cohort),
        "length": params.blocks[0].length,
        "bits": params.blocks[0].bits,
        "suite": params.suite,
        "survivors": len(outcomes[-1].survivors),
        "phases": phases,
        "wall_s": statistics.median(walls),
        "version": metadata.version("secagg"),
    }

