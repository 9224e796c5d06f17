"""`privacy ledger`: check, show, compare and add up what was spent on a data set."""

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from privacy.accounting.gaussian import as_text
from privacy.cli.output import at_most, json_option, print_json, routes
from privacy.errors import LedgerError
from privacy.ledger import (
    Comparison,
    DataSetTotal,
    Finding,
    LedgerReport,
    LedgerTotal,
    compare,
    read_entries,
    total_of,
    verify,
)
from privacy.ledger.chain import ChainError, Entry
from privacy.ledger.head import is_party
from privacy.ledger.storage import read_small

_LISTED = 20  # findings in words; all of them are in the JSON


def _key(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Read PARTY=KEY, the key as hex or a PEM file."""
    keys: dict[str, str] = {}
    for value in values:
        party, sign, text = value.partition("=")
        if not sign or not is_party(party) or party in keys:
            raise click.BadParameter(f"{_shown(value)} is not PARTY=HEX or PARTY=FILE, each party once")
        key = text if re.fullmatch("[0-9a-f]{64}", text) else _pem(Path(text))
        if key in keys.values():
            raise click.BadParameter(f"{_shown(party)} has the key of another party")
        keys[party] = key
    return keys


def _pem(path: Path) -> str:
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - where it is used
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415 - as above
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415 - as above

    try:
        data = read_small(path)
        key = None if data is None else load_pem_public_key(data)
    except (LedgerError, ValueError, UnsupportedAlgorithm) as error:
        raise click.BadParameter(f"{_shown(path)}: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        what = "neither 64 digits of hex nor a file" if data is None else "not an Ed25519 public key"
        raise click.BadParameter(f"{_shown(path)} is {what}")
    return key.public_bytes_raw().hex()


_path = click.Path(path_type=Path)
_ledger_argument = click.argument("path", type=_path)
_keys_option = click.option(
    "--key",
    "keys",
    multiple=True,
    metavar="PARTY=HEX|FILE",
    callback=_key,
    help="A party's Ed25519 public key, hex or PEM. With any, every head must be by its party's key, and each must sign.",
)


@click.group("ledger")
def ledger_group() -> None:
    """Check, show, compare and add up ledgers."""


@ledger_group.command("verify")
@_ledger_argument
@click.option("--head", "heads", multiple=True, type=_path, help="Another party's signed head of this ledger.")
@_keys_option
@json_option
def verify_command(path: Path, heads: tuple[Path, ...], keys: Mapping[str, str], as_json: bool) -> None:
    """Check chain, signed heads, rules and every epsilon; exit 2 where somebody changed it."""
    report = verify(path, heads=heads, keys=keys)
    if as_json:
        print_json(
            {
                "path": str(path),
                "entries": report.entries,
                "rounds": report.rounds,
                "data_set": report.data_set,
                "head": report.head,
                "signatures": [asdict(each) | {"file": str(each.file)} for each in report.signatures],
                "torn": report.torn,
                "unbound": report.unbound,
                **_total_object(report.total),
            }
        )
        return
    _print_report(report)
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


@ledger_group.command("compare")
@click.argument("first", type=_path)
@click.argument("second", type=_path)
@click.option("--run", help="Only this run; by default all that both have.")
@click.option("--site", type=click.IntRange(min=0), help="Client id of the site whose ledger one of them is.")
@json_option
def compare_command(first: Path, second: Path, run: str | None, site: int | None, as_json: bool) -> None:
    """Hold two parties' ledgers of one run, or two copies, against each other; exit 2 where both cannot be right."""
    comparison = compare(first, second, run=run, site=site)
    if as_json:
        print_json(
            {
                "first": str(first),
                "second": str(second),
                "copies": comparison.copies,
                "runs": list(comparison.runs),
                "agree": comparison.agree,
                "contradictions": len(comparison.contradictions),
                "findings": [asdict(each) for each in comparison.findings],
            }
        )
    else:
        _print_comparison(comparison)
    if wrong := len(comparison.contradictions):
        raise ChainError(f"{_shown(first)} and {_shown(second)} contradict each other on {wrong} points")


@ledger_group.command("total")
@click.argument("paths", nargs=-1, required=True, type=_path)
@click.option("--delta", type=float, help="By default the smallest of the ledgers' plans.")
@json_option
def total_command(paths: tuple[Path, ...], delta: float | None, as_json: bool) -> None:
    """Add up everything that was released about the data set; of several ledgers or a folder, by data set."""
    totals = total_of(paths, delta=delta)
    if len(totals) == 1 and len(totals[0].reports) == 1:
        total = totals[0].total
        if as_json:
            print_json({"path": str(totals[0].reports[0].path), **_total_object(total)})
        else:
            _print_total(total)
        return
    if as_json:
        print_json({"data_sets": [_data_set_object(each) for each in totals]})
        return
    for each in totals:
        _print_data_set(each)


def _data_set_object(each: DataSetTotal) -> dict[str, Any]:
    return {
        "data_set": each.data_set,
        "ledgers": [
            {
                "path": str(report.path),
                "entries": report.entries,
                "head": report.head,
                "copy": report.path in each.copies,
                "epsilon": report.total.epsilon.upper,
                "delta": report.total.delta,
                "private": report.total.private,
            }
            for report in each.reports
        ],
        **_total_object(each.total),
    }


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


def _print_report(report: LedgerReport) -> None:
    head = {
        "ok": "signed head agrees",
        "behind": "signed head agrees and is one entry behind, as a crash leaves it",
        "missing": "no signed head: whether the tail was cut cannot be seen",
    }[report.head]
    click.echo(f"{_shown(report.path)}: {report.entries} entries, {report.rounds} rounds; the chain holds; {head}")
    for each in report.signatures:
        known = "its pinned key" if each.pinned else "a key that is not pinned: anybody may have made it"
        click.echo(
            f"  {_shown(each.party)} signs {each.seq + 1} of {report.entries} entries, with {known} ({each.key})"
        )
    if report.torn:
        click.echo("An interrupted write stands at the end; it is recovered when the ledger is next opened.")
    if report.unbound:
        click.echo(
            f"{report.unbound} commits that claim to be private name no secure-aggregation transcript: nothing shows "
            "which sums they are of"
        )


def _print_total(total: LedgerTotal) -> None:
    click.echo(
        f"{at_most(total.epsilon)} at delta = {total.delta:g} over {len(total.runs)} runs "
        f"({total.unit}, {total.relation})"
    )
    click.echo(routes(total.epsilon))
    for run in total.runs:
        mark = "" if run.private else "  NOT PRIVATE: noise or secrets came from a test seed"
        click.echo(f"  run {_run(run.run)}: {run.rounds} rounds, {at_most(run.epsilon)}{mark}")
    for each in total.differences:
        first, second = each.rounds
        click.echo(
            f"  run {_run(each.run)}: the survivors of rounds {first} and {second} differ by site {each.site} alone, "
            "and so the difference of their sums speaks of that site"
        )
    if total.open:
        click.echo(f"  {total.open} reservations without commit count at their plan's floor")
    if not total.private:
        click.echo(
            f"NOT PRIVATE: epsilon covers nothing that was released by {', '.join(map(_run, total.not_private))}"
        )


def _print_data_set(each: DataSetTotal) -> None:
    for report in each.reports:
        total = report.total
        copy = "  a copy of another one's beginning: not counted again" if report.path in each.copies else ""
        mark = "" if total.private else "  NOT PRIVATE"
        click.echo(
            f"{_shown(report.path)}: {at_most(total.epsilon)} at delta = {total.delta:g}, {len(total.runs)} runs{mark}{copy}"
        )
    if each.data_set is None:
        return  # a server's ledger says nothing of whose data it is, so nothing adds up
    click.echo(f"data set {_shown(each.data_set)}, {len(each.reports) - len(each.copies)} ledgers:")
    _print_total(each.total)


def _print_comparison(comparison: Comparison) -> None:
    names = f"{_shown(comparison.first)} and {_shown(comparison.second)}"
    what = "lines of two copies" if comparison.copies else "sums"
    click.echo(f"{names}: {len(comparison.runs)} runs in common; they agree on {comparison.agree} {what}")
    wrong = comparison.contradictions
    notes = [each for each in comparison.findings if not each.contradiction]
    for each in (*wrong[:_LISTED], *notes[:_LISTED]):
        click.echo(f"  {'CONTRADICTION: ' if each.contradiction else ''}{_finding(each, copies=comparison.copies)}")
    left = len(comparison.findings) - min(len(wrong), _LISTED) - min(len(notes), _LISTED)
    if left:
        click.echo(f"  and {left} more")
    click.echo(f"{len(wrong)} contradictions" if wrong else "no contradiction")


def _finding(each: Finding, *, copies: bool) -> str:
    where = f"line {each.round}" if copies else f"run {_run(each.run)}, round {each.round}: {each.field}"
    return f"{where}: {_shown(each.first)} in the first, {_shown(each.second)} in the second"


def _line(entry: Entry) -> str:
    text = f"{entry.seq:6d}  {entry.kind:9s}"
    if entry.kind == "plan":
        return f"{text}  {entry.plan}"
    spent = ", ".join(f"{route} {as_text(value)}" for route, value in entry.epsilon.items())
    where = f"run {_run(entry.run)}"
    if entry.kind != "recovered":
        where += f"  round {entry.round}"
    if entry.kind == "commit":
        where += f"  {len(entry.survivors)} survivors  transcript {entry.transcript[:16] or 'none'}"
    if entry.sample_rate < 1:
        where += f"  rate {entry.sample_rate:g}"
    return f"{text}  {where}  mu {entry.mu:.6g}  epsilon: {spent or 'none'}{'' if entry.private else '  NOT PRIVATE'}"


def _run(name: str) -> str:
    return _shown(name) if name else "(unknown)"


def _shown(text: object) -> str:
    """What a terminal may print: a name in a file can hold anything, escape sequences among it."""
    words = str(text)
    return words if words.isprintable() else ascii(words)
