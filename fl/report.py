"""The run's report: one HTML file, made from the run folder and nothing else, that asks the network for nothing."""

import dataclasses
import io
import itertools
import math
import re
import tomllib
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jinja2
import msgspec
from markupsafe import Markup

from fl.errors import RunError
from fl.files import write_file
from privacy.accounting.gaussian import as_text
from privacy.errors import PlanError
from privacy.plan import Plan, PlanWarning

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# matplotlib knows no `currentColor`; this stand-in is replaced in its output, so that charts follow light and dark.
_INK = "#010203"
_BLUE, _ORANGE, _GREY, _RED = "#2f7fd8", "#d98324", "#8a8f98", "#d64545"
_T = TypeVar("_T")
_SHOWN = 50  # sites on the page; all of them are in result.json and metrics.jsonl
_PLANNED = 8  # points of a planned curve that is slow to compute
_LARGEST_EXPONENT = 700.0  # beyond it a float overflows, and the bound says nothing
_MODELS = {
    "federated": "Federated, without privacy",
    "centralized": "Centralised, without privacy",
    "local": "Each site alone, without privacy",
}


class SiteResult(msgspec.Struct, frozen=True):
    """One site's test metrics; counts are of test rows, None where labels are not one of two classes."""

    auc: float | None
    accuracy: float | None
    positives: int | None
    negatives: int | None


class Metric(msgspec.Struct, frozen=True):
    """The number that runs are compared by."""

    name: str
    value: float | None
    higher_is_better: bool


class ModelResult(msgspec.Struct, frozen=True):
    """A baseline's metrics on the same test rows."""

    auc: float | None
    accuracy: float | None
    auc_site_mean: float | None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """`result.json`, as far as the report reads it.

    Attributes:
        epsilon: What the run spent, an upper bound; None without differential privacy.
        epsilon_planned: What the plan's floor would have spent.
        private: False without noise, without the protocol, or where a test seed gave noise and secrets.
        insecure_test_seed: Whether a test seed did.
        seconds: By phase, and of whatever else took time.
        epsilon_lifetime: Site → ε over every booked run on its data set, this one included, at this run's δ; None: no bound.
        ended: What ended the run before its last round; None for a whole run.
    """

    auc: float | None
    accuracy: float | None
    auc_site_mean: float | None
    sites: dict[str, SiteResult]
    metric: Metric | None = None
    baselines: dict[str, ModelResult] = {}
    epsilon: float | None
    epsilon_planned: float | None
    rounds: int
    seconds: dict[str, float]
    private: bool
    insecure_test_seed: bool = False
    epsilon_lifetime: dict[str, float | None] = {}
    ended: str | None = None


class Traffic(msgspec.Struct, frozen=True):
    """Bytes of a round by phase, over all clients; empty without a protocol."""

    up: dict[str, int] = {}
    down: dict[str, int] = {}


class Clock(msgspec.Struct, frozen=True):
    """Seconds of a round by phase; `client` is the median client; empty without a protocol."""

    server: dict[str, float] = {}
    client: dict[str, float] = {}


class Spent(msgspec.Struct, frozen=True):
    """Cumulative ε after a round, by both routes; None where a route gives no bound."""

    closed_form: float | None
    rdp: float | None


class RoundLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `metrics.jsonl`: a committed round."""

    round: int
    survivors: list[str]
    dropped: dict[str, str]
    seconds: Clock
    bytes: Traffic
    sigma_eff: float | None
    epsilon: Spent | None
    clip: float | None = None
    within: float | None = None


class EvaluationLine(msgspec.Struct, frozen=True):
    """One line of `evaluation.jsonl`: pooled test metrics after a round, in a simulation."""

    round: int
    auc: float | None
    accuracy: float | None


class LedgerLine(msgspec.Struct, frozen=True):
    """One line of `ledger.jsonl`, as far as the report reads it."""

    seq: int
    kind: str


class RunRecord(msgspec.Struct, frozen=True):
    """Everything that the report is made from; `plan` is None and `ledger` empty without differential privacy."""

    config: dict[str, Any]
    result: Result
    rounds: list[RoundLine]
    evaluation: list[EvaluationLine]
    plan: Plan | None
    ledger: list[LedgerLine]


def write_report(run: Path) -> Path:
    """Writes `report.html` into a finished run's folder, replacing an earlier one.

    Args:
        run: The run folder.

    Returns:
        The report's path.

    Raises:
        RunError: A file is missing, torn or not what it must be, or the report cannot be written; the message names
            the file, and the line where there are lines.

    Guarantees:
        The page is one file without scripts and without references to anything outside of it. The same folder gives
        the same bytes. A run that is not private says so at the top. An error leaves an earlier report as it was.
    """
    page = render(read_run(run))
    target = run / "report.html"
    write_file(target, page)
    return target


def read_run(run: Path) -> RunRecord:
    """Reads a finished run's folder.

    Args:
        run: The run folder.

    Raises:
        RunError: As for `write_report`.
    """
    try:
        config = tomllib.loads(_read(run / "config.toml").decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{run / 'config.toml'}: not TOML in UTF-8: {error}") from error
    result = _decode(_read(run / "result.json"), Result, str(run / "result.json"))
    rounds = _read_lines(run / "metrics.jsonl", RoundLine)
    if len(rounds) != result.rounds:
        raise RunError(f"{run / 'metrics.jsonl'}: has {len(rounds)} rounds, result.json says {result.rounds}")
    evaluation = run / "evaluation.jsonl"
    with_noise = result.epsilon is not None
    for line in rounds if with_noise else ():
        if line.epsilon is None or line.sigma_eff is None:
            raise RunError(f"{run / 'metrics.jsonl'}: round {line.round} has no epsilon or sigma_eff, the result has")
    return RunRecord(
        config=config,
        result=result,
        rounds=rounds,
        evaluation=_read_lines(evaluation, EvaluationLine) if evaluation.exists() else [],
        plan=_read_plan(run / "plan.json") if with_noise else None,
        ledger=_read_lines(run / "ledger.jsonl", LedgerLine) if with_noise else [],
    )


def render(record: RunRecord) -> str:
    """The page as HTML text.

    Args:
        record: The run.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": _number,
        "bound": _bound,
        "at_most": partial(as_text, digits=3),
        "size": _size,
        "signed": _signed,
    }
    result, plan = record.result, record.plan
    timeline, phases = _timeline(record), _phases(record)
    return environment.get_template("report.html.j2").render(
        result=result,
        plan=plan,
        config=_flatten(record.config),
        mode=record.config.get("secagg", {}).get("mode", "secure"),
        rounds=record.rounds,
        models=[(title, result.baselines[key]) for key, title in _MODELS.items() if key in result.baselines],
        sites=dict(itertools.islice(result.sites.items(), _SHOWN)),
        more=max(0, len(result.sites) - _SHOWN),
        timeline=timeline,
        present={name: sum(summed for _, summed, _ in cells) for name, cells in timeline},
        silences=sum(len(line.dropped) for line in record.rounds),
        plan_rows=[] if plan is None else [("hash", plan.hash), *_flatten(_chosen(plan))],
        phases=phases,
        elsewhere=[
            (name, value) for name, value in result.seconds.items() if name not in {row["name"] for row in phases}
        ],
        ledger={kind: sum(line.kind == kind for line in record.ledger) for kind in ("reserve", "commit")},
        odds=None if result.epsilon is None else math.exp(min(result.epsilon, _LARGEST_EXPONENT)),
        # The largest true-positive rate that (ε, δ) allows at a false-positive rate of 1 %.
        caught=None
        if result.epsilon is None or plan is None
        else min(1, 0.01 * math.exp(min(result.epsilon, _LARGEST_EXPONENT)) + plan.delta),
        charts=_charts(record),
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error


def _decode(data: bytes, kind: type[_T], where: str) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{where}: {error}") from error


def _read_lines(path: Path, kind: type[_T]) -> list[_T]:
    lines = _read(path).splitlines()
    return [_decode(line, kind, f"{path}: line {number}") for number, line in enumerate(lines, start=1)]


def _read_plan(path: Path) -> Plan:
    text = _read(path)
    try:
        with warnings.catch_warnings():
            # What the warning says is on the page.
            warnings.simplefilter("ignore", PlanWarning)
            return Plan.from_json(text)
    except PlanError as error:
        raise RunError(f"{path}: {error}") from error


def _timeline(record: RunRecord) -> list[tuple[str, list[tuple[int, bool, str | None]]]]:
    """For each site, for each round: the round, whether its update is in the sum, the phase it fell silent in."""
    names = list(record.result.sites)
    names += [name for line in record.rounds for name in (*line.survivors, *line.dropped)]
    summed = [frozenset(line.survivors) for line in record.rounds]
    return [
        (
            name,
            [
                (line.round, name in there, line.dropped.get(name))
                for line, there in zip(record.rounds, summed, strict=True)
            ],
        )
        for name in itertools.islice(dict.fromkeys(names), _SHOWN)
    ]


def _phases(record: RunRecord) -> list[dict[str, Any]]:
    """Bytes and seconds of the whole run by phase, in protocol order; the largest of each column is 1 in `share`."""

    def total(part: Callable[[RoundLine], Mapping[str, float]], phase: str) -> float:
        return math.fsum(part(line).get(phase, 0) for line in record.rounds)

    columns: dict[str, Callable[[RoundLine], Mapping[str, float]]] = {
        "up": lambda line: line.bytes.up,
        "down": lambda line: line.bytes.down,
        "server": lambda line: line.seconds.server,
        "client": lambda line: line.seconds.client,
    }
    names = dict.fromkeys(phase for line in record.rounds for part in columns.values() for phase in part(line))
    rows: list[dict[str, Any]] = [
        {"name": phase} | {column: total(part, phase) for column, part in columns.items()} for phase in names
    ]
    for column in columns:
        largest = max((row[column] for row in rows), default=0) or 1
        for row in rows:
            row[f"{column}_share"] = row[column] / largest
    return rows


def _flatten(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Dotted keys and values of nested TOML tables."""
    flat: list[tuple[str, str]] = []
    for key, value in table.items():
        if isinstance(value, dict):
            flat += _flatten(value, f"{prefix}{key}.")
        else:
            flat.append((prefix + key, str(value)))
    return flat


def _chosen(plan: Plan) -> dict[str, Any]:
    """What the plan says and what follows from it, without the parts that it does not have."""
    return {name: value for name, value in dataclasses.asdict(plan).items() if value is not None}


def _charts(record: RunRecord) -> dict[str, Markup]:
    """Inline SVG by name; a chart whose data the run does not have is left out."""
    result, plan = record.result, record.plan
    charts: dict[str, Markup] = {}
    if record.evaluation:
        steps = [line.round for line in record.evaluation]

        def quality(axes: "Axes") -> None:
            for field, colour in (("auc", _BLUE), ("accuracy", _ORANGE)):
                values = [getattr(line, field) for line in record.evaluation]
                label = "AUC" if field == "auc" else field
                axes.plot(steps, [_level(v) for v in values], color=colour, label=label)
                baseline = result.baselines.get("federated")
                level = None if baseline is None else getattr(baseline, field)
                if level is not None:
                    axes.axhline(level, color=colour, linestyle=":", label=f"{label}, federated without privacy")

        charts["quality"] = _svg("quality", quality, "pooled test set")
    if plan is not None and record.rounds:
        steps = [line.round for line in record.rounds]
        spent = [line.epsilon for line in record.rounds if line.epsilon is not None]
        noise = [line.sigma_eff for line in record.rounds if line.sigma_eff is not None]

        counts = range(1, len(steps) + 1)
        if plan.sample_rate < 1:  # a privacy loss distribution for each
            counts = counts[:: -(-len(steps) // _PLANNED)]
        planned = [plan.accounted_epsilon(rounds=count).upper for count in counts]

        def epsilon(axes: "Axes") -> None:
            axes.axhline(plan.epsilon, color=_RED, linestyle=":", label="budget of the run")
            axes.plot([steps[count - 1] for count in counts], planned, color=_GREY, linestyle="--", label="planned")
            axes.plot(steps, [_level(each.rdp) for each in spent], color=_ORANGE, label="realised, Rényi route")
            axes.plot(steps, [_level(each.closed_form) for each in spent], color=_BLUE, label="realised, closed form")
            axes.set_ylim(bottom=0)

        def sigma(axes: "Axes") -> None:
            realised = [each / plan.sensitivity for each in noise]
            axes.axhline(1 / plan.mu(plan.sites - plan.dropouts), color=_GREY, linestyle="--", label="planned floor")
            axes.step(steps, realised, where="mid", color=_BLUE, label="realised")
            axes.set_ylim(0, 1.15 * max(realised))

        if plan.adaptive is not None:
            charts["clip"] = _svg("clip", partial(_draw_clip, record.rounds, plan.adaptive.quantile), "clip norm")
        charts["epsilon"] = _svg("epsilon", epsilon, f"ε at δ = {plan.delta:g}")
        charts["noise"] = _svg("noise", sigma, "\N{GREEK SMALL LETTER SIGMA}_eff / sensitivity")
    return charts


def _draw_clip(rounds: list[RoundLine], quantile: float, axes: "Axes") -> None:
    steps = [line.round for line in rounds]
    axes.step(steps, [_level(line.clip) for line in rounds], where="mid", color=_BLUE, label="clip norm C")
    axes.set_ylim(bottom=0)
    share = axes.twinx()
    share.plot(steps, [_level(line.within) for line in rounds], color=_ORANGE, label="part within C, with its noise")
    share.axhline(quantile, color=_GREY, linestyle=":", label="quantile asked for")
    share.set_ylim(0, 1)


def _level(value: float | None) -> float:
    """A value to plot; a gap where there is none."""
    return math.nan if value is None else value


def _svg(name: str, draw: Callable[["Axes"], None], ylabel: str) -> Markup:
    """Draws one chart over rounds as an `<svg>` element whose ids start with `name`."""
    import matplotlib as mpl  # noqa: PLC0415 - 0.5 s to import
    from matplotlib.figure import Figure  # noqa: PLC0415 - 0.5 s to import
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 - 0.5 s to import

    style: dict[Any, Any] = {
        "svg.hashsalt": name,
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "lines.linewidth": 1.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    text = io.StringIO()
    # The user's own matplotlib settings must not change the page; the backend is not touched, nothing is displayed.
    defaults = {key: value for key, value in mpl.rcParamsDefault.items() if not key.startswith("backend")}
    with mpl.rc_context(defaults | style):
        figure = Figure(figsize=(9.0, 3.0), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set_xlabel("round")
        axes.set_ylabel(ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.grid(visible=True, axis="y", color=_INK, alpha=0.12, linewidth=0.8)
        figure.legend(frameon=False, fontsize=9, ncols=2, loc="outside upper left")
        figure.savefig(
            text, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    # Several charts share the page; without a prefix their ids would collide.
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", svg)
    return Markup(svg)  # noqa: S704 - matplotlib's own output, its texts are escaped by it


def _bound(value: float | None) -> str:
    """An ε, rounded up: what is printed is never less than what was proved."""
    return "\N{EN DASH}" if value is None else as_text(value, 4)


def _number(value: float | None, digits: int = 3) -> str:
    return "\N{EN DASH}" if value is None else f"{value:.{digits}f}"


def _signed(value: float | None, reference: float | None) -> str:
    return "" if value is None or reference is None else f"{value - reference:+.3f}".replace("-", "\N{MINUS SIGN}")


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
