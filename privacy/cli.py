"""The `privacy` command: what a mechanism costs, what noise a budget needs, and what a ledger says.

Results go to stdout, errors to stderr. Exit codes: 0 done; 1 a question without an answer, or wrong usage; 2 a ledger
that somebody changed.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import click

from privacy.accounting import EpsilonBound, Relation, epsilon, noise_multiplier
from privacy.accounting.gaussian import as_text
from privacy.errors import PrivacyError
from privacy.ledger import read_entries, verify
from privacy.ledger.chain import ChainError, Entry
from privacy.ledger.replay import LedgerTotal

_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
_delta_option = click.option("--delta", type=float, required=True, help="Probability that the bound does not cover.")
_steps_option = click.option("--steps", type=int, default=1, show_default=True, help="Number of releases.")
_rate_option = click.option(
    "--sample-rate",
    type=float,
    default=1.0,
    show_default=True,
    help="Probability of each record's own secret coin in each step (Poisson sampling).",
)
_relation_option = click.option(
    "--relation", type=click.Choice(get_args(Relation)), default="add-remove", show_default=True
)
_ledger_argument = click.argument("path", type=click.Path(path_type=Path))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="secagg", prog_name="privacy")
def cli() -> None:
    """Differential privacy under secure aggregation."""


@cli.command("epsilon")
@click.option("--noise-multiplier", type=float, required=True, help="Noise in the sum over the clip norm.")
@_rate_option
@_steps_option
@_delta_option
@_relation_option
@_json_option
def epsilon_command(  # noqa: PLR0917 - click calls it by keyword
    noise_multiplier: float, sample_rate: float, steps: int, delta: float, relation: Relation, as_json: bool
) -> None:
    """Epsilon of a composed Gaussian mechanism, by every route."""
    bound = epsilon(
        noise_multiplier=noise_multiplier, sample_rate=sample_rate, steps=steps, delta=delta, relation=relation
    )
    if as_json:
        _print_json({"epsilon": bound.upper, "lower": bound.lower, "routes": dict(bound.routes)})
        return
    click.echo(f"{_at_most(bound)} at delta = {delta:g} ({relation})")
    click.echo(_routes(bound))


@cli.command("noise")
@click.option("--epsilon", "target", type=float, required=True, help="The budget.")
@_delta_option
@_steps_option
@_rate_option
@_relation_option
@_json_option
def noise_command(  # noqa: PLR0917 - click calls it by keyword
    target: float, delta: float, steps: int, sample_rate: float, relation: Relation, as_json: bool
) -> None:
    """Noise multiplier that keeps to a budget."""
    question: dict[str, Any] = {"delta": delta, "steps": steps, "sample_rate": sample_rate, "relation": relation}
    noise = noise_multiplier(epsilon=target, **question)
    bound = epsilon(noise_multiplier=noise, **question)
    if as_json:
        _print_json({"noise_multiplier": noise, "epsilon": bound.upper})
        return
    click.echo(f"noise multiplier {_rounded_up(noise)}: {_at_most(bound)} at delta = {delta:g} ({relation})")


@cli.group("ledger")
def ledger_group() -> None:
    """Check, show and add up a ledger."""


@ledger_group.command("verify")
@_ledger_argument
@click.option(
    "--head",
    "heads",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Another party's signed head of this ledger.",
)
@_json_option
def verify_command(path: Path, heads: tuple[Path, ...], as_json: bool) -> None:
    """Check chain, signed heads, rules and every epsilon; exit 2 where somebody changed it."""
    report = verify(path, heads=heads)
    if as_json:
        _print_json(
            {
                "path": str(path),
                "entries": report.entries,
                "rounds": report.rounds,
                "head": report.head,
                "torn": report.torn,
                **_total_object(report.total),
            }
        )
        return
    head = {
        "ok": "signed head agrees",
        "behind": "signed head agrees and is one entry behind, as a crash leaves it",
        "missing": "no signed head: whether the tail was cut cannot be seen",
    }[report.head]
    click.echo(f"{path}: {report.entries} entries, {report.rounds} rounds; the chain holds; {head}")
    if report.torn:
        click.echo("An interrupted write stands at the end; it is recovered when the ledger is next opened.")
    _print_total(report.total)


@ledger_group.command("show")
@_ledger_argument
@_json_option
def show_command(path: Path, as_json: bool) -> None:
    """List the entries."""
    entries = read_entries(path)
    if as_json:
        _print_json({"path": str(path), "entries": [asdict(entry) for entry in entries]})
        return
    for entry in entries:
        click.echo(_line(entry))


@ledger_group.command("total")
@_ledger_argument
@click.option("--delta", type=float, help="By default the smallest of the ledger's plans.")
@_json_option
def total_command(path: Path, delta: float | None, as_json: bool) -> None:
    """Add up everything that was released about the data set."""
    total = verify(path, delta=delta).total
    if as_json:
        _print_json({"path": str(path), **_total_object(total)})
        return
    _print_total(total)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    try:
        cli.main(args=None if argv is None else list(argv), prog_name="privacy", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.Abort:
        return 1
    except click.ClickException as error:  # click itself would exit 2, which here means that somebody changed a ledger
        error.show()
        return 1
    except ChainError as error:
        click.echo(f"privacy: tampered: {error}", err=True)
        return 2
    except PrivacyError as error:
        click.echo(f"privacy: {error}", err=True)
        return 1
    return 0


def _rounded_up(noise: float) -> str:
    """Eight digits of a noise multiplier, not below it: printed noise that was rounded down would pass the budget."""
    digits = max(0, 7 - math.floor(math.log10(noise)))
    return f"{math.ceil(noise * 10**digits) / 10**digits:.{digits}f}"


def _at_most(bound: EpsilonBound) -> str:
    return f"epsilon <= {as_text(bound.upper)}" if math.isfinite(bound.upper) else "epsilon has no bound"


def _routes(bound: EpsilonBound) -> str:
    routes = ", ".join(
        f"{name} {as_text(value)}" for name, value in sorted(bound.routes.items(), key=lambda each: each[1])
    )
    return f"  upper bounds: {routes}; lower bound: {bound.lower:.6g}"


def _total_object(total: LedgerTotal) -> dict[str, Any]:
    return {
        "epsilon": total.epsilon.upper,
        "routes": dict(total.epsilon.routes),
        "delta": total.delta,
        "unit": total.unit,
        "relation": total.relation,
        "private": total.private,
        "open": total.open,
        "runs": [
            {
                "run": run.run,
                "epsilon": run.epsilon.upper,
                "routes": dict(run.epsilon.routes),
                "rounds": run.rounds,
                "private": run.private,
            }
            for run in total.runs
        ],
        "differences": [
            {"run": each.run, "site": str(each.site), "rounds": list(each.rounds)} for each in total.differences
        ],
    }


def _print_total(total: LedgerTotal) -> None:
    click.echo(
        f"{_at_most(total.epsilon)} at delta = {total.delta:g} over {len(total.runs)} runs "
        f"({total.unit}, {total.relation})"
    )
    click.echo(_routes(total.epsilon))
    for run in total.runs:
        mark = "" if run.private else "  NOT PRIVATE: noise or secrets came from a test seed"
        click.echo(f"  run {run.run or '(unknown)'}: {run.rounds} rounds, {_at_most(run.epsilon)}{mark}")
    for each in total.differences:
        first, second = each.rounds
        click.echo(
            f"  run {each.run or '(unknown)'}: the survivors of rounds {first} and {second} differ by site {each.site} alone, "
            "and so the difference of their sums speaks of that site"
        )
    if total.open:
        click.echo(f"  {total.open} reservations without commit count at their plan's floor")
    if not total.private:
        click.echo(f"NOT PRIVATE: epsilon covers nothing that was released by {', '.join(total.not_private)}")


def _line(entry: Entry) -> str:
    text = f"{entry.seq:6d}  {entry.kind:9s}"
    if entry.kind == "plan":
        return f"{text}  {entry.plan}"
    spent = ", ".join(f"{route} {as_text(value)}" for route, value in entry.epsilon.items())
    where = f"run {entry.run or '(unknown)'}"
    if entry.kind != "recovered":
        where += f"  round {entry.round}"
    if entry.kind == "commit":
        where += f"  {len(entry.survivors)} survivors"
    return f"{text}  {where}  mu {entry.mu:.6g}  epsilon: {spent or 'none'}{'' if entry.private else '  NOT PRIVATE'}"


def _print_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps(_finite(value), allow_nan=False))


def _finite(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(main())
