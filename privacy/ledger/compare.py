"""Two parties' ledgers of one run, or two copies of one ledger: what agrees, and where they part.

Parties' ledgers have different chains: a site's goes on over many runs, the server's holds one. What they must share is
what the protocol settled between them: for every sum the plan, the survivors, the transcript, the noise that counts, and
whether it was private. A release that only one of them has closed is no contradiction: a site that fell silent keeps a
reservation, and so does a server that stopped.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from privacy.errors import LedgerError
from privacy.ledger.chain import ChainError, Entry, entries
from privacy.ledger.head import Head, Signer, check_head, parse_heads, sign_head
from privacy.ledger.recompute import check_claims
from privacy.ledger.replay import Books
from privacy.ledger.verify import read_entries, verify

_SETTLED: Final = ("plan", "survivors", "transcript", "sigma_eff", "private")


@dataclass(frozen=True)
class Finding:
    """One thing on which two ledgers part.

    Attributes:
        run: Its name.
        round: Its number; the first line that differs, from 1, for two copies of one ledger.
        field: ``plan``, ``survivors``, ``transcript``, ``sigma_eff``, ``private``, ``release``, ``commit`` or ``line``.
        first: What the first ledger says.
        second: What the second says.
        contradiction: False where both may be right, as after a dropout or a crash.
    """

    run: str
    round: int
    field: str
    first: str
    second: str
    contradiction: bool


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        first: A ledger.
        second: Another.
        copies: Whether they are copies of one ledger.
        runs: Runs that both have.
        agree: Sums on which both agree in everything that was settled; whole lines, for copies.
        findings: In the order of runs and rounds, contradictions or not.
    """

    first: Path
    second: Path
    copies: bool
    runs: tuple[str, ...]
    agree: int
    findings: tuple[Finding, ...]

    @property
    def contradictions(self) -> tuple[Finding, ...]:
        """What cannot both be right."""
        return tuple(each for each in self.findings if each.contradiction)


@dataclass(frozen=True)
class _Release:
    reserved: Entry
    commit: Entry | None


def compare(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str],
    *,
    run: str | None = None,
    site: int | None = None,
) -> Comparison:
    """Hold two ledgers against each other.

    Args:
        first: A site's, the server's, or a copy; it is verified.
        second: Another one.
        run: Only this run; by default all that both have.
        site: Client id of the site whose ledger one of them is, so that a sum which counts it must be in its ledger.

    Raises:
        ChainError: one of them was changed; the file and line are named.
        LedgerError: one cannot be read, or they have no run in common.
    """
    paths = Path(first), Path(second)
    for path in paths:
        verify(path)
    left, right = (read_entries(path) for path in paths)
    sides = _releases(left), _releases(right)
    shared = [name for name in sides[0] if name in sides[1] and run in (None, name)]
    if not shared:
        wanted = "no run in common" if run is None else f"run {run!r} is not in both"
        raise LedgerError(f"{paths[0]} and {paths[1]}: {wanted}")
    owners = _owner(left), _owner(right)
    if owners[0] == owners[1]:
        agree, findings = _copies(left, right)
        return Comparison(*paths, copies=True, runs=tuple(shared), agree=agree, findings=tuple(findings))
    agree, findings = 0, []
    for name in shared:
        told = _Told(name, sides[0][name], sides[1][name], (owners[0] is None, owners[1] is None), site)
        findings += told.findings()
        agree += told.agree
    return Comparison(*paths, copies=False, runs=tuple(shared), agree=agree, findings=tuple(findings))


def witness(
    lines: bytes,
    own: Iterable[Entry],
    *,
    run: str,
    site: int,
    signer: Signer,
    after: bytes | None = None,
) -> bytes:
    """Sign another party's ledger of a run, as one of the run's sites, after holding it against one's own.

    Args:
        lines: The server's ledger of the run, as it handed it over.
        own: Entries of the site's own ledger.
        run: Name of the run.
        site: The site's client id.
        signer: The site's key.
        after: The head that the site signed last, so that what it agreed to cannot be taken back.

    Returns:
        The head, for `Ledger.countersign` and to keep.

    Raises:
        ChainError: the ledger is broken, forks from what was signed before, or contradicts the site's own; the round
            and field are named.
        LedgerError: it has no entries.
    """
    source = Path("the ledger that was handed over")
    books, told = Books(source, keep_claims=True), []
    for entry in entries(lines.split(b"\n")[:-1], source):
        books.book(entry)
        told.append(entry)
    if not told:
        raise LedgerError(f"{source}: it has no entries to sign")
    check_claims(books.claims, source)
    if after is not None:
        head: Head = next(iter(parse_heads(after, "the head that was signed last").heads.values()))
        check_head(head, books.hashes, ledger=source, source="the head that was signed last", behind=len(told))
    pair = _Told(run, _releases(told).get(run, {}), _releases(own).get(run, {}), (True, False), site, current=True)
    for finding in pair.findings():
        if finding.contradiction:
            raise ChainError(
                f"{source}: run {run!r}, round {finding.round}: {finding.field} is {finding.first}, and this site's "
                f"own ledger says {finding.second}"
            )
    return sign_head(len(told) - 1, books.hashes[-1], signer).to_json()


class _Told:
    """What two ledgers tell of one run."""

    def __init__(
        self,
        run: str,
        first: Mapping[int, list[_Release]],
        second: Mapping[int, list[_Release]],
        servers: tuple[bool, bool],
        site: int | None,
        *,
        current: bool = False,  # the server's ledger is of now, so that nothing of it is still to come
    ) -> None:
        self.run = run
        self._current = current
        self._latest = [
            max(((number, each.reserved.attempt) for number, told in side.items() for each in told), default=(-1, -1))
            for side in (first, second)
        ]
        self.agree = 0
        self._sides = first, second
        self._servers = servers
        self._site = site

    def findings(self) -> list[Finding]:
        first, second = self._sides
        return [found for round in sorted(first.keys() | second.keys()) for found in self._round(round)]  # noqa: A001 - as in the entries

    def _round(self, round: int) -> Iterable[Finding]:  # noqa: A002 - as above
        sides = tuple(side.get(round, []) for side in self._sides)
        for index in (0, 1):
            if not sides[index]:
                yield self._absent(round, index, sides[1 - index])
                return
        attempts = sorted({each.reserved.attempt for side in sides for each in side})
        told: list[dict[int, list[_Release]]] = [{attempt: [] for attempt in attempts} for _ in sides]
        for side, by_attempt in zip(sides, told, strict=True):
            for each in side:
                by_attempt[each.reserved.attempt].append(each)
        for attempt in attempts:
            yield from self._attempt(round, told[0][attempt], told[1][attempt])

    def _attempt(self, round: int, left: list[_Release], right: list[_Release]) -> Iterable[Finding]:  # noqa: A002 - as above
        """Every attempt is booked by whoever sent and, before that, by the server: so they are held against each other one by one."""
        pairs, alone = _pair(left, right)
        seen = [-1, -1]  # last entry of either ledger that the other one has closed with the same transcript
        for one, other in pairs:
            if one.commit and other.commit:
                if one.commit.transcript == other.commit.transcript:
                    seen = [max(seen[0], one.reserved.seq), max(seen[1], other.reserved.seq)]
                yield from self._settled(round, one.commit, other.commit)
                continue
            for name in ("plan", "private"):
                said = [getattr(each.reserved, name) for each in (one, other)]
                if said[0] != said[1]:
                    yield Finding(self.run, round, name, _say(said[0]), _say(said[1]), contradiction=True)
            for index, commit in enumerate((one.commit, other.commit)):
                if commit:
                    yield self._only(round, index, commit)
        for index in (0, 1):
            for each in alone[index]:
                yield from self._unknown(round, index, each, before=seen[index])

    def _unknown(self, round: int, index: int, release: _Release, *, before: int) -> Iterable[Finding]:  # noqa: A002 - as above
        """One side has a release more of an attempt than the other; ``before``: the last one that the other side knows."""
        attempt = release.reserved.attempt
        if self._servers[1 - index]:
            wrong = self._current or self._latest[1 - index] > (round, attempt) or release.reserved.seq < before
        elif release.commit is None:  # of an attempt that the site kept out of
            return
        else:
            wrong = self._site in release.commit.survivors
        yield self._finding(round, "release", [f"a release in attempt {attempt}", "none"], index, contradiction=wrong)

    def _settled(self, round: int, first: Entry, second: Entry) -> Iterable[Finding]:  # noqa: A002 - as above
        told = [{name: getattr(entry, name) for name in _SETTLED} for entry in (first, second)]
        told = [values | {"survivors": tuple(sorted(values["survivors"]))} for values in told]
        same = told[0] == told[1]
        self.agree += same
        for name in _SETTLED:
            if told[0][name] != told[1][name]:
                yield Finding(self.run, round, name, _say(told[0][name]), _say(told[1][name]), contradiction=True)

    def _only(self, round: int, index: int, commit: Entry) -> Finding:  # noqa: A002 - as above
        said = [f"a sum over {_say(commit.survivors)}", "an open reservation, at the floor"]
        return self._finding(round, "commit", said, index, contradiction=False)

    def _absent(self, round: int, index: int, others: Sequence[_Release]) -> Finding:  # noqa: A002 - as above
        """One side has nothing of a round.

        The server reserves before anybody sends, so a release that it does not know is one that it dropped, unless its
        ledger is of an earlier time; and a site that is in a sum has sent.
        """
        if self._servers[index]:
            wrong = self._current or self._latest[index] > (round + 1, -1)  # a later round
        else:
            commits = [each.commit for each in others if each.commit]
            wrong = self._site is not None and any(self._site in commit.survivors for commit in commits)
        released = f"{len(others)} releases" if len(others) > 1 else "a release"
        return self._finding(round, "release", [released, "none"], 1 - index, contradiction=wrong)

    def _finding(self, round: int, field: str, said: list[str], index: int, *, contradiction: bool) -> Finding:  # noqa: A002 - as above
        first, second = said if index == 0 else reversed(said)
        return Finding(self.run, round, field, first, second, contradiction)


def _pair(
    left: Sequence[_Release], right: Sequence[_Release]
) -> tuple[list[tuple[_Release, _Release]], tuple[list[_Release], list[_Release]]]:
    """Releases of one attempt that are the same, by transcript where there is one; and those that only one side has.

    There is more than one where a server stopped and took the round up again.
    """
    waiting: dict[str, list[_Release]] = {}
    for each in reversed(right):
        if each.commit:
            waiting.setdefault(each.commit.transcript, []).append(each)
    pairs, rest, taken = [], [], set()
    for each in left:
        same = waiting.get(each.commit.transcript) if each.commit else None
        if same:
            taken.add(same[-1].reserved.seq)
            pairs.append((each, same.pop()))
        else:
            rest.append(each)
    # What one attempt settled, it settled for everybody: two transcripts of it cannot both be right. So commits go first.
    mine = sorted(rest, key=lambda each: each.commit is None)
    theirs = sorted((each for each in right if each.reserved.seq not in taken), key=lambda each: each.commit is None)
    both = min(len(mine), len(theirs))
    return pairs + list(zip(mine[:both], theirs[:both], strict=True)), (mine[both:], theirs[both:])


def _releases(told: Iterable[Entry]) -> dict[str, dict[int, list[_Release]]]:
    """Releases by run and round, in the order of the ledger."""
    commits: dict[int, Entry] = {}
    reserved: list[Entry] = []
    for entry in told:
        if entry.kind == "commit":
            commits[entry.closes] = entry
        elif entry.kind == "reserve":
            reserved.append(entry)
    result: dict[str, dict[int, list[_Release]]] = {}
    for entry in reserved:
        result.setdefault(entry.run, {}).setdefault(entry.round, []).append(_Release(entry, commits.get(entry.seq)))
    return result


def _owner(told: Iterable[Entry]) -> str | None:
    """The data set whose ledger it is; None for a server's."""
    return next((entry.data_set for entry in told if entry.kind == "reserve"), None)


def _copies(left: list[Entry], right: list[Entry]) -> tuple[int, list[Finding]]:
    agree = 0
    for one, other in zip(left, right, strict=False):
        if one.hash != other.hash:
            said = (f"{one.kind} {one.hash[:16]}", f"{other.kind} {other.hash[:16]}")
            return agree, [Finding(one.run or other.run, agree + 1, "line", *said, contradiction=True)]
        agree += 1
    if len(left) == len(right):
        return agree, []
    said = (f"{len(left)} entries", f"{len(right)} entries")
    return agree, [Finding("", agree + 1, "line", *said, contradiction=False)]


def _say(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "nobody"
    if isinstance(value, bool):
        return "private" if value else "not private"
    return str(value) or "none"
