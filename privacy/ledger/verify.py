"""Checks a ledger without changing it: bytes, chain, rules, every epsilon by both routes, and everybody's signed heads."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from privacy.errors import LedgerError
from privacy.ledger.chain import ChainError, Entry, entries
from privacy.ledger.head import Head, Heads, check_head, head_path, read_heads
from privacy.ledger.recompute import check_claims
from privacy.ledger.replay import Books
from privacy.ledger.spend import LedgerTotal
from privacy.ledger.storage import Lines, locked, opened


@dataclass(frozen=True)
class Signature:
    """A signed head that lies on the chain.

    Attributes:
        party: Whose, as its file says; empty for a file of one head and no pinned key.
        file: Where it stands.
        seq: Entry that it signs, and so everything before.
        key: Ed25519 public key, hex.
        pinned: Whether the key was given for this party; otherwise anybody may have made it.
    """

    party: str
    file: Path
    seq: int
    key: str
    pinned: bool


@dataclass(frozen=True)
class LedgerReport:
    """What `verify` found in order.

    Attributes:
        path: The ledger.
        entries: Whole lines.
        rounds: Commits.
        total: Everything, composed.
        head: The writer's: ``ok``; ``behind`` by one entry, as a crash leaves it; or ``missing``, so that a cut tail
            cannot be seen.
        torn: Whether an interrupted write stands at the end; it is not in the total before it is recovered.
        data_set: Fingerprint of the data; None for a server's ledger, or an empty one.
        unbound: Commits that claim to be private and name no secure-aggregation transcript.
        signatures: Every head that was checked.
    """

    path: Path
    entries: int
    rounds: int
    total: LedgerTotal
    head: str
    torn: bool
    data_set: str | None
    unbound: int
    signatures: tuple[Signature, ...]


@dataclass(frozen=True)
class _Told:
    party: str
    head: Head
    file: Path
    behind: int | None


def verify(
    path: str | os.PathLike[str],
    *,
    heads: Iterable[str | os.PathLike[str]] = (),
    keys: Mapping[str, str] | None = None,
    delta: float | None = None,
) -> LedgerReport:
    """Check a ledger without changing it: chain, rules, every epsilon by both routes, and heads.

    Args:
        path: The ledger. Its own heads file is read where there is one.
        heads: More signed heads of it, kept by other parties: files of one head or of several.
        keys: Ed25519 public keys by party, hex. Where any are given, every head must be signed by its party's, and
            each of these parties must have signed.
        delta: Of the total; by default the smallest of its plans.

    Raises:
        ChainError: something was changed; the file and line are named.
        LedgerError: it cannot be read, or is being written.

    Guarantees:
        An edited, removed, reordered or doubled line is found; so is a cut tail or a fork, where a head tells of it.
        With keys, nobody else's signature counts.
    """
    return examine(path, heads=heads, keys=keys, delta=delta)[0]


def examine(
    path: str | os.PathLike[str],
    *,
    heads: Iterable[str | os.PathLike[str]] = (),
    keys: Mapping[str, str] | None = None,
    delta: float | None = None,
) -> tuple[LedgerReport, Books]:
    """As `verify`, and return what the entries led to as well."""
    path = Path(path)
    books = Books(path, keep_claims=True)
    with locked(path) as descriptor:
        lines = Lines(descriptor, path)
        for entry in entries(lines, path):
            books.book(entry)
        own = read_heads(head_path(path))
    check_claims(books.claims, path)
    told = list(_own(own, head_path(path), len(books.hashes)))
    for file in map(Path, heads):
        found = read_heads(file)
        if found is None:
            raise LedgerError(f"{file}: no such file")
        told += _others(found, file)
    signatures = _check(told, books, path, keys or {})
    state = "missing"
    if own is not None:
        state = "ok" if own.heads[own.writer].seq == len(books.hashes) - 1 else "behind"
    report = LedgerReport(
        path=path,
        entries=len(books.hashes),
        rounds=sum(books.rounds.values()),
        total=books.total(delta),
        head=state,
        torn=bool(lines.torn),
        data_set=books.data_set,
        unbound=books.unbound,
        signatures=signatures,
    )
    return report, books


def read_entries(path: str | os.PathLike[str]) -> list[Entry]:
    """Return the chained entries of a ledger, without the checks of `verify`; an interrupted write is left out.

    Raises:
        ChainError: the chain is broken; the file and line are named.
        LedgerError: it cannot be read.
    """
    path = Path(path)
    with opened(path) as descriptor:
        return list(entries(Lines(descriptor, path), path))


def _own(found: Heads | None, file: Path, count: int) -> Iterable[_Told]:
    if found is not None:
        for party, head in found.heads.items():
            yield _Told(party, head, file, 1 if party == found.writer else count)


def _others(found: Heads, file: Path) -> Iterable[_Told]:
    for party, head in found.heads.items():
        yield _Told(party, head, file, None)


def _check(told: list[_Told], books: Books, ledger: Path, keys: Mapping[str, str]) -> tuple[Signature, ...]:
    """Check heads against each other, the chain, and the keys that are known."""
    names = {key: party for party, key in keys.items()}
    at: dict[int, _Told] = {}
    result = []
    for each in told:
        other = at.setdefault(each.head.seq, each)
        if other.head.hash != each.head.hash:
            raise ChainError(
                f"{ledger}, line {each.head.seq + 1}: a fork: {_source(other)} and {_source(each)} sign different "
                "entries here"
            )
    for each in told:
        behind = len(books.hashes) if each.behind is None else each.behind
        check_head(each.head, books.hashes, ledger=ledger, source=_source(each), behind=behind)
        party = names.get(each.head.key)
        if keys and party is None:
            raise ChainError(f"{_source(each)}: signed by {each.head.key}, which is none of the pinned keys")
        if each.party in keys and keys[each.party] != each.head.key:
            raise ChainError(f"{_source(each)}: signed with the key of {party}")
        result.append(Signature(party or each.party, each.file, each.head.seq, each.head.key, party is not None))
    for party in keys:
        if not any(signature.pinned and signature.party == party for signature in result):
            raise ChainError(f"{ledger}: {party}, whose key is pinned, has signed no head of it")
    return tuple(result)


def _source(told: _Told) -> str:
    return f"{told.file} ({told.party})"
