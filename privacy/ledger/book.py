"""A ledger of what was released about one data set: reserve, then send, then commit.

The budget belongs to the data, and whoever holds the data enforces it: a site keeps one ledger for each data set, to
which every run appends. From `Ledger.reserve` on, a release counts as made, at the plan's floor; `Ledger.commit` books
the noise that the signed survivors really gave. Whatever happens in between, a crash included, leaves the reservation.

Every append is one write, flushed to the disk before the call returns; the head follows it, so it may be one entry
behind after a crash, which opening repairs. The file is locked while a `Ledger` is open.

The claims are of computational differential privacy, against whoever sees the sums.
"""

import importlib.metadata
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.budget import Budget
from privacy.errors import LedgerError
from privacy.ledger.chain import GENESIS, MAX_TORN, ChainError, Entry, decode, encode, entries, torn_counts, torn_text
from privacy.ledger.head import check_head, head_path, read_head, sign_head
from privacy.ledger.replay import Books, LedgerTotal, Spend
from privacy.ledger.storage import locked, open_locked, read_all, replace_file, write_at
from privacy.plan import Plan


@dataclass(frozen=True)
class Reservation:
    """A release that counts as made.

    Attributes:
        seq: Number of its entry.
        hash: Hash of its entry.
        run: Name of the run.
        round: Round number.
        attempt: Attempt at the round.
        plan: The plan it stands under.
    """

    seq: int
    hash: str
    run: str
    round: int
    attempt: int
    plan: Plan


@dataclass(frozen=True)
class LedgerReport:
    """What `verify` found in order.

    Attributes:
        path: The ledger.
        entries: Whole lines.
        rounds: Commits.
        total: Everything, composed.
        head: ``ok``; ``behind`` by one entry, as a crash leaves it; or ``missing``, so that a cut tail cannot be seen.
        torn: Whether an interrupted write stands at the end; it is not in the total before it is recovered.
    """

    path: Path
    entries: int
    rounds: int
    total: LedgerTotal
    head: str
    torn: bool


class Ledger:
    """An open ledger; a context manager.

    Args:
        path: The file; made if it is not there.
        signer: Signs the head after each append. Without one there is no head, and a cut tail cannot be seen.

    Raises:
        ChainError: a line was edited, removed or reordered, the tail was cut, or the head is signed by another key or
            contradicts the chain; the file and line are named.
        LedgerError: it is open elsewhere, or cannot be read or written.

    Guarantees:
        A release that was reserved counts from then on, whatever happens to the process.
        The spend never falls below that of the releases made: a commit may only replace its own reservation.
        Opening takes time linear in the entries, an append takes time independent of them.
        A second opener gets an error while this one is open.
    """

    def __init__(self, path: str | os.PathLike[str], *, signer: Ed25519PrivateKey | None = None) -> None:
        self.path = Path(path)
        self._signer = signer
        self._pid = os.getpid()
        self._broken = False
        self._descriptor = open_locked(self.path)
        try:
            torn = self._replay()
            self._repair_head()
            if torn:
                self._recover(torn)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file; nothing is left to write."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def reserve(
        self,
        *,
        run: str,
        round: int,  # noqa: A002 - the name that plans, noise and protocols use
        attempt: int,
        plan: Plan,
        private: bool,
        data_set: str | None,
        budget: Budget | None = None,
    ) -> Reservation:
        """Book a release at the plan's floor, before anything leaves.

        Args:
            run: Name of the run.
            round: Round number, from 0.
            attempt: Attempt at the round, from 0. Each is booked: what left once may have been seen.
            plan: What the release stands under.
            private: False when noise or protocol secrets come from a test seed.
            data_set: Fingerprint of the data; None in a server's ledger. All entries have the same.
            budget: Of the data set, over all runs. The plan's own budget limits the run in any case.

        Returns:
            What `commit` needs; it stays valid when the ledger is opened again.

        Raises:
            BudgetExceededError: the run's or the data set's budget does not allow it; nothing was booked.
            LedgerError: another data set's ledger, or it cannot be written.
        """
        for name, value in (("round", round), ("attempt", attempt)):
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 53:
                raise LedgerError(f"{self.path}: {name} = {value!r} is not a count")
        if not self._books.belongs(data_set):
            raise LedgerError(f"{self.path}: the ledger of data set {self._books.data_set}, not of {data_set}")
        self._check_budgets(run, plan, budget)
        if plan.hash not in self._books.plans:
            self._append({"kind": "plan", "plan": plan.hash, "body": plan.to_fields()})
        floor = plan.sites - plan.dropouts
        entry = self._append(
            {
                "kind": "reserve",
                "plan": plan.hash,
                "run": run,
                "round": round,
                "attempt": attempt,
                "data_set": data_set,
                "draws": plan.draws,
                "mu": plan.mu(floor),
                "sigma_eff": plan.sigma_effective(floor),
                "private": bool(private),
            }
        )
        return Reservation(entry.seq, entry.hash, run, round, attempt, plan)

    def commit(self, reservation: Reservation, *, survivors: Sequence[int], transcript: str) -> Entry:
        """Book the noise that the signed survivors gave, in place of the floor.

        Args:
            reservation: As `reserve` gave it.
            survivors: Ids of the sites in the sum.
            transcript: Hash of the secure aggregation's transcript, hex; empty without a protocol.

        Returns:
            The entry: ``epsilon`` is the run's so far, by route.

        Raises:
            PlanError: fewer survivors than the plan's floor; the reservation stands.
            LedgerError: no such reservation is open, or the ledger cannot be written.
        """
        reserved = self._books.pending.get(reservation.seq)
        if reserved is None or reserved.plan is None or reserved.hash != reservation.hash:
            raise LedgerError(
                f"{self.path}: round {reservation.round} of run {reservation.run!r} has no open reservation "
                f"{reservation.seq}"
            )
        plan = self._books.plans[reserved.plan]
        present = sorted(survivors)
        if len(set(present)) < len(present) or not all(0 <= site < 1 << 64 for site in present):
            raise LedgerError(f"{self.path}: survivors {present} are not distinct ids below 2**64")
        return self._append(
            {
                "kind": "commit",
                "plan": reserved.plan,
                "run": reserved.run,
                "round": reserved.round,
                "closes": reserved.seq,
                "survivors": present,
                "transcript": transcript,
                "mu": plan.mu(len(present)),
                "sigma_eff": plan.sigma_effective(len(present)),
                "private": reserved.private,
            }
        )

    def total(self, delta: float | None = None) -> LedgerTotal:
        """Compose everything.

        Args:
            delta: In (0, 1); by default the smallest of the plans.

        Raises:
            AccountingError: delta is out of range.
        """
        return self._books.total(delta)

    def _check_budgets(self, run: str, plan: Plan, budget: Budget | None) -> None:
        group, mu = (plan.unit, plan.relation), plan.mu(plan.sites - plan.dropouts)
        limits: list[tuple[Spend, Budget]] = [(self._books.runs.get(run, Spend()), plan.budget())]
        if budget is not None:
            limits.append((self._books.spend, budget))
        for spend, limit in limits:
            after = spend.plus(group, mu)
            before = spend.mu_squared(after.group)
            limit.check(before, after.mu_squared() - before)

    def _replay(self) -> bytes:
        data = read_all(self._descriptor, self.path)
        self._books, torn = _replay(self.path, data)
        self._end = len(data) - len(torn)
        return torn

    def _repair_head(self) -> None:
        file = head_path(self.path)
        head = read_head(file)
        hashes = self._books.hashes
        if head is None:
            if self._signer is not None and len(hashes) > 1:
                raise ChainError(f"{self.path}: {file} is missing, so nothing shows that the tail was not cut")
        elif self._signer is None:
            raise LedgerError(f"{self.path}: {file} is signed; appending needs its signer")
        else:
            check_head(head, hashes, ledger=self.path, head_file=file, behind=1)
            if head.key != self._signer.public_key().public_bytes_raw().hex():
                raise ChainError(f"{file}: signed by {head.key}, not by this signer")
        if hashes:
            self._write_head()

    def _recover(self, torn: bytes) -> None:
        plan, mu = self._books.floor()
        counts = plan is not None and torn_counts(torn)
        self._append(
            {
                "kind": "recovered",
                "plan": plan.hash if plan else None,
                "run": self._books.last_run,
                "draws": plan.draws if plan and counts else 0,
                "mu": mu if counts else 0.0,
                "private": True,
                "torn": torn_text(torn),
            }
        )

    def _append(self, fields: Mapping[str, Any]) -> Entry:
        if self._descriptor < 0 or self._broken or self._pid != os.getpid():
            why = "closed" if self._descriptor < 0 else "broken by a failed write" if self._broken else "its parent's"
            raise LedgerError(f"{self.path}: this ledger is {why}; open it again")
        hashes = self._books.hashes
        values = dict(fields) | {
            "seq": len(hashes),
            "prev": hashes[-1] if hashes else GENESIS,
            "versions": _versions(),
        }
        if values["kind"] != "plan":
            values |= self._epsilons(values)
        line = encode(values)
        entry = decode(line[:-1])
        self._broken = True  # until the line and the head are on the disk
        try:
            write_at(self._descriptor, line, self._end)
        except OSError as error:
            raise LedgerError(f"{self.path}: cannot be written: {error.strerror}") from error
        self._end += len(line)
        self._books.book(entry)
        self._write_head()
        self._broken = False
        return entry

    def _epsilons(self, values: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        plan = self._books.plans.get(values["plan"] or "")
        if plan is None:
            return {"epsilon": {}, "epsilon_total": {}}
        known = {name: value for name, value in values.items() if name in Entry.__dataclass_fields__}
        run, spend = self._books.after(Entry(hash="", **known))
        return {"epsilon": run.routes(plan.delta), "epsilon_total": spend.routes(plan.delta)}

    def _write_head(self) -> None:
        if self._signer is None:
            return
        hashes = self._books.hashes
        file = head_path(self.path)
        try:
            replace_file(file, sign_head(len(hashes) - 1, hashes[-1], self._signer))
        except OSError as error:
            raise LedgerError(f"{file}: cannot be written: {error.strerror}") from error


def verify(
    path: str | os.PathLike[str], *, heads: Iterable[str | os.PathLike[str]] = (), delta: float | None = None
) -> LedgerReport:
    """Check a ledger without changing it: chain, rules, every epsilon by both routes, and heads.

    Args:
        path: The ledger. Its own head is read where there is one.
        heads: More signed heads of it, kept by other parties.
        delta: Of the total; by default the smallest of its plans.

    Raises:
        ChainError: something was changed; the file and line are named.
        LedgerError: it cannot be read, or is being written.

    Guarantees:
        An edited, removed or reordered line is found; so is a cut tail or a fork, where a head tells of it.
    """
    path = Path(path)
    with locked(path) as descriptor:
        data = read_all(descriptor, path)
        own = read_head(head_path(path))
    books, torn = _replay(path, data, recompute=True)
    state = "missing"
    if own is not None:
        check_head(own, books.hashes, ledger=path, head_file=head_path(path), behind=1)
        state = "ok" if own.seq == len(books.hashes) - 1 else "behind"
    for file in map(Path, heads):
        head = read_head(file)
        if head is None:
            raise LedgerError(f"{file}: no such file")
        check_head(head, books.hashes, ledger=path, head_file=file, behind=len(books.hashes))
    return LedgerReport(path, len(books.hashes), sum(books.rounds.values()), books.total(delta), state, bool(torn))


def read_entries(path: str | os.PathLike[str]) -> list[Entry]:
    """Return the chained entries of a ledger, without the checks of `verify`.

    Raises:
        ChainError: the chain is broken; the file and line are named.
        LedgerError: it cannot be read.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise LedgerError(f"{path}: cannot be read: {error.strerror}") from error
    return list(entries(lines, path))


def _replay(path: Path, data: bytes, *, recompute: bool = False) -> tuple[Books, bytes]:
    *lines, torn = data.split(b"\n")
    books = Books(path)
    for entry in entries(lines, path):
        books.book(entry, recompute=recompute)
    if len(torn) > MAX_TORN:
        raise ChainError(f"{path}, line {len(lines) + 1}: {len(torn)} bytes that are no entry")
    return books, torn


@cache
def _versions() -> dict[str, str]:
    try:
        own = importlib.metadata.version("secagg")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        own = "unknown"
    return {"secagg": own, "python": platform.python_version()}
