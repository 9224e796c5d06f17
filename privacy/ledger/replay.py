"""The rules that a ledger's entries keep among themselves, and what they add up to."""

import base64
import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from privacy.accounting.releases import Release
from privacy.errors import PlanError
from privacy.ledger.chain import ChainError, Entry, matching_mu, plain, torn_counts
from privacy.ledger.limits import keeps_to_plan
from privacy.ledger.recompute import Claim
from privacy.ledger.spend import Difference, LedgerTotal, RunTotal, Spend
from privacy.plan import Plan, PlanWarning

_COMPOSED_RUNS: Final = 16  # whose loss distributions are composed one by one, the last ones; each takes half a second
_DEFAULT_DELTA: Final = 1e-5  # of a ledger without any plan, whose epsilon is 0 whatever delta is


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

    Attributes:
        plans: By hash.
        pending: Reservations without commit, by number.
        runs: Spend of each run, in order of appearance.
        rounds: Commits of each run.
        kinds: Releases of each run on Poisson samples.
        spend: Over everything.
        data_set: Fingerprint that the ledger belongs to; set by the first reservation.
        hashes: Of every entry.
        last_run: Of the last entry with one.
        differences: By run and site.
        unbound: Commits that claim to be private and name no transcript, so that nothing says which sum they are of.
        claims: Every epsilon told, where they are kept.

    Args:
        path: For messages.
        keep_claims: Whether to keep them, for `check_claims`.
    """

    def __init__(self, path: Path, *, keep_claims: bool = False) -> None:
        self.path = path
        self.claims: list[Claim] = []
        self._keep_claims = keep_claims
        self.unbound = 0
        self.plans: dict[str, Plan] = {}
        self.pending: dict[int, Entry] = {}
        self.runs: dict[str, Spend] = {}
        self.rounds: dict[str, int] = {}
        self.kinds: dict[str, Counter[Release]] = {}
        self.spend = Spend()
        self.data_set: str | None = None
        self.hashes: list[str] = []
        self.last_run = ""
        self.differences: dict[tuple[str, int], Difference] = {}
        self._cohorts: dict[str, _Cohorts] = {}
        self._data_set_known = False
        self._first_release: int | None = None

    @property
    def first_release(self) -> int:
        """Number of the first entry that reserves; of the next one, before there is any."""
        return len(self.hashes) if self._first_release is None else self._first_release

    def merged(self, other: "Books") -> "Books":
        """Return what this ledger and another of the same data come to together, for `total` alone."""
        both = Books(self.path)
        both.plans = {**self.plans, **other.plans}
        both.pending = dict(enumerate((*self.pending.values(), *other.pending.values())))
        both.runs, both.rounds = dict(self.runs), dict(self.rounds)
        for run, spend in other.runs.items():
            both.runs[run] = both.runs.get(run, Spend()).merged(spend)
            both.rounds[run] = both.rounds.get(run, 0) + other.rounds[run]
        for books in (self, other):
            for run, kinds in books.kinds.items():
                both.kinds[run] = both.kinds.get(run, Counter()) + kinds
        both.spend = self.spend.merged(other.spend)
        both.differences = {**other.differences, **self.differences}
        return both

    def floor(self) -> tuple[Plan | None, Release]:
        """Return the plan with the largest mu at its floor, and what an unknown reservation counts: that mu, at the largest rate."""
        if not self.plans:
            return None, Release(0.0, 1.0)
        plan = max(self.plans.values(), key=lambda each: each.release.mu)
        return plan, Release(plan.release.mu, max(each.sample_rate for each in self.plans.values()))

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
            spend.plus(
                group,
                entry.mu,
                rate=entry.sample_rate,
                draws=entry.draws,
                instead_of=replaced,
                private=entry.private,
            )
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
        kinds = dict(list(self.kinds.items())[-_COMPOSED_RUNS:])
        runs = tuple(
            RunTotal(run, spend.bound(delta, kinds.get(run)), self.rounds[run], spend.private)
            for run, spend in self.runs.items()
        )
        return LedgerTotal(
            epsilon=self.spend.bound(delta, sum(self.kinds.values(), Counter())),
            delta=delta,
            unit=unit,
            relation=relation,
            runs=runs,
            open=len(self.pending),
            private=self.spend.private,
            differences=tuple(self.differences.values()),
        )

    def book(self, entry: Entry) -> None:
        """Take an entry in.

        Args:
            entry: The next one; its place in the chain was checked.

        Raises:
            ChainError: it contradicts what stands before it; file and line are named.
        """
        try:
            self._check(entry)
        except (ChainError, PlanError) as error:
            raise ChainError(f"{self.path}, line {entry.seq + 1}: {plain(str(error))}") from error
        if entry.kind != "plan" and entry.plan is not None:
            run, spend = self.after(entry)
            if entry.kind == "reserve":
                self._check_budget(entry, run)
            if self._keep_claims:
                self._claim(entry, run, spend)
            self._count(entry)
            self.runs[entry.run], self.spend = run, spend
            self.rounds.setdefault(entry.run, 0)
            self.last_run = entry.run
        if entry.kind == "reserve":
            self.pending[entry.seq] = entry
            if self._first_release is None:
                self._first_release = entry.seq
            self.data_set, self._data_set_known = entry.data_set, True
        elif entry.kind == "commit":
            del self.pending[entry.closes]
            self.rounds[entry.run] += 1
            self.unbound += entry.private and not entry.transcript
            for site, earlier in self._cohorts.setdefault(entry.run, _Cohorts()).add(entry.survivors, entry.round):
                self.differences.setdefault((entry.run, site), Difference(entry.run, site, (earlier, entry.round)))
        self.hashes.append(entry.hash)

    def _count(self, entry: Entry) -> None:
        """Count a release on a Poisson sample, in place of its reservation."""
        if entry.sample_rate == 1 or not entry.mu:
            return
        kinds = self.kinds.setdefault(entry.run, Counter())
        kinds[Release(entry.mu, entry.sample_rate)] += 1
        if entry.kind == "commit":
            held = Release(self.pending[entry.closes].mu, entry.sample_rate)
            kinds[held] -= 1
            if not kinds[held]:
                del kinds[held]

    def _claim(self, entry: Entry, run: Spend, spend: Spend) -> None:
        delta = self.plans[entry.plan or ""].delta
        self.claims.append(Claim(entry.seq, "epsilon", dict(entry.epsilon), run, delta))
        if run != spend or entry.epsilon_total != entry.epsilon:
            self.claims.append(Claim(entry.seq, "epsilon_total", dict(entry.epsilon_total), spend, delta))

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
            rate = "" if entry.sample_rate == 1 else f", sample_rate = {entry.sample_rate}"
            raise ChainError(f"mu = {entry.mu} and sigma_eff = {entry.sigma_eff}{rate} do not follow from the plan")
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

    def _check_budget(self, entry: Entry, run: Spend) -> None:
        """No writer books a release that its run's plan has no budget for, so whoever did has another program, or the key."""
        plan = self.plans[entry.plan or ""]
        if not keeps_to_plan(plan, run):
            raise ChainError(
                f"{self.path}, line {entry.seq + 1}: run {plain(ascii(entry.run), 80)} has passed its plan's budget of "
                f"epsilon = {plan.epsilon:g}"
            )

    def _check_recovered(self, entry: Entry) -> None:
        try:
            counts = torn_counts(base64.b64decode(entry.torn))
        except ValueError as error:
            raise ChainError(f"torn is not base64: {error}") from error
        plan, release = self.floor()
        expected = (
            plan.hash if plan else None,
            counts * release.mu,
            release.rate,
            plan.draws if plan and counts else 0,
        )
        if (entry.plan, entry.mu, entry.sample_rate, entry.draws) != expected:
            raise ChainError("a recovered entry that does not count the interrupted write at the floor")
