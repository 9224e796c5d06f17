"""`privacy plan`: what a run would promise and cost, before there is data."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final, get_args

import click

from privacy.accounting import EpsilonBound
from privacy.accounting.gaussian import as_text
from privacy.adaptive import AdaptiveClip
from privacy.cli.output import json_option, print_json
from privacy.errors import LedgerError, PlanError
from privacy.ledger.storage import read_small, replace_file
from privacy.plan import Plan, PlanWarning, epsilon_by_colluders, epsilon_by_rounds, signal
from privacy.plan.plan import PlanRelation, Unit

_MOST_BYTES: Final = 1 << 16  # no plan is nearly as long

# Option, type, help; the name of the field is the option's.
_FIELDS: Final[tuple[tuple[str, Any, str], ...]] = (
    ("--unit", click.Choice(get_args(Unit)), "Who is protected."),
    (
        "--relation",
        click.Choice(get_args(PlanRelation)),
        "Neighbouring data; by default add-remove or, for clients, zero-out.",
    ),
    ("--sites", int, "Sites in the cohort."),
    ("--dropouts", int, "Sites that may be missing from a sum; by default 0."),
    ("--colluders", int, "Sites that may work with the server; by default 0."),
    ("--silos", int, "Sites that may hold a record of the same person; by default 1."),
    ("--records-per-site", int, "Public cap on records per site; for the record unit only."),
    ("--clip", float, "L2 norm that each contribution is clipped to."),
    ("--total-clip", float, "In its place: norm of everything of one person, over the silos."),
    ("--dimension", int, "Coordinates of the update."),
    ("--bits", int, "Ring width of a coordinate; by default 32."),
    (
        "--sample-rate",
        float,
        "Probability of each record's own secret coin in each round (Poisson batches); by default 1.",
    ),
    ("--rounds", int, "Rounds; left out, the most for epsilon and noise."),
    ("--delta", float, "Probability that the bound does not cover."),
    ("--epsilon", float, "Budget of the run; left out, the least for the noise."),
    ("--noise-multiplier", float, "Noise at the floor over the sensitivity; left out, the least for the budget."),
    ("--divisor", float, "Public constant that the decoded sum is divided by."),
)
_ADAPTIVE: Final[tuple[tuple[str, Any, str], ...]] = (
    ("--adaptive-quantile", float, "Adaptive clipping: fraction of norms that shall be within the clip norm."),
    ("--adaptive-learning-rate", float, "Adaptive clipping: how fast the clip norm moves."),
    ("--adaptive-bit-noise", float, "Adaptive clipping: noise in the count of bits."),
    ("--adaptive-expected", float, "Adaptive clipping: public number of contributions in a sum."),
    ("--adaptive-min-clip", float, "Adaptive clipping: least clip norm."),
    ("--adaptive-max-clip", float, "Adaptive clipping: largest clip norm."),
)


def _field_options(command: Callable[..., None]) -> Callable[..., None]:
    for option, kind, text in reversed(_FIELDS + _ADAPTIVE):
        command = click.option(option, type=kind, help=text)(command)
    return command


@click.command("plan")
@_field_options
@click.option("--from", "source", type=click.Path(path_type=Path), help="Read a plan instead of making one.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the plan: canonical JSON, whole or not at all.")
@click.option("--force", is_flag=True, help="Let --out replace a file.")
@json_option
def plan_command(
    source: Path | None,
    out: Path | None,
    force: bool,
    as_json: bool,
    **values: Any,  # noqa: ANN401 - the fields, whose types are the options'
) -> None:
    """Make or read a plan, and say what it promises and costs.

    Of --epsilon, --noise-multiplier and --rounds any two are given, and the third follows.
    """
    given = {name: value for name, value in values.items() if value is not None}
    if source is not None and given:
        raise click.UsageError(f"--from reads a whole plan: {', '.join(map(_option, given))} cannot change it")
    if force and out is None:
        raise click.UsageError("--force goes with --out")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PlanWarning)
        plan = _solved(given) if source is None else _read(source)
    notes = [str(each.message) for each in caught if issubclass(each.category, PlanWarning)]
    text = "" if as_json else _page(plan)
    answer = _object(plan, notes) if as_json else {}
    if out is not None:
        _write(out, plan, force=force)
    for note in notes:
        click.echo(f"privacy: warning: {note}", err=True)
    if as_json:
        print_json(answer)
    else:
        click.echo(text, nl=False)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _solved(given: dict[str, Any]) -> Plan:
    prefix = "adaptive_"
    rest = {name: value for name, value in given.items() if not name.startswith(prefix)}
    unit = rest.get("unit")
    defaults: dict[str, Any] = {"dropouts": 0, "colluders": 0}
    if unit == "client":
        defaults |= {"relation": "zero-out", "records_per_site": 1}
    else:
        defaults["relation"] = "add-remove"
    rest = defaults | rest
    _require(rest, ("unit", "sites", "records_per_site", "dimension", "delta", "divisor"))
    adaptive = {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}
    if adaptive:
        _require(given, [prefix + each.name for each in fields(AdaptiveClip)])
        rest["adaptive"] = AdaptiveClip(**adaptive)
    return Plan.solve(**rest)


def _require(given: dict[str, Any], names: Iterable[str]) -> None:
    missing = [_option(name) for name in names if name not in given]
    if missing:
        raise click.UsageError(f"missing {', '.join(missing)}")


def _read(path: Path) -> Plan:
    try:
        text = read_small(path)  # a pipe would wait for its writer
    except LedgerError as error:
        raise PlanError(str(error)) from error
    if text is None:
        raise PlanError(f"{path}: cannot be read: no such file")
    if len(text) > _MOST_BYTES:
        raise PlanError(f"{path}: more than {_MOST_BYTES} bytes are no plan")
    try:
        return Plan.from_json(text)
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from error


def _write(path: Path, plan: Plan, *, force: bool) -> None:
    if path.exists() and not force:
        raise PlanError(f"{path}: is there already; --force replaces it")
    try:
        replace_file(path, plan.to_json().encode())
    except OSError as error:
        raise PlanError(f"{path}: cannot be written: {error.strerror}") from error


def _object(plan: Plan, notes: list[str]) -> dict[str, Any]:
    return {
        "plan": plan.to_fields(),
        "hash": plan.hash,
        **_bound(plan.accounted_epsilon()),
        "grid": plan.grid,
        "sensitivity": plan.sensitivity,
        "sigma_local": plan.sigma_local,
        "sample_rate": plan.sample_rate,
        "sigma_star": plan.sigma_star,
        "bit": plan.bit,
        "bound": plan.bound,
        "length": plan.length,
        "total_clip": plan.total_clip,
        "signal": [asdict(each) for each in signal(plan)],
        "by_rounds": [{"rounds": count, **_bound(bound)} for count, bound in epsilon_by_rounds(plan)],
        "by_colluders": [{"colluders": count, **_bound(bound)} for count, bound in epsilon_by_colluders(plan)],
        "warnings": notes,
    }


def _bound(bound: EpsilonBound) -> dict[str, Any]:
    return {"epsilon": bound.upper, "routes": dict(bound.routes)}


def _page(plan: Plan) -> str:
    floor = plan.sites - plan.dropouts
    heading = ("rounds", "clip", "grid", "bits", "noise multiplier", "coordinates")
    values = (plan.rounds, f"{plan.clip:g}", plan.grid, plan.bits, f"{plan.noise_multiplier:.6g}", plan.length)
    signals = [
        (
            f"{each.survivors}{' (floor)' if each.survivors == floor else ''}",
            f"{each.coordinate:.4g}",
            f"{each.noise:.4g}",
            f"{each.ratio:.4g}",
        )
        for each in signal(plan)
    ]
    rounds = [
        (f"{count}{_beside(count, plan.rounds, 'the plan', 'over the budget')}", *_texts(bound))
        for count, bound in epsilon_by_rounds(plan)
    ]
    colluders = [
        (f"{count}{_beside(count, plan.colluders, 'the plan', 'more than planned')}", *_texts(bound))
        for count, bound in epsilon_by_colluders(plan)
    ]
    return "\n".join(
        (
            plan.explain(),
            _table(heading, [values]),
            f"Noise in the decoded mean, and a mean of the clip norm, {plan.clip:g}, over it",
            _table(("survivors", "a coordinate", f"all {plan.dimension}", "signal to noise"), signals),
            "Epsilon after so many rounds at the floor",
            _table(("rounds", "epsilon", "closed form", "Rényi"), rounds),
            "Epsilon of all rounds at the floor, were so many sites to collude",
            _table(("colluders", "epsilon", "closed form", "Rényi"), colluders),
        )
    )


def _beside(value: int, planned: int, same: str, above: str) -> str:
    return f" ({same})" if value == planned else f" ({above})" if value > planned else ""


def _texts(bound: EpsilonBound) -> tuple[str, ...]:
    return tuple(as_text(each) for each in (bound.upper, bound.routes["closed_form"], bound.routes["rdp"]))


def _table(heading: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Columns of text, two spaces apart, the first one to the left."""
    lines = [[str(cell) for cell in row] for row in (heading, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(
        "  "
        + "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + "\n"
        for line in lines
    )
