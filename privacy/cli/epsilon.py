"""`privacy epsilon` and `privacy noise`: what a mechanism costs, and what noise a budget needs."""

import math
from collections.abc import Callable
from typing import Any, get_args

import click

from privacy.accounting import EpsilonBound, Relation, Sampling, Unit, block_epsilon, epsilon, noise_multiplier
from privacy.cli.output import at_most, json_option, print_json, routes
from privacy.errors import AccountingError

_Asked = Any  # what click parsed: the options of _QUESTION, checked where they are used
_QUESTION = (
    click.option("--delta", type=float, required=True, help="Probability that the bound does not cover."),
    click.option("--steps", type=int, default=1, show_default=True, help="Number of releases, or of rounds."),
    click.option(
        "--sample-rate",
        type=float,
        default=1.0,
        show_default=True,
        help="Probability of each record's own secret coin in each step (Poisson sampling).",
    ),
    click.option(
        "--sampling",
        type=click.Choice(get_args(Sampling)),
        default="poisson",
        show_default=True,
        help="fixed: shuffled or fixed-size batches, accounted as if every record were in every step.",
    ),
    click.option(
        "--unit",
        type=click.Choice(get_args(Unit)),
        default="record",
        show_default=True,
        help="Whom the claim protects: one patient's record, or one whole site.",
    ),
    click.option(
        "--relation",
        type=click.Choice(get_args(Relation)),
        help="What a neighbour is. [default: add-remove for a record, zero-out for a client]",
    ),
    click.option(
        "--silos", type=int, default=1, show_default=True, help="At how many sites one patient may have records."
    ),
)


def _question_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_QUESTION):
        command = option(command)
    return command


@click.command("epsilon")
@click.option("--noise-multiplier", type=float, required=True, help="Noise in the sum over the clip norm.")
@_question_options
@click.option("--client-rate", type=float, help="Probability of a client's own secret coin in each round.")
@click.option("--local-steps", type=int, help="Noisy steps that a client makes in a round.")
@json_option
def epsilon_command(
    noise_multiplier: float, client_rate: float | None, local_steps: int | None, as_json: bool, **asked: _Asked
) -> None:
    """Epsilon of a composed Gaussian mechanism, by every route.

    With --client-rate or --local-steps, --steps are rounds: the coin is counted once a round, never once a step.
    """
    if client_rate is not None or local_steps is not None:
        rate, steps = 1.0 if client_rate is None else client_rate, 1 if local_steps is None else local_steps
        _print_block(noise_multiplier, rate, steps, as_json, asked)
        return
    bound = epsilon(noise_multiplier=noise_multiplier, **asked)
    if as_json:
        print_json(_json(bound))
        return
    click.echo(f"{at_most(bound)} {_terms(asked)}")
    click.echo(routes(bound))


def _print_block(noise: float, client_rate: float, local_steps: int, as_json: bool, asked: dict[str, Any]) -> None:
    """Both answers: the coin that nobody sees, and the one that a client's other records show."""
    for name, only in (("sampling", "poisson"), ("unit", "record"), ("silos", 1)):
        if asked[name] != only:
            raise AccountingError(f"--{name} {asked[name]} does not go with --client-rate or --local-steps")
    question: dict[str, Any] = {
        "noise_multiplier": noise,
        "sample_rate": asked["sample_rate"],
        "local_steps": local_steps,
        "client_rate": client_rate,
        "rounds": asked["steps"],
        "delta": asked["delta"],
        "relation": asked["relation"],
    }
    seen = block_epsilon(**question, coin="seen")
    one_answer = asked["relation"] == "replace-one" and client_rate < 1
    secret = None if one_answer else block_epsilon(**question, coin="secret")
    bound = seen if secret is None else secret
    if as_json:
        print_json(_json(bound) | {"coin": "seen" if secret is None else "secret", "epsilon_if_seen": seen.upper})
        return
    click.echo(f"{at_most(bound)} {_terms(asked)}")
    click.echo(routes(bound))
    if secret is not None and client_rate < 1:
        click.echo(
            "  while nobody can see which clients take part: a client without the unit must look like one that stays home\n"
            f"  if it may be seen, as where a client holds other people's records too: {at_most(seen)}"
        )


def _json(bound: EpsilonBound) -> dict[str, Any]:
    return {"epsilon": bound.upper, "lower": bound.lower, "routes": dict(bound.routes)}


def _terms(asked: dict[str, Any]) -> str:
    """What the claim is about: delta, unit, relation, and what the sampling was taken to be."""
    relation = asked["relation"] or ("add-remove" if asked["unit"] == "record" else "zero-out")
    words = [f"at delta = {asked['delta']:g} ({relation}"]
    if asked["unit"] != "record":
        words.append(f"unit {asked['unit']}")
    if asked["silos"] != 1:
        words.append(f"a patient at {asked['silos']} sites")
    if asked["sample_rate"] < 1:
        fixed = "batches of a fixed size, so every record counts in every step"
        words.append("Poisson sampling with secret coins" if asked["sampling"] == "poisson" else fixed)
    return ", ".join(words) + ")"


@click.command("noise")
@click.option("--epsilon", "target", type=float, required=True, help="The budget.")
@_question_options
@json_option
def noise_command(target: float, as_json: bool, **asked: _Asked) -> None:
    """Noise multiplier that keeps to a budget."""
    noise = noise_multiplier(epsilon=target, **asked)
    bound = epsilon(noise_multiplier=noise, **asked)
    if as_json:
        print_json({"noise_multiplier": noise, "epsilon": bound.upper})
        return
    click.echo(f"noise multiplier {_rounded_up(noise)}: {at_most(bound)} {_terms(asked)}")


def _rounded_up(noise: float) -> str:
    """Eight digits of a noise multiplier, not below it: printed noise that was rounded down would pass the budget."""
    digits = max(0, 7 - math.floor(math.log10(noise)))
    return f"{math.ceil(noise * 10**digits) / 10**digits:.{digits}f}"
