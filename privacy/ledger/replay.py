"""What a ledger's entries add up to: spends, open reservations, and the rules that entries keep among themselves.

Gaussian releases compose by summing ``mu**2``, for one unit and relation. Entries under several are brought to one that
all of them imply, replace-one of a record: add-remove and zero-out move a contribution from or to zero, so two of them
replace it and mu doubles; whoever may replace a site's vector may replace what one record makes of it.
"""

import base64
import hashlib
import json
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from privacy.accounting import EpsilonBound, gaussian_epsilon
from privacy.accounting.gaussian import SAMPLER_DISTANCE, closed_form, rdp_form, with_sampler
from privacy.budget import add_upward
from privacy.errors import PlanError
from privacy.ledger.chain import ChainError, Entry, matching_mu, torn_counts
from privacy.plan import Plan, PlanWarning

Group = tuple[str, str]  # unit, relation

_DEFAULT_DELTA: Final = 1e-5  # of a ledger without any plan, whose epsilon is 0 whatever delta is
_MIXED: Final[Group] = ("record", "replace-one")
_REL_TOL: Final = 1e-9  # between machines whose libraries round otherwise
_ABS_TOL: Final = 1e-12


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


class _Cohorts:
    """The sets of survivors of one run, told apart by the exclusive or of their members' hashes.

    So that leaving one member out, or adding one, is a single operation, however large the sets are.
    """

    def __init__(self) -> None:
        self._hashes: dict[int, int] = {}
        self._rounds: dict[int, int] = {}

    def add(self, survivors: Iterable[int], number: int) -> list[tuple[int, int]]:
        """Take a round's survivors in; the sites by which alone they differ from an earlier round's, with that round."""
        mark = 0
        for site in survivors:
            if site not in self._hashes:
                self._hashes[site] = int.from_bytes(hashlib.sha256(site.to_bytes(8, "big")).digest(), "big")
            mark ^= self._hashes[site]
        if mark in self._rounds:
            return []
        self._rounds[mark] = number
        return [(site, self._rounds[mark ^ own]) for site, own in self._hashes.items() if mark ^ own in self._rounds]


class Books:
    """The state that entries lead to, one by one.

    Args:
        path: For messages.

    Attributes:
        plans: By hash.
        pending: Reservations without commit, by number.
        runs: Spend of each run, in order of appearance.
        rounds: Commits of each run.
        spend: Over everything.
        data_set: Fingerprint that the ledger belongs to; set by the first reservation.
        hashes: Of every entry.
        last_run: Of the last entry with one.
        differences: By run and site.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plans: dict[str, Plan] = {}
        self.pending: dict[int, Entry] = {}
        self.runs: dict[str, Spend] = {}
        self.rounds: dict[str, int] = {}
        self.spend = Spend()
        self.data_set: str | None = None
        self.hashes: list[str] = []
        self.last_run = ""
        self.differences: dict[tuple[str, int], Difference] = {}
        self._cohorts: dict[str, _Cohorts] = {}
        self._data_set_known = False

    def floor(self) -> tuple[Plan | None, float]:
        """Return the plan with the largest mu at its floor, and that mu: what an unknown reservation counts."""
        if not self.plans:
            return None, 0.0
        mu, plan = max(
            ((plan.mu(plan.sites - plan.dropouts), plan) for plan in self.plans.values()), key=lambda each: each[0]
        )
        return plan, mu

    def belongs(self, data_set: str | None) -> bool:
        """Whether a reservation for this data set may stand in this ledger."""
        return not self._data_set_known or self.data_set == data_set

    def after(self, entry: Entry) -> tuple[Spend, Spend]:
        """Return the run's and the whole spend after an entry, without booking it."""
        run = self.runs.get(entry.run, Spend())
        if entry.plan is None:
            return run, self.spend
        plan = self.plans[entry.plan]
        group = (plan.unit, plan.relation)
        replaced = self.pending[entry.closes].mu if entry.kind == "commit" else 0.0
        both = (
            spend.plus(group, entry.mu, draws=entry.draws, instead_of=replaced, private=entry.private)
            for spend in (run, self.spend)
        )
        return next(both), next(both)

    def total(self, delta: float | None = None) -> LedgerTotal:
        """Compose everything, at the smallest delta of the plans where none is given.

        Raises:
            AccountingError: delta is out of range.
        """
        if delta is None:
            delta = min((plan.delta for plan in self.plans.values()), default=_DEFAULT_DELTA)
        unit, relation = self.spend.group
        runs = tuple(
            RunTotal(run, spend.bound(delta), self.rounds[run], spend.private) for run, spend in self.runs.items()
        )
        return LedgerTotal(
            epsilon=self.spend.bound(delta),
            delta=delta,
            unit=unit,
            relation=relation,
            runs=runs,
            open=len(self.pending),
            private=self.spend.private,
            differences=tuple(self.differences.values()),
        )

    def book(self, entry: Entry, *, recompute: bool = False) -> None:
        """Take an entry in.

        Args:
            entry: The next one; its place in the chain was checked.
            recompute: Also check its epsilons.

        Raises:
            ChainError: it contradicts what stands before it; file and line are named.
        """
        try:
            self._check(entry)
        except (ChainError, PlanError) as error:
            raise ChainError(f"{self.path}, line {entry.seq + 1}: {error}") from error
        if entry.kind != "plan" and entry.plan is not None:
            run, spend = self.after(entry)
            if recompute:
                self._recompute(entry, run, spend)
            self.runs[entry.run], self.spend = run, spend
            self.rounds.setdefault(entry.run, 0)
            self.last_run = entry.run
        if entry.kind == "reserve":
            self.pending[entry.seq] = entry
            self.data_set, self._data_set_known = entry.data_set, True
        elif entry.kind == "commit":
            del self.pending[entry.closes]
            self.rounds[entry.run] += 1
            for site, earlier in self._cohorts.setdefault(entry.run, _Cohorts()).add(entry.survivors, entry.round):
                self.differences.setdefault((entry.run, site), Difference(entry.run, site, (earlier, entry.round)))
        self.hashes.append(entry.hash)

    def _check(self, entry: Entry) -> None:
        if entry.kind == "plan":
            self._check_plan(entry)
        elif entry.plan is not None and entry.plan not in self.plans:
            raise ChainError(f"plan {entry.plan} does not stand before its first use")
        elif entry.kind == "recovered":
            self._check_recovered(entry)
        else:
            self._check_release(entry)

    def _check_plan(self, entry: Entry) -> None:
        with warnings.catch_warnings():  # whoever made the plan was warned
            warnings.simplefilter("ignore", PlanWarning)
            try:
                text = json.dumps(entry.body)
            except RecursionError:
                raise ChainError("the plan is nested too deeply") from None
            plan = Plan.from_json(text)
        if plan.hash != entry.plan or plan.hash in self.plans:
            raise ChainError(f"plan {entry.plan} is not the hash of its body, or stands here twice")
        self.plans[plan.hash] = plan

    def _check_release(self, entry: Entry) -> None:
        plan = self.plans.get(entry.plan or "")
        if plan is None or not matching_mu(entry, plan):
            raise ChainError(f"mu = {entry.mu} and sigma_eff = {entry.sigma_eff} do not follow from the plan")
        if entry.kind == "reserve":
            if entry.draws != plan.draws:
                raise ChainError(f"draws = {entry.draws} does not follow from the plan")
            if not self.belongs(entry.data_set):
                raise ChainError(f"data_set = {entry.data_set} in the ledger of {self.data_set}")
            return
        reserved = self.pending.get(entry.closes)
        if reserved is None:
            raise ChainError(f"closes = {entry.closes} is no open reservation")
        told = (entry.plan, entry.run, entry.round, entry.private)
        if told != (reserved.plan, reserved.run, reserved.round, reserved.private):
            raise ChainError(f"the commit does not agree with the reservation on line {entry.closes + 1}")

    def _check_recovered(self, entry: Entry) -> None:
        try:
            counts = torn_counts(base64.b64decode(entry.torn))
        except ValueError as error:
            raise ChainError(f"torn is not base64: {error}") from error
        plan, mu = self.floor()
        expected = (plan.hash if plan else None, mu if counts else 0.0, plan.draws if plan and counts else 0)
        if (entry.plan, entry.mu, entry.draws) != expected:
            raise ChainError("a recovered entry that does not count the interrupted write at the floor")

    def _recompute(self, entry: Entry, run: Spend, spend: Spend) -> None:
        if entry.plan is None:
            return
        delta = self.plans[entry.plan].delta
        expected = run.routes(delta)
        total = expected if run == spend else spend.routes(delta)
        for name, told, right in (("epsilon", entry.epsilon, expected), ("epsilon_total", entry.epsilon_total, total)):
            for route, value in right.items():
                if not math.isclose(told.get(route, -1.0), value, rel_tol=_REL_TOL, abs_tol=_ABS_TOL):
                    raise ChainError(
                        f"{self.path}, line {entry.seq + 1}: {name} by {route} is {told.get(route)}, recomputed {value}"
                    )
