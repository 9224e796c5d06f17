"""Sums over releases: what they spent for one unit and relation, and what that comes to as epsilon.

Gaussian releases compose by summing ``mu**2``, for one unit and relation. Entries under several are brought to one that
all of them imply, replace-one of a record: add-remove and zero-out move a contribution from or to zero, so two of them
replace it and mu doubles; whoever may replace a site's vector may replace what one record makes of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from privacy.accounting import EpsilonBound, gaussian_epsilon
from privacy.accounting.gaussian import SAMPLER_DISTANCE, closed_form, rdp_form, with_sampler
from privacy.budget import add_upward

Group = tuple[str, str]  # unit, relation

_MIXED: Final[Group] = ("record", "replace-one")


@dataclass(frozen=True)
class Spend:
    """Sums over releases.

    Attributes:
        squares: Sum of mu**2 for each (unit, relation), rounded up.
        draws: Noise coordinates drawn.
        private: False once anything was released with noise or secrets from a test seed.
    """

    squares: Mapping[Group, float] = field(default_factory=lambda: MappingProxyType({}))
    draws: int = 0
    private: bool = True

    def plus(
        self, group: Group, mu: float, *, draws: int = 0, instead_of: float = 0.0, private: bool = True
    ) -> "Spend":
        """Add a release, in place of a reservation at a larger mu where one is given.

        Guarantees:
            Never less than the spend without the reservation, in floating point too.
        """
        spent = add_upward(self.squares.get(group, 0.0), -instead_of * instead_of)
        squares = {**self.squares, group: add_upward(spent, mu * mu)}
        return Spend(squares, self.draws + draws, self.private and private)

    def merged(self, other: "Spend") -> "Spend":
        """Add the releases of another ledger of the same data."""
        squares = dict(self.squares)
        for group, square in other.squares.items():
            squares[group] = add_upward(squares[group], square) if group in squares else square
        return Spend(squares, self.draws + other.draws, self.private and other.private)

    @property
    def group(self) -> Group:
        """Unit and relation that `mu_squared` is for."""
        return next(iter(self.squares), _MIXED) if len(self.squares) < 2 else _MIXED

    def mu_squared(self, group: Group | None = None) -> float:
        """Total for a (unit, relation) that everything implies: by default this spend's own."""
        if self.squares.keys() <= {group or self.group}:
            return sum(self.squares.values())
        total = 0.0
        for (_, relation), squares in self.squares.items():
            total = add_upward(total, squares if relation == "replace-one" else 4 * squares)
        return total

    def routes(self, delta: float) -> dict[str, float]:
        """Epsilon by both routes, sampler included; the bounds of `bound` without the checks between them."""
        mu_squared, sampler = self.mu_squared(), self.draws * SAMPLER_DISTANCE
        return {
            "closed_form": with_sampler(lambda left: closed_form(mu_squared, left), delta, sampler),
            "rdp": with_sampler(lambda left: rdp_form(mu_squared, left), delta, sampler),
        }

    def bound(self, delta: float) -> EpsilonBound:
        """Epsilon with its checks."""
        return gaussian_epsilon(self.mu_squared(), delta, sampler_delta=self.draws * SAMPLER_DISTANCE)


@dataclass(frozen=True)
class RunTotal:
    """What one run spent.

    Attributes:
        run: Its name.
        epsilon: At the total's delta.
        rounds: Commits.
        private: False when anything in it came from a test seed.
    """

    run: str
    epsilon: EpsilonBound
    rounds: int
    private: bool


@dataclass(frozen=True)
class Difference:
    """Two rounds of one run whose survivors differ by one site: the difference of their sums speaks of that site alone.

    Attributes:
        run: Its name.
        site: Id of the site.
        rounds: Their numbers, in the order of the ledger; the first such two.
    """

    run: str
    site: int
    rounds: tuple[int, int]


@dataclass(frozen=True)
class LedgerTotal:
    """Everything in a ledger, composed.

    Attributes:
        epsilon: Over all runs, open reservations at their plan's floor.
        delta: What it is for.
        unit: Who is protected.
        relation: Neighbouring data sets; replace-one of a record where runs differ, which all of them imply.
        runs: Each run by itself.
        open: Reservations without commit.
        private: False when anything came from a test seed: then epsilon covers nothing that these runs released.
        differences: At most one for each run and site. Epsilon covers them, for its unit: one record is not a site.
    """

    epsilon: EpsilonBound
    delta: float
    unit: str
    relation: str
    runs: tuple[RunTotal, ...]
    open: int
    private: bool
    differences: tuple[Difference, ...]

    @property
    def not_private(self) -> tuple[str, ...]:
        """Names of the runs that are not private."""
        return tuple(run.run for run in self.runs if not run.private)
