"""A ledger of what was released about one data set: reserve, then send, then commit.

The budget belongs to the data, and whoever holds the data enforces it: a site keeps one ledger for each data set, to
which every run appends. From `Ledger.reserve` on, a release counts as made, at the plan's floor; `Ledger.commit` books
the noise that the signed survivors really gave. Whatever happens in between, a crash included, leaves the reservation.

Every append is one write, flushed to the disk before the call returns; the head follows it, so it may be one entry
behind after a crash, which opening repairs. The file is locked while a `Ledger` is open.

The claims are of computational differential privacy, against whoever sees the sums.
"""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from privacy.budget import Budget
from privacy.errors import BudgetExceededError, LedgerError
from privacy.ledger.chain import GENESIS, MAX_ENTRY, ChainError, Entry, decode, encode, entries, torn_counts, torn_text
from privacy.ledger.head import (
    WRITER,
    Heads,
    Signer,
    check_head,
    head_path,
    is_party,
    parse_heads,
    public_hex,
    read_heads,
    sign_head,
)
from privacy.ledger.limits import check_budget, check_run, lifetime
from privacy.ledger.replay import Books
from privacy.ledger.spend import LedgerTotal, Spend
from privacy.ledger.storage import Lines, open_locked, replace_file, write_at
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


class Ledger:
    """An open ledger; a context manager.

    Args:
        path: The file; made if it is not there.
        signer: Signs the head after each append. Without one there is no head, and a cut tail cannot be seen.
        party: Who writes it, as the heads file names its writer.

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

    def __init__(self, path: str | os.PathLike[str], *, signer: Signer | None = None, party: str = WRITER) -> None:
        self.path = Path(path)
        if not is_party(party):
            raise LedgerError(f"{self.path}: party = {party!r} is no name that can be printed")
        self._signer = signer
        self._heads = Heads({}, party)
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
        self._check_budgets(run, plan, budget, data_set)
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
                "sample_rate": plan.sample_rate,
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
                "sample_rate": plan.sample_rate,
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

    def countersign(self, party: str, head: bytes, *, key: str) -> None:
        """Keep another party's signed head of this ledger beside the writer's.

        Args:
            party: Its name.
            head: What `privacy.ledger.witness` gave it.
            key: Its Ed25519 public key, hex, as the writer knows it from elsewhere.

        Raises:
            ChainError: another key's, or not on this ledger's chain: a fork.
            LedgerError: the name is the writer's, the head is older than one that is kept, or it cannot be written.

        Guarantees:
            Appends keep it: it says up to where that party agreed.
        """
        self._require_usable()
        if not is_party(party) or party == self._heads.writer or self._signer is None:
            raise LedgerError(f"{self.path}: {party!r} cannot sign beside the writer {self._heads.writer!r}")
        given = parse_heads(head, f"{self.path}: the head of {party}").heads
        told = given.get(WRITER)
        if told is None or len(given) > 1:
            raise ChainError(f"{self.path}: the head of {party} is a file of several")
        if told.key != key:
            raise ChainError(f"{self.path}: the head of {party} is signed by {told.key}, and its key is {key}")
        if any(other.key == key for name, other in self._heads.heads.items() if name != party):
            raise ChainError(f"{self.path}: the key of {party} signs for somebody else")
        hashes = self._books.hashes
        check_head(told, hashes, ledger=self.path, source=f"the head of {party}", behind=len(hashes))
        kept = self._heads.heads.get(party)
        if kept is not None and (kept.key != key or kept.seq > told.seq):
            raise LedgerError(f"{self.path}: {party} has signed entry {kept.seq} with {kept.key}; this head is older")
        self._heads = self._heads.plus(party, told)
        self._write_head()

    def _check_budgets(self, run: str, plan: Plan, budget: Budget | None, data_set: str | None) -> None:
        what = f"run {run!r} under its plan"
        try:
            check_run(plan, self._books.runs.get(run, Spend()))
            if budget is not None:
                what = f"data set {data_set} over all its runs"
                first = next(iter(self._books.plans.values()), plan)
                check_budget(lifetime(budget, first), plan, self._books.spend)
        except BudgetExceededError as error:
            raise BudgetExceededError(f"{self.path}: {what}: {error}") from error

    def _replay(self) -> bytes:
        self._books = Books(self.path)
        lines = Lines(self._descriptor, self.path)
        for entry in entries(lines, self.path):
            self._books.book(entry)
        self._end = lines.end
        return lines.torn

    def _repair_head(self) -> None:
        file = head_path(self.path)
        found = read_heads(file)
        hashes = self._books.hashes
        if found is None:
            if self._signer is not None and len(hashes) > 1:
                raise ChainError(f"{self.path}: {file} is missing, so nothing shows that the tail was not cut")
        elif self._signer is None:
            raise LedgerError(f"{self.path}: {file} is signed; appending needs its signer")
        else:
            self._take_heads(found, file, self._signer)
        if hashes:
            self._write_head()

    def _take_heads(self, found: Heads, file: Path, signer: Signer) -> None:
        hashes = self._books.hashes
        for party, head in found.heads.items():
            behind = 1 if party == found.writer else len(hashes)
            check_head(head, hashes, ledger=self.path, source=f"{file} ({party})", behind=behind)
        own, key = found.heads[found.writer], public_hex(signer)
        if own.key != key:
            raise ChainError(f"{file}: signed by {own.key}, not by this signer")
        named = self._heads.writer
        if found.writer not in (named, WRITER):
            raise LedgerError(f"{file}: {found.writer!r} writes this ledger, not {named!r}")
        others = {party: head for party, head in found.heads.items() if party not in (found.writer, named)}
        self._heads = Heads({**others, named: own}, named)

    def _recover(self, torn: bytes) -> None:
        plan, (mu, rate) = self._books.floor()
        counts = plan is not None and torn_counts(torn)
        self._append(
            {
                "kind": "recovered",
                "plan": plan.hash if plan else None,
                "run": self._books.last_run,
                "draws": plan.draws if plan and counts else 0,
                "mu": mu if counts else 0.0,
                "sample_rate": rate,
                "private": True,
                "torn": torn_text(torn),
            }
        )

    def _append(self, fields: Mapping[str, Any]) -> Entry:
        self._require_usable()
        hashes = self._books.hashes
        values = dict(fields) | {
            "seq": len(hashes),
            "prev": hashes[-1] if hashes else GENESIS,
            "versions": _versions(),
        }
        if values["kind"] != "plan":
            values |= self._epsilons(values)
        line = encode(values)
        if len(line) > MAX_ENTRY and values["kind"] != "recovered":
            raise LedgerError(f"{self.path}: an entry of {len(line)} bytes is longer than {MAX_ENTRY}")
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

    def _require_usable(self) -> None:
        if self._descriptor < 0 or self._broken or self._pid != os.getpid():
            why = "closed" if self._descriptor < 0 else "broken by a failed write" if self._broken else "its parent's"
            raise LedgerError(f"{self.path}: this ledger is {why}; open it again")

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
        self._heads = self._heads.plus(self._heads.writer, sign_head(len(hashes) - 1, hashes[-1], self._signer))
        try:
            replace_file(file, self._heads.to_json())
        except OSError as error:
            raise LedgerError(f"{file}: cannot be written: {error.strerror}") from error


@cache
def _versions() -> dict[str, str]:
    from importlib import metadata  # noqa: PLC0415 - it brings the e-mail package along

    try:
        own = metadata.version("secagg")
    except metadata.PackageNotFoundError:  # run from a checkout
        own = "unknown"
    return {"secagg": own, "python": platform.python_version()}
