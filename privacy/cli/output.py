"""What every subcommand prints alike."""

import json
import math
from typing import Any

import click

from privacy.accounting import EpsilonBound
from privacy.accounting.gaussian import as_text

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")


def at_most(bound: EpsilonBound) -> str:
    """The bound in words, rounded up."""
    return f"epsilon <= {as_text(bound.upper)}" if math.isfinite(bound.upper) else "epsilon has no bound"


def routes(bound: EpsilonBound) -> str:
    """Every route's upper bound, smallest first, and the lower bound."""
    routes = ", ".join(
        f"{name} {as_text(value)}" for name, value in sorted(bound.routes.items(), key=lambda each: each[1])
    )
    return f"  upper bounds: {routes}; lower bound: {as_text(bound.lower, upward=False)}"


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on one line; what is not finite is null."""
    click.echo(json.dumps(_finite(value), allow_nan=False))


def _finite(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
