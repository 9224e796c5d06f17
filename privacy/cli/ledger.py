"""`privacy ledger`: check, show and add up what was spent on a data set."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from privacy.accounting.gaussian import as_text
from privacy.cli.output import at_most, json_option, print_json, routes
from privacy.ledger import read_entries, verify
from privacy.ledger.chain import Entry
from privacy.ledger.replay import LedgerTotal

_ledger_argument = click.argument("path", type=click.Path(path_type=Path))


@click.group("ledger")
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
@json_option
def verify_command(path: Path, heads: tuple[Path, ...], as_json: bool) -> None:
    """Check chain, signed heads, rules and every epsilon; exit 2 where somebody changed it."""
    report = verify(path, heads=heads)
    if as_json:
        print_json(
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
@json_option
def show_command(path: Path, as_json: bool) -> None:
    """List the entries."""
    entries = read_entries(path)
    if as_json:
        print_json({"path": str(path), "entries": [asdict(entry) for entry in entries]})
        return
    for entry in entries:
        click.echo(_line(entry))


@ledger_group.command("total")
@_ledger_argument
@click.option("--delta", type=float, help="By default the smallest of the ledger's plans.")
@json_option
def total_command(path: Path, delta: float | None, as_json: bool) -> None:
    """Add up everything that was released about the data set."""
    total = verify(path, delta=delta).total
    if as_json:
        print_json({"path": str(path), **_total_object(total)})
        return
    _print_total(total)


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
        f"{at_most(total.epsilon)} at delta = {total.delta:g} over {len(total.runs)} runs "
        f"({total.unit}, {total.relation})"
    )
    click.echo(routes(total.epsilon))
    for run in total.runs:
        mark = "" if run.private else "  NOT PRIVATE: noise or secrets came from a test seed"
        click.echo(f"  run {run.run or '(unknown)'}: {run.rounds} rounds, {at_most(run.epsilon)}{mark}")
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
