"""The command `fl`: demonstrations, experiments, what becomes of their runs.

Exit codes: 0 done, 1 refused or failed (one line on stderr names the culprit), 2 wrong usage, 130 stopped by Ctrl-C or SIGTERM
(`fl resume` goes on).
"""

import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fl.errors import FlError, RunStopped
from privacy.accounting.gaussian import as_text
from privacy.errors import PrivacyError
from secagg.errors import SecaggError

if TYPE_CHECKING:
    from rich.console import Console

    from fl.sections import Config
    from fl.simulation import RunResult

_MODELS = (
    ("centralized", "centralised, no privacy *"),
    ("local", "each site alone, no privacy *"),
    ("federated", "federated, no privacy *"),
)
_THIS = {"federated": "this model", "centralized": "one model on all rows", "local": "each site's own model"}
_ROUTES = {"closed_form": "closed form", "rdp": "Rényi", "pld": "loss distribution"}

_NOT_PRIVATE = "NOT PRIVATE: no noise, no protocol, or noise and secrets from a test seed"

_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
_LEDGERS = click.option(
    "--ledgers",
    type=click.Path(path_type=Path),
    help="Folder of the data sets' privacy ledgers [default: $SECAGG_LEDGERS, or the user's state folder].",
)
_RUN = click.argument("run", type=click.Path(path_type=Path))


def _run_options(command: Callable[..., None]) -> Callable[..., None]:
    options = (
        click.option("--out", type=click.Path(path_type=Path), help="Run folder; it must not exist or be empty."),
        _LEDGERS,
        click.option(
            "--insecure-test-seed",
            type=click.IntRange(0, 2**64 - 1),
            help="Fix noise and protocol secrets: for tests, NOT PRIVATE.",
        ),
        _JSON,
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
@click.version_option(importlib.metadata.version("secagg"), prog_name="fl")
def main() -> None:
    """Train one model across sites that never show their data.

    Ctrl-C or SIGTERM lets the round in hand end, and `fl resume` goes on from there; a second one drops that round.

    Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 130 stopped.
    """


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
    """Run the experiment of a TOML file as a simulation.

    Functions of one's own, as in model.kind = "my_models:f", are looked for beside the file and in the current folder too.
    """
    with _one_line_errors(), _importable(config.parent, Path()):
        from fl.config import load_config  # noqa: PLC0415 - JAX takes 2 s to import

        _execute(load_config(config, overrides), **options)


@main.command()
@_RUN
@_LEDGERS
@_JSON
def resume(run: Path, *, ledgers: Path | None, as_json: bool) -> None:
    """Go on with a run that was killed, stopped or failed, from its last checkpoint."""
    with _one_line_errors(), _importable(Path()):
        from fl import simulation  # noqa: PLC0415 - JAX takes 2 s to import
        from fl.checkpoint import newest_round  # noqa: PLC0415
        from fl.simulation.folder import read_beginning  # noqa: PLC0415

        _, config = read_beginning(run)
        with _progress(config.rounds, newest_round(run / "checkpoint") or 0) as advance:
            result = simulation.resume(run, ledgers=ledgers, progress=lambda record: advance(record.round + 1))
        _tell(result, as_json=as_json)


@main.command()
@_RUN
@click.argument("table", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Write a CSV file; without it, CSV goes to stdout.")
@click.option("--site", help="Whose own leaves are used, where the model has some that each site keeps.")
@_JSON
def predict(run: Path, table: Path, *, out: Path | None, site: str | None, as_json: bool) -> None:
    """Score the rows of a CSV file with a run's published model."""
    with _one_line_errors(), _importable(Path()):
        if out is not None and as_json:
            raise click.UsageError("--out writes CSV: give one of --out and --json")
        from fl.files import write_file  # noqa: PLC0415
        from fl.predict import predict as score  # noqa: PLC0415 - JAX takes 2 s to import

        found = score(run, table, site=site)
        if as_json:
            click.echo(json.dumps({"predictions": found.to_list()}, allow_nan=False))
        elif out is None:
            click.echo(found.to_csv(), nl=False)
        else:
            write_file(out, found.to_csv())
        _warn_unless_private(run)


@main.command()
@_RUN
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--site", help="Whose own leaves are exported, where the model has some that each site keeps.")
@click.option("--orbax", is_flag=True, help="Also write an Orbax checkpoint.")
def export(run: Path, out: Path, *, site: str | None, orbax: bool) -> None:
    """Write a run's published model to a folder of its own: model.npz and model.json."""
    with _one_line_errors():
        from fl.predict import export as write  # noqa: PLC0415 - JAX takes 2 s to import

        click.echo(write(run, out, site=site, orbax=orbax))
        _warn_unless_private(run)


@main.command()
@_RUN
def report(run: Path) -> None:
    """Write report.html again from a run folder."""
    with _one_line_errors():
        from fl.report import write_report  # noqa: PLC0415 - Matplotlib takes 1 s to import

        click.echo(write_report(run))


@contextmanager
def _importable(*folders: Path) -> Iterator[None]:
    """Let modules in these folders be imported, after those that are installed."""
    before = list(sys.path)
    sys.path += [str(folder.resolve()) for folder in folders]
    try:
        yield
    finally:
        sys.path[:] = before


def _warn_unless_private(run: Path) -> None:
    from fl.published import read_description  # noqa: PLC0415 - JAX takes 2 s to import

    if not read_description(run).private:
        click.echo(f"{_NOT_PRIVATE}; what this model says may give its training rows away", err=True)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except RunStopped as stop:
        click.echo(f"fl: {stop}", err=True)
        sys.exit(130)
    except (FlError, PrivacyError, SecaggError) as error:
        said = "; ".join([str(error), *getattr(error, "__notes__", ())])
        click.echo(f"fl: {' '.join(said.split())}", err=True)
        sys.exit(1)


def _execute(
    config: "Config", *, out: Path | None, ledgers: Path | None, insecure_test_seed: int | None, as_json: bool
) -> None:
    from fl.simulation import run  # noqa: PLC0415 - JAX takes 2 s to import

    with _progress(config.rounds) as advance:
        result = run(
            config,
            out=out,
            ledgers=ledgers,
            insecure_test_seed=insecure_test_seed,
            progress=lambda record: advance(record.round + 1),
        )
    _tell(result, as_json=as_json)


def _tell(result: "RunResult", *, as_json: bool) -> None:
    for note in result.notes:
        click.echo(f"note: {note}", err=True)
    if as_json:
        click.echo(json.dumps(result.summary, allow_nan=False))
    else:
        _print_summary(result.summary, result.history[-1].epsilon)


@contextmanager
def _progress(rounds: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A bar on stderr where that is a terminal, otherwise nothing."""
    from rich.console import Console  # noqa: PLC0415 - only where something is shown
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    console = Console(stderr=True)
    columns = (TextColumn("rounds"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("rounds", total=rounds, completed=done)
        yield lambda done: bar.update(task, completed=done)


def _print_summary(summary: Mapping[str, Any], epsilon: Mapping[str, float | None] | None) -> None:
    from rich.console import Console  # noqa: PLC0415 - only where something is shown

    console = Console()
    if not summary["private"]:
        console.print(_NOT_PRIVATE, style="bold red")
    _print_quality(console, summary)
    if epsilon is not None:
        routes = ", ".join(f"{_ROUTES.get(route, route)} {_bound(value)}" for route, value in epsilon.items())
        console.print(
            f"ε ≤ {_bound(summary['epsilon'])} at δ = {summary['delta']:g} for this run "
            f"({routes}; planned {_bound(summary['epsilon_planned'])})"
        )
        for name, total in summary["epsilon_lifetime"].items():
            console.print(f"  {name}: ε ≤ {_bound(total)} over all runs in its ledger")
    _print_costs(console, summary)
    console.print(f"{summary['rounds']} rounds; {summary['run']}/report.html", soft_wrap=True)


def _print_quality(console: "Console", summary: Mapping[str, Any]) -> None:
    from rich.table import Table  # noqa: PLC0415 - only where something is shown

    names = _metric_names(summary)
    mean = {"auc_site_mean": "AUC, mean of sites"} if summary["auc_site_mean"] is not None else {}
    quality, this = Table("held-out records", *(names | mean).values(), box=None), _THIS[summary["mode"]]
    quality.add_row(f"{this}, pooled", *_figures(summary, *names, *mean))
    for key, title in _MODELS:
        if key in summary["baselines"]:
            quality.add_row(title, *_figures(summary["baselines"][key], *names, *mean))
    for name, site in summary["sites"].items():
        quality.add_row(f"{this} at {name}", *_figures(site, *names))
    console.print(quality)
    if summary["baselines"]:
        console.print("* simulation only, not covered by ε")


def _print_costs(console: "Console", summary: Mapping[str, Any]) -> None:
    """Who was silent, and what the protocol took, where there was one."""
    from rich.table import Table  # noqa: PLC0415 - only where something is shown

    if summary["dropouts"]:
        silent = Table("round", "silent", "from phase", box=None)
        for drop in summary["dropouts"]:
            silent.add_row(str(drop["round"]), drop["site"], drop["phase"])
        console.print(silent)
    if any(summary["bytes"].values()):
        cost = Table("phase", "seconds", "bytes", box=None)
        for phase, seconds in summary["seconds"].items():
            cost.add_row(phase, f"{seconds:.2f}", f"{summary['bytes'][phase]:,}")
        console.print(cost)


def _metric_names(summary: Mapping[str, Any]) -> dict[str, str]:
    """Metrics that the model has anywhere, with their titles; at least the one that runs are compared by."""
    metric = summary["metric"]
    names = {"auc": "AUC", "accuracy": "accuracy", "rmse": "RMSE", "mae": "MAE"}
    names.setdefault(metric["name"], metric["name"])
    measured = (summary, *summary["sites"].values(), *summary["baselines"].values())
    return {
        key: title
        for key, title in names.items()
        if key == metric["name"] or any(each.get(key) is not None for each in measured)
    }


def _bound(epsilon: float | None) -> str:
    return "∞" if epsilon is None else as_text(epsilon, 5)  # never less than what was proved


def _figures(metrics: Mapping[str, Any], *keys: str) -> list[str]:
    values = [metrics.get(key) for key in keys]
    return ["-" if value is None else f"{value:.3f}" for value in values]
