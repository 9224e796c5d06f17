"""A plan in words, on one page."""

import math
from typing import TYPE_CHECKING

from privacy.accounting.gaussian import as_text

if TYPE_CHECKING:
    from privacy.plan.plan import Plan


def explain(plan: "Plan") -> str:
    """Say what is promised, against whom, and what is not; bounds are rounded up."""
    planned = plan.accounted_epsilon()
    odds = as_text(math.exp(planned.upper), 4) if planned.upper < 700 else "an unknown factor"
    return f"""\
Privacy plan {plan.hash[:16]}

Protected: {_unit(plan)}. Two data sets are neighbours when {_relation(plan)}.
Promise: epsilon <= {as_text(planned.upper, 4)} at delta = {plan.delta:g} after {plan.rounds} rounds{_attempts(plan)} (the Rényi route says \
{as_text(planned.routes["rdp"], 4)}); the budget of the run is {_number(plan.epsilon)}.
Against: the server and {plan.colluders} colluding sites, who know their own noise. Computational: it rests on the \
masks, the sealing of shares and the noise generator.
Holds when: at least {plan.sites - plan.dropouts} of {plan.sites} sites are in every sum. With fewer, the sites \
withhold their shares and the round ends without a sum.
In words: seeing the whole run multiplies the odds of any guess about the protected {_noun(plan)} by at most {odds}, \
but for probability {plan.delta:g}.

{_clipping(plan)}
{_sampling(plan)}Each site adds discrete Gaussian noise of {plan.sigma_local:.6g} steps to each of {plan.length} coordinates; the \
fewest honest survivors' together count as {plan.sigma_star:.6g} steps, {plan.noise_multiplier:.6g} times the sensitivity.
{_adaptive(plan)}The decoded sum is divided by the public constant {plan.divisor:g}.

Not covered: anything else that leaves a site (exact statistics, row counts, evaluation, baselines without privacy); \
the choice of settings on the same data; other runs on the same data, which the data set's ledger adds up; \
{_beyond(plan)}timing.
"""


def _noun(plan: "Plan") -> str:
    return "person" if plan.silos > 1 else plan.unit


def _unit(plan: "Plan") -> str:
    if plan.unit == "client":
        return "one site, with everything it holds"
    if plan.silos == 1:
        return "one record (one patient's row)"
    return f"one person, with one record at each of at most {plan.silos} sites"


def _relation(plan: "Plan") -> str:
    it = "all that the person has" if plan.silos > 1 else "it"
    return {
        "add-remove": f"{it} is there or is not",
        "replace-one": f"{it} is replaced by any other",
        "zero-out": "it takes part with its data or with zeros; who takes part is public",
    }[plan.relation]


def _clipping(plan: "Plan") -> str:
    start = ", at first," if plan.adaptive else ""
    text = f"Each contribution of a {plan.unit} is clipped{start} to L2 norm {plan.clip:g} on a grid of {plan.grid} steps, at most "
    text += f"{plan.records_per_site} a site; one {_noun(plan)} changes a sum by at most {plan.sensitivity} steps."
    if plan.silos > 1:
        text += (
            f"\nA person counts {plan.silos} times, once for each site: L2 norm {plan.total_clip:g} together. Clipping to "
            f"1/{plan.silos} of a norm bounds the person's whole contribution by that norm."
        )
    return text


def _attempts(plan: "Plan") -> str:
    return ", every attempt counted" if plan.sample_rate < 1 else ""


def _sampling(plan: "Plan") -> str:
    if plan.sample_rate == 1:
        return ""
    told = plan.accounted_epsilon().routes["closed_form"]
    known = f"epsilon would be {as_text(told, 4)}" if math.isfinite(told) else "epsilon would have no bound"
    return (
        f"A record takes part in a round with probability {_number(plan.sample_rate)}, by a coin of its own that only its site "
        f"knows (Poisson sampling). Batches are neither cut nor filled up, and who was in one is never told; were it told, "
        f"{known}.\n"
    )


def _adaptive(plan: "Plan") -> str:
    if plan.adaptive is None:
        return ""
    adaptive, noise = plan.adaptive, plan.sigma_star / (2 * plan.bit)
    return (
        f"The clip norm then moves within [{adaptive.min_clip:g}, {adaptive.max_clip:g}] to where a fraction of "
        f"{adaptive.quantile:g} of the norms are within it: one bit of each contribution leaves with it, {plan.bit} steps "
        f"up or down. Bit and update are one release. The noise on the count of bits is {noise:.4g}, for "
        f"{adaptive.expected:g} expected.\n"
    )


def _beyond(plan: "Plan") -> str:
    if plan.unit == "client":
        return "a person with records at several sites; "
    if plan.silos == 1:
        return "a person with records at several sites, or several at one, who counts once for each; "
    return f"a person with records at more than {plan.silos} sites, or several at one, who counts once for each; "


def _number(value: float) -> str:
    """Six digits where they are all there is, else every digit: a budget is not rounded."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
