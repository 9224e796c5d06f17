"""The command `fl`: demonstrations, experiments, reports.

Exit codes: 0 done, 1 refused or failed (one line on stderr names the culprit), 2 wrong usage.
"""

import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fl.errors import FlError
from privacy.accounting.gaussian import as_text
from privacy.errors import PrivacyError
from secagg.errors import SecaggError

if TYPE_CHECKING:
    from fl.config import Config

_MODELS = (
    ("centralized", "centralised, no privacy *"),
    ("local", "each site alone, no privacy *"),
    ("federated", "federated, no privacy *"),
)


def _run_options(command: Callable[..., None]) -> Callable[..., None]:
    options = (
        click.option("--out", type=click.Path(path_type=Path), help="Run folder; it must not exist or be empty."),
        click.option(
            "--ledgers",
            type=click.Path(path_type=Path),
            help="Folder of the data sets' privacy ledgers [default: $SECAGG_LEDGERS, or the user's state folder].",
        ),
        click.option(
            "--insecure-test-seed",
            type=click.IntRange(0, 2**64 - 1),
            help="Fix noise and protocol secrets: for tests, NOT PRIVATE.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
@click.version_option(importlib.metadata.version("secagg"), prog_name="fl")
def main() -> None:
    """Train one model across sites that never show their data."""


@main.group()
def demo() -> None:
    """Bundled demonstrations."""


@demo.command()
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Split, model, silences.")
@click.option("--rounds", type=click.IntRange(1), default=40, show_default=True)
@click.option("--epsilon", type=float, default=1.0, show_default=True, help="Budget per patient, at delta = 1e-4.")
@_run_options
def heart(seed: int, rounds: int, epsilon: float, **options: Any) -> None:  # noqa: ANN401 - the shared options
    """Four hospitals learn to detect heart disease, with privacy for each patient."""
    with _one_line_errors():
        from fl.demo import heart as experiment  # noqa: PLC0415 - JAX takes 2 s to import

        _execute(experiment(seed=seed, rounds=rounds, epsilon=epsilon), **options)


@main.command("run")
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Replace a value, as in privacy.epsilon=2."
)
@_run_options
def run_command(config: Path, overrides: tuple[str, ...], **options: Any) -> None:  # noqa: ANN401 - the shared options
    """Run the experiment of a TOML file as a simulation."""
    with _one_line_errors():
        from fl.config import load_config  # noqa: PLC0415 - JAX takes 2 s to import

        _execute(load_config(config, overrides), **options)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Write report.html again from a run folder."""
    with _one_line_errors():
        from fl.report import write_report  # noqa: PLC0415 - Matplotlib takes 1 s to import

        click.echo(write_report(run))


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except (FlError, PrivacyError, SecaggError) as error:
        click.echo(f"fl: {' '.join(str(error).split())}", err=True)
        sys.exit(1)


def _execute(
    config: "Config", *, out: Path | None, ledgers: Path | None, insecure_test_seed: int | None, as_json: bool
) -> None:
    from fl.simulation import run  # noqa: PLC0415 - JAX takes 2 s to import

    with _progress(config.rounds) as advance:
        result = run(
            config, out=out, ledgers=ledgers, insecure_test_seed=insecure_test_seed, progress=lambda _record: advance()
        )
    for note in result.notes:
        click.echo(f"note: {note}", err=True)
    if as_json:
        click.echo(json.dumps(result.summary, allow_nan=False))
    else:
        _print_summary(result.summary, result.history[-1].epsilon)


@contextmanager
def _progress(rounds: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr where that is a terminal, otherwise nothing."""
    from rich.console import Console  # noqa: PLC0415 - only where something is shown
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    console = Console(stderr=True)
    columns = (TextColumn("rounds"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("rounds", total=rounds)
        yield lambda: bar.advance(task)


def _print_summary(summary: Mapping[str, Any], epsilon: Mapping[str, float | None] | None) -> None:
    from rich.console import Console  # noqa: PLC0415 - only where something is shown
    from rich.table import Table  # noqa: PLC0415

    console = Console()
    if not summary["private"]:
        console.print("NOT PRIVATE: no noise, no protocol, or noise and secrets from a test seed", style="bold red")
    quality = Table("held-out rows", "AUC", "accuracy", "AUC, mean of sites", box=None)
    quality.add_row("this model, pooled", *_figures(summary, "auc", "accuracy", "auc_site_mean"))
    for key, title in _MODELS:
        if key in summary["baselines"]:
            quality.add_row(title, *_figures(summary["baselines"][key], "auc", "accuracy", "auc_site_mean"))
    for name, site in summary["sites"].items():
        quality.add_row(f"this model at {name}", *_figures(site, "auc", "accuracy"))
    console.print(quality)
    if summary["baselines"]:
        console.print("* simulation only, not covered by ε")
    if epsilon is not None:
        console.print(
            f"ε ≤ {_bound(summary['epsilon'])} at δ = {summary['delta']:g} for this run "
            f"(closed form {_bound(epsilon['closed_form'])}, Rényi {_bound(epsilon['rdp'])}; planned {_bound(summary['epsilon_planned'])})"
        )
        for name, total in summary["epsilon_lifetime"].items():
            console.print(f"  {name}: ε ≤ {_bound(total)} over all runs in its ledger")
    silent = Table("round", "silent", "from phase", box=None)
    for drop in summary["dropouts"]:
        silent.add_row(str(drop["round"]), drop["site"], drop["phase"])
    console.print(silent)
    cost = Table("phase", "seconds", "bytes", box=None)
    for phase, seconds in summary["seconds"].items():
        cost.add_row(phase, f"{seconds:.2f}", f"{summary['bytes'][phase]:,}")
    console.print(cost)
    console.print(f"{summary['rounds']} rounds; {summary['run']}/report.html", soft_wrap=True)


def _bound(epsilon: float | None) -> str:
    return "∞" if epsilon is None else as_text(epsilon, 5)  # never less than what was proved


def _figures(metrics: Mapping[str, float | None], *keys: str) -> list[str]:
    values = [metrics[key] for key in keys]
    return ["-" if value is None else f"{value:.3f}" for value in values]
