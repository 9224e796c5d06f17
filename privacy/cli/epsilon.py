"""`privacy epsilon` and `privacy noise`: what a mechanism costs, and what noise a budget needs."""

import math
from typing import Any, get_args

import click

from privacy.accounting import Relation, epsilon, noise_multiplier
from privacy.cli.output import at_most, json_option, print_json, routes

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


@click.command("epsilon")
@click.option("--noise-multiplier", type=float, required=True, help="Noise in the sum over the clip norm.")
@_rate_option
@_steps_option
@_delta_option
@_relation_option
@json_option
def epsilon_command(  # noqa: PLR0917 - click calls it by keyword
    noise_multiplier: float, sample_rate: float, steps: int, delta: float, relation: Relation, as_json: bool
) -> None:
    """Epsilon of a composed Gaussian mechanism, by every route."""
    bound = epsilon(
        noise_multiplier=noise_multiplier, sample_rate=sample_rate, steps=steps, delta=delta, relation=relation
    )
    if as_json:
        print_json({"epsilon": bound.upper, "lower": bound.lower, "routes": dict(bound.routes)})
        return
    click.echo(f"{at_most(bound)} at delta = {delta:g} ({relation})")
    click.echo(routes(bound))


@click.command("noise")
@click.option("--epsilon", "target", type=float, required=True, help="The budget.")
@_delta_option
@_steps_option
@_rate_option
@_relation_option
@json_option
def noise_command(  # noqa: PLR0917 - click calls it by keyword
    target: float, delta: float, steps: int, sample_rate: float, relation: Relation, as_json: bool
) -> None:
    """Noise multiplier that keeps to a budget."""
    question: dict[str, Any] = {"delta": delta, "steps": steps, "sample_rate": sample_rate, "relation": relation}
    noise = noise_multiplier(epsilon=target, **question)
    bound = epsilon(noise_multiplier=noise, **question)
    if as_json:
        print_json({"noise_multiplier": noise, "epsilon": bound.upper})
        return
    click.echo(f"noise multiplier {_rounded_up(noise)}: {at_most(bound)} at delta = {delta:g} ({relation})")


def _rounded_up(noise: float) -> str:
    """Eight digits of a noise multiplier, not below it: printed noise that was rounded down would pass the budget."""
    digits = max(0, 7 - math.floor(math.log10(noise)))
    return f"{math.ceil(noise * 10**digits) / 10**digits:.{digits}f}"
