"""Sums over releases: what they spent for one unit and relation, and what that comes to as epsilon.

Gaussian releases compose by summing ``mu**2``, for one unit and relation. Entries under several are brought to one that
all of them imply, replace-one of a record: add-remove and zero-out move a contribution from or to zero, so two of them
replace it and mu doubles; whoever may replace a site's vector may replace what one record makes of it.

Releases on Poisson samples add their Rényi divergences to those of the Gaussians, order by order. For the closed form they
count as if every record were in every one of them (privacy.accounting.releases).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

import numpy as np

from privacy.accounting import EpsilonBound, gaussian_epsilon
from privacy.accounting.gaussian import (
    RDP_ORDERS,
    SAMPLER_DISTANCE,
    closed_form,
    rdp_epsilon,
    rdp_form,
    with_sampler,
)
from privacy.accounting.pld import Vector
from privacy.accounting.releases import Release, divergences, with_pld
from privacy.budget import add_upward

Group = tuple[str, str]  # unit, relation

_MIXED: Final[Group] = ("record", "replace-one")
_ORDERS: Final[Vector] = np.array(RDP_ORDERS, np.float64)
_NO_RELEASE: Final = Release(0.0, 0.0)
_NOTHING: Final[Vector] = np.zeros(len(RDP_ORDERS))


@dataclass(frozen=True, eq=False)
class Sampled:
    """What releases of one (unit, relation) come to, some of them on Poisson samples.

    Attributes:
        full: Sum of mu**2 over those that were not, rounded up.
        curve: ``float64 (66,)``, sum over those that were of the Rényi divergences at `RDP_ORDERS`, rounded up.
        replaced: The same for a record that is replaced, not added or removed.
    """

    full: float
    curve: Vector
    replaced: Vector

    def __eq__(self, other: object) -> bool:
        """Whether all sums are the same."""
        if not isinstance(other, Sampled):
            return NotImplemented
        same = np.array_equal(self.curve, other.curve) and np.array_equal(self.replaced, other.replaced)
        return self.full == other.full and same

    __hash__ = None  # type: ignore[assignment]  # arrays have none

    def plus(self, release: Release, *, instead_of: float) -> "Sampled":
        """Add a release, in place of one at another mu where that is not 0."""
        if release.rate == 1:
            spent = add_upward(self.full, -instead_of * instead_of)
            return replace(self, full=add_upward(spent, release.mu * release.mu))
        sums = []
        for total, replaced in ((self.curve, False), (self.replaced, True)):
            if instead_of:
                held = divergences(Release(instead_of, release.rate), replaced=replaced)
                total = np.nextafter(total - held, math.inf)  # noqa: PLW2901 - the sum as it grows
            sums.append(np.nextafter(total + divergences(release, replaced=replaced), math.inf))
        return replace(self, curve=sums[0], replaced=sums[1])

    def merged(self, other: "Sampled") -> "Sampled":
        """Add the releases of another ledger."""
        curve, replaced = (
            np.nextafter(one + two, math.inf)
            for one, two in ((self.curve, other.curve), (self.replaced, other.replaced))
        )
        return Sampled(add_upward(self.full, other.full), curve, replaced)


@dataclass(frozen=True)
class Spend:
    """Sums over releases.

    Attributes:
        squares: Sum of mu**2 for each (unit, relation), rounded up, as if every record were in every release.
        draws: Noise coordinates drawn.
        private: False once anything was released with noise or secrets from a test seed.
        sampled: The rest of it for each (unit, relation) that has releases on Poisson samples.
        releases: How many were reserved, or recovered.
        worst: The largest mu and the largest rate among them, of one release or of two.
    """

    squares: Mapping[Group, float] = field(default_factory=lambda: MappingProxyType({}))
    draws: int = 0
    private: bool = True
    sampled: Mapping[Group, Sampled] = field(default_factory=lambda: MappingProxyType({}))
    releases: int = 0
    worst: Release = _NO_RELEASE

    def plus(
        self,
        group: Group,
        mu: float,
        *,
        rate: float = 1.0,
        draws: int = 0,
        instead_of: float = 0.0,
        private: bool = True,
    ) -> "Spend":
        """Add a release, in place of a reservation at a larger mu and the same rate where one is given.

        Guarantees:
            Never less than the spend without the reservation, in floating point too.
        """
        before = self.squares.get(group, 0.0)
        squares = {**self.squares, group: add_upward(add_upward(before, -instead_of * instead_of), mu * mu)}
        sampled = self.sampled
        if mu and (rate < 1 or group in sampled):
            so_far = sampled.get(group) or Sampled(before, _NOTHING, _NOTHING)
            sampled = {**sampled, group: so_far.plus(Release(mu, rate), instead_of=instead_of)}
        return Spend(
            squares,
            self.draws + draws,
            self.private and private,
            sampled,
            self.releases + (mu > 0 and not instead_of),
            Release(max(self.worst.mu, mu), max(self.worst.rate, rate if mu else 0.0)),
        )

    def merged(self, other: "Spend") -> "Spend":
        """Add the releases of another ledger of the same data."""
        squares, sampled = dict(self.squares), {}
        for group, square in other.squares.items():
            squares[group] = add_upward(squares[group], square) if group in squares else square
        for group in (*self.sampled, *other.sampled):
            one, two = (
                each.sampled.get(group) or Sampled(each.squares.get(group, 0.0), _NOTHING, _NOTHING)
                for each in (self, other)
            )
            sampled[group] = one.merged(two)
        return Spend(
            squares,
            self.draws + other.draws,
            self.private and other.private,
            sampled,
            self.releases + other.releases,
            Release(*map(max, self.worst, other.worst)),
        )

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

    def renyi(self, group: Group | None = None) -> Vector | None:
        """Rényi divergences at `RDP_ORDERS`, ``float64 (66,)``; None where nothing was sampled: then mu**2 says all."""
        if not self.sampled:
            return None
        alone = self.squares.keys() <= {group or self.group}
        total = _NOTHING
        for each, squares in self.squares.items():
            factor = 1 if alone or each[1] == "replace-one" else 4
            sampled = self.sampled.get(each)
            full = squares if sampled is None else sampled.full
            total = total + _ORDERS * (factor * full / 2)
            if sampled is not None:
                total = total + (sampled.curve if alone else sampled.replaced)
        return total

    def counted(self, group: Group | None, order: int | None) -> float:
        """What a `Budget` counts: the sum of mu**2, or at an order 2 / order times the Rényi divergence."""
        curve = None if order is None else self.renyi(group)
        if order is None or curve is None:
            return self.mu_squared(group)
        return 2 * float(curve[RDP_ORDERS.index(order)]) / order

    def routes(self, delta: float) -> dict[str, float]:
        """Epsilon by both routes, sampler included; the bounds of `bound` without the checks between them."""
        mu_squared, sampler, curve = self.mu_squared(), self.draws * SAMPLER_DISTANCE, self.renyi()

        def by_renyi(left: float) -> float:
            return rdp_form(mu_squared, left) if curve is None else rdp_epsilon(curve, left)

        return {
            "closed_form": with_sampler(lambda left: closed_form(mu_squared, left), delta, sampler),
            "rdp": with_sampler(by_renyi, delta, sampler),
        }

    def bound(self, delta: float, kinds: Mapping[Release, int] | None = None) -> EpsilonBound:
        """Epsilon with its checks.

        Args:
            delta: In (0, 1).
            kinds: The releases on Poisson samples, where a privacy loss distribution shall be composed of them too; it
                is for a spend of one (unit, relation).
        """
        sampler = self.draws * SAMPLER_DISTANCE
        if not self.sampled:
            return gaussian_epsilon(self.mu_squared(), delta, sampler_delta=sampler)
        together = {} if len(self.squares) > 1 else dict(kinds or {})
        if together and (full := self.sampled[self.group].full):
            together[Release(math.sqrt(full), 1.0)] = 1
        return with_pld(self.routes(delta), together, delta, sampler)


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
