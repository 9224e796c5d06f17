"""How a plan looks before there is data: signal to noise, and epsilon as rounds and colluders grow."""

import math
from dataclasses import dataclass
from typing import Final

from privacy.accounting import EpsilonBound
from privacy.plan.plan import Plan

_MOST_ROWS: Final = 12


@dataclass(frozen=True)
class Signal:
    """The decoded sum over the divisor, for one number of survivors.

    Attributes:
        survivors: Sites in the sum.
        coordinate: Standard deviation of the noise in one coordinate, in the update's units.
        noise: Its L2 norm over all d coordinates, root mean square.
        ratio: Clip norm over that. Without noise the result has that norm where as many contributions as the
            divisor, each at the clip norm, point the same way: the most that can be expected.
    """

    survivors: int
    coordinate: float
    noise: float
    ratio: float


def signal(plan: Plan) -> tuple[Signal, ...]:
    """Signal to noise from the floor of survivors to all sites; at most twelve rows.

    Guarantees:
        The noise is the real one: that of every survivor, colluders and the accountant's 9 included.
    """
    rows = []
    for survivors in _spread(plan.sites - plan.dropouts, plan.sites):
        coordinate = math.sqrt(survivors) * plan.sigma_local / plan.grid * plan.clip / plan.divisor
        steps = math.sqrt(survivors) * plan.sigma_local / plan.grid * math.sqrt(plan.dimension)
        rows.append(Signal(survivors, coordinate, coordinate * math.sqrt(plan.dimension), plan.divisor / steps))
    return tuple(rows)


def epsilon_by_rounds(plan: Plan) -> tuple[tuple[int, EpsilonBound], ...]:
    """Epsilon at the floor after T/10, 2T/10, ..., T rounds, and 2T, which the budget refuses."""
    counts = sorted({max(1, math.ceil(plan.rounds * part / 10)) for part in range(1, 11)} | {2 * plan.rounds})
    return tuple((count, plan.accounted_epsilon(rounds=count)) for count in counts)


def epsilon_by_colluders(plan: Plan) -> tuple[tuple[int, EpsilonBound], ...]:
    """Epsilon of all rounds at the floor against 0 colluders up to all but one honest survivor: the plan's c, and at most twelve more."""
    most = plan.sites - plan.dropouts - 1
    counts = sorted({*_spread(0, most), plan.colluders})
    return tuple((count, plan.accounted_epsilon(colluders=count)) for count in counts)


def _spread(least: int, most: int) -> list[int]:
    """Whole numbers from least to most, both included: all of them, or as many as fit a table."""
    rows = min(most - least + 1, _MOST_ROWS)
    return sorted({least + round((most - least) * row / max(rows - 1, 1)) for row in range(rows)})
