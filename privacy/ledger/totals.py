"""Several ledgers at once: each by itself, and what those of one data set come to together."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from privacy.errors import LedgerError
from privacy.ledger.chain import ChainError
from privacy.ledger.replay import Books
from privacy.ledger.spend import LedgerTotal
from privacy.ledger.storage import Lines, opened
from privacy.ledger.verify import LedgerReport, examine

RUN_LEDGER = "ledger.jsonl"  # in a run folder, beside other JSON lines


@dataclass(frozen=True)
class DataSetTotal:
    """What one data set spent.

    Attributes:
        data_set: Its fingerprint; None for a server's ledger, which speaks of one run and not of one data set.
        reports: Of each ledger, as `verify` gives them.
        copies: Ledgers that are the beginning of another one of these, and so add nothing.
        total: All the others composed.
    """

    data_set: str | None
    reports: tuple[LedgerReport, ...]
    copies: tuple[Path, ...]
    total: LedgerTotal


def ledgers_in(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the ledgers that paths name: files, run folders, or folders of ``*.jsonl``.

    Raises:
        LedgerError: a folder has none, or cannot be read.
    """
    result: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            result.append(path)
            continue
        try:
            found = sorted(each for each in path.iterdir() if each.suffix == ".jsonl")
        except OSError as error:
            raise LedgerError(f"{path}: cannot be read: {error.strerror}") from error
        own = path / RUN_LEDGER
        if not found:
            raise LedgerError(f"{path}: no ledger in this folder")
        result += [each for each in found if each == own or own not in found or not _is_other(each)]
    return result


def _is_other(path: Path) -> bool:
    """Whether a file beside a run's ledger is certainly no ledger: its first line is an object that is no chain's."""
    try:
        with opened(path) as descriptor:
            first = json.loads(next(iter(Lines(descriptor, path)), b""))
    except (LedgerError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and not {"prev", "seq", "kind"} & first.keys()


def total_of(paths: Iterable[str | os.PathLike[str]], *, delta: float | None = None) -> list[DataSetTotal]:
    """Verify ledgers, and add up those of one data set.

    Args:
        paths: Files, run folders, or folders of ledgers; a path that is named twice counts once.
        delta: Of every total; by default the smallest of all their plans.

    Returns:
        By data set, in the order of the paths; each server's ledger by itself.

    Raises:
        ChainError: a ledger was changed, or two copies of one part: a fork; file and line are named.
        LedgerError: one cannot be read.

    Guarantees:
        A ledger and a copy of its beginning count once.
    """
    files = list({path.resolve(): path for path in ledgers_in(paths)}.values())
    examined = [examine(path, delta=delta) for path in files]
    if delta is None:
        delta = min(report.total.delta for report, _ in examined) if examined else None
    groups: dict[str, list[tuple[LedgerReport, Books]]] = {}
    for report, books in examined:
        name = f"server {report.path}" if report.data_set is None else f"data set {report.data_set}"
        groups.setdefault(name, []).append((report, books))
    return [_together(group, delta) for group in groups.values()]


def _together(group: Sequence[tuple[LedgerReport, Books]], delta: float | None) -> DataSetTotal:
    kept: list[Books] = []
    copies: list[Path] = []
    for _, books in sorted(group, key=lambda each: -len(each[1].hashes)):
        if any(_is_start(books, longer) for longer in kept):
            copies.append(books.path)
        else:
            kept.append(books)
    whole = kept[0]
    for other in kept[1:]:
        whole = whole.merged(other)
    first = group[0][0]
    return DataSetTotal(first.data_set, tuple(report for report, _ in group), tuple(copies), whole.total(delta))


def _is_start(books: Books, longer: Books) -> bool:
    """Whether one ledger is the beginning of another.

    Raises:
        ChainError: they share releases and part.
    """
    pairs = zip(books.hashes, longer.hashes, strict=False)
    same = next((line for line, (one, other) in enumerate(pairs) if one != other), len(books.hashes))
    if same == len(books.hashes):
        return True
    if same > books.first_release:
        raise ChainError(f"{books.path}, line {same + 1}: a fork: {longer.path} has another entry here")
    return False
