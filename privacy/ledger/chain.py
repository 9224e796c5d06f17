"""The lines of a ledger: canonical JSON in a SHA-256 chain, read strictly.

One line is one entry (RFC 8785, newline at the end); ``prev`` is the SHA-256 of the line before it. Kinds:

* ``plan``: a plan, before its first use.
* ``reserve``: a release is about to leave; it counts at the plan's floor from now on.
* ``commit``: the sum was opened over these survivors; the reservation counts at their noise from now on.
* ``recovered``: an interrupted write was found at the end of the file and is kept here.

**A torn last line** (bytes after the last newline) was being written when the machine stopped. Canonical keys are
sorted, so its first bytes tell its kind: a commit or plan in the making counts nothing, since its reservation stands;
anything else, one byte included, counts as a reservation at the largest floor of the ledger's plans. The recovering
entry is written over it, in place: it is longer, and its newline is its last byte, so an interrupted recovery is a torn
line again.
"""

import base64
import hashlib
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import rfc8785

from privacy.errors import LedgerError, PlanError
from privacy.plan import Plan
from privacy.reading import unique_keys

GENESIS: Final = "0" * 64
MAX_ENTRY: Final = 1 << 18  # bytes of a line that is written; twelve thousand survivors fit
MAX_LINE: Final = 1 << 20  # bytes of a line that is read; the rest is room for base64 of interrupted writes

_VERSION: Final = 1
_HARMLESS_STARTS: Final = (b'{"body":', b'{"closes":')  # plan and commit
_MU_TOLERANCE: Final = 1e-12
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_WRITER: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


class ChainError(LedgerError):
    """Bytes that contradict the chain or a signed head: somebody changed them, or another program wrote them."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of a ledger.

    Attributes:
        seq: Its number, from 0.
        prev: SHA-256 of the line before, hex.
        kind: ``plan``, ``reserve``, ``commit`` or ``recovered``.
        hash: SHA-256 of this line, hex; not part of the line.
        plan: Hash of the plan it stands under; None for a recovery before any plan.
        run: Name of the run.
        round: Round number; reserve and commit.
        attempt: Attempt at the round; reserve.
        data_set: Fingerprint of the data; None for a server. Reserve.
        draws: Noise coordinates drawn; reserve and recovered.
        mu: Sensitivity over noise: at the floor (reserve), realised (commit), assumed (recovered).
        sigma_eff: Noise that is accounted, grid units; reserve and commit.
        sample_rate: Probability with which a record takes part; 1 where the line does not say.
        private: False when noise or protocol secrets came from a test seed.
        epsilon: Cumulative epsilon of the run at the plan's delta, by route.
        epsilon_total: The same over the whole ledger.
        closes: Number of the reservation; commit.
        survivors: Sites in the sum; commit.
        transcript: Hash of the secure aggregation's transcript, hex, empty without one; commit.
        body: The plan; plan.
        torn: What was found, base64; recovered.
        versions: Software that wrote the entry.
    """

    seq: int
    prev: str
    kind: str
    hash: str
    plan: str | None = None
    run: str = ""
    round: int = 0
    attempt: int = 0
    data_set: str | None = None
    draws: int = 0
    mu: float = 0.0
    sigma_eff: float = 0.0
    sample_rate: float = 1.0
    private: bool = True
    epsilon: Mapping[str, float] = field(default_factory=dict)
    epsilon_total: Mapping[str, float] = field(default_factory=dict)
    closes: int = 0
    survivors: tuple[int, ...] = ()
    transcript: str = ""
    body: Mapping[str, Any] = field(default_factory=dict)
    torn: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


_COMMON: Final = frozenset({"v", "seq", "prev", "kind", "plan", "versions"})
_SPENT: Final = frozenset({"run", "mu", "private", "epsilon", "epsilon_total"})
_REALS: Final = frozenset({"mu", "sigma_eff", "sample_rate"})
_OPTIONAL: Final = frozenset({"sample_rate"})  # of what is spent; left out where it is 1
_KEYS: Final[Mapping[str, frozenset[str]]] = {
    "plan": _COMMON | {"body"},
    "reserve": _COMMON | _SPENT | {"round", "attempt", "data_set", "draws", "sigma_eff"},
    "commit": _COMMON | _SPENT | {"round", "closes", "survivors", "transcript", "sigma_eff"},
    "recovered": _COMMON | _SPENT | {"draws", "torn"},
}


def _float(text: str) -> float:
    value = float(text)
    if "e" in text or "E" in text or text.endswith(".0"):  # what Python may write otherwise than RFC 8785
        _require_number(value, text)
    return value


def _integer(text: str) -> float:
    if len(text) < 16:
        return int(text)
    value = float(text)  # to every other JSON reader it is one
    _require_number(value, text)
    return int(text) if abs(value) < 1 << 53 else value


def _require_number(value: float, text: str) -> None:
    if not math.isfinite(value) or rfc8785.dumps(value).decode() != text:
        raise ValueError(f"{text[:80]} is not how RFC 8785 writes a number")


def is_count(value: object) -> bool:
    """Whether a JSON value is an integer from 0 that every JSON reader keeps exact."""
    return type(value) is int and 0 <= value < 1 << 53


def _is_real(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= sys.float_info.max  # type: ignore[operator]


def is_text(value: object) -> bool:
    """Whether a JSON value is a text of Unicode characters."""
    # A lone surrogate is a string to JSON and to Python, and no text that could be shown or written.
    return type(value) is str and (value.isascii() or _SURROGATE.search(value) is None)


def _is_texts(value: object) -> bool:
    # Of ASCII names it does not matter in which of Unicode's orders they are sorted.
    return type(value) is dict and all(name.isascii() and is_text(text) for name, text in value.items())


def _is_epsilon(value: object) -> bool:
    if type(value) is not dict:
        return False
    return value.keys() <= {"closed_form", "rdp"} and all(x is None or _is_real(x) for x in value.values())


def _matches(pattern: str) -> Callable[[object], bool]:
    compiled = re.compile(pattern)
    return lambda value: type(value) is str and compiled.fullmatch(value) is not None


def _is_survivors(value: object) -> bool:
    if type(value) is not list or not all(_is_id(each) and int(each) < 1 << 64 for each in value):
        return False
    return len(set(value)) == len(value)


def _is_body(value: object) -> bool:
    """Whether this has the shape of a plan: an object of plain values, and of objects of them."""
    return type(value) is dict and not any(
        type(inner) in (dict, list)
        for each in value.values()
        for inner in (each.values() if type(each) is dict else (each,))
    )


_READER: Final = json.JSONDecoder(object_pairs_hook=unique_keys, parse_float=_float, parse_int=_integer)
is_hash: Final = _matches("[0-9a-f]{64}")
_is_id: Final = _matches("0|[1-9][0-9]{0,19}")
_CHECKS: Final[Mapping[str, Callable[[object], bool]]] = {
    "v": lambda value: type(value) is int and value == _VERSION,
    "seq": is_count,
    "prev": is_hash,
    "kind": is_text,
    "plan": lambda value: value is None or is_hash(value),
    "versions": _is_texts,
    "run": is_text,
    "round": is_count,
    "attempt": is_count,
    "data_set": lambda value: value is None or is_text(value),
    "draws": is_count,
    "mu": _is_real,
    "sigma_eff": _is_real,
    "sample_rate": lambda value: type(value) is float and 0 < value < 1,
    "private": lambda value: type(value) is bool,
    "epsilon": _is_epsilon,
    "epsilon_total": _is_epsilon,
    "closes": is_count,
    "survivors": _is_survivors,
    "transcript": _matches("([0-9a-f]{2}){0,64}"),
    "body": _is_body,
    "torn": _matches("[A-Za-z0-9+/]*={0,2}"),
}


def encode(fields: Mapping[str, Any]) -> bytes:
    """Return the canonical line of an entry, newline included."""
    values = {"v": _VERSION} | dict(fields)
    for name in ("epsilon", "epsilon_total"):
        if name in values:  # JSON has no infinity
            values[name] = {route: x if math.isfinite(x) else None for route, x in values[name].items()}
    if values.get("sample_rate") == 1:
        del values["sample_rate"]
    if "survivors" in values:  # ids go to 2**64, JSON numbers to 2**53
        values["survivors"] = [str(site) for site in values["survivors"]]
    return rfc8785.dumps(values) + b"\n"


def decode(line: bytes) -> Entry:
    """Read one line, without its newline.

    Raises:
        ChainError: not canonical JSON, a key missing, unknown or given twice, or a value of the wrong kind; the key is
            named.

    Guarantees:
        One entry has one line: no other bytes are read as the same values.
    """
    values = _parse(line)
    kind = values.get("kind") if isinstance(values, dict) else None
    if not isinstance(kind, str) or kind not in _KEYS:
        raise ChainError("not an entry: its kind is unknown")
    optional = frozenset() if kind == "plan" else _OPTIONAL
    if values.keys() - optional != _KEYS[kind]:
        wrong = (values.keys() - optional) ^ _KEYS[kind]
        raise ChainError(f"keys missing or unknown: {_short(', '.join(sorted(wrong)))}")
    for name, value in values.items():
        if not _CHECKS[name](value):
            raise ChainError(f"{name} = {_short(value)} is not what it must be")
    if not _is_canonical(values, line):
        raise ChainError("not canonical JSON: its bytes are not those that RFC 8785 gives to its values")
    del values["v"]
    for name in ("epsilon", "epsilon_total"):
        if name in values:
            values[name] = {route: math.inf if x is None else float(x) for route, x in values[name].items()}
    for name in _REALS & values.keys():
        values[name] = float(values[name])
    if "survivors" in values:
        values["survivors"] = tuple(int(site) for site in values["survivors"])
    return Entry(hash=hashlib.sha256(line).hexdigest(), **values)


def _parse(line: bytes) -> Any:  # noqa: ANN401 - any JSON value
    try:
        return _READER.decode(line.decode())
    except ValueError as error:
        raise ChainError(f"not JSON: {error}") from error
    except RecursionError:
        raise ChainError("not an entry: it is nested too deeply") from None


def _is_canonical(values: Mapping[str, Any], line: bytes) -> bool:
    """Whether a line is what RFC 8785 makes of its values, found by Python's quicker writer where both agree.

    They differ in numbers alone, which were looked at when they were read.
    """
    try:
        return _WRITER.encode(values).encode() == line or rfc8785.dumps(values) == line
    except (ValueError, RecursionError):
        return False


def plain(text: str, most: int = 400) -> str:
    """What an error may say of bytes from a file: one line that a terminal can print, and not endless."""
    words = text if text.isprintable() else ascii(text)
    return words if len(words) <= most else f"{words[:most]}..."


def _short(value: object) -> str:
    try:
        return plain(ascii(value), 80)
    except RecursionError:
        return "something nested"


def entries(lines: Iterable[bytes], path: Path) -> Iterator[Entry]:
    """Yield the chained entries of whole lines.

    Raises:
        ChainError: a line is not an entry, or does not follow the one before; the file and line are named.
    """
    prev = GENESIS
    for number, line in enumerate(lines):
        try:
            entry = decode(line)
            if entry.seq != number:
                raise ChainError(f"seq is {entry.seq}, and {number} belongs here")  # noqa: TRY301 - one place adds the line
            if entry.prev != prev:
                raise ChainError("the chain is broken: prev is not the hash of the line before")  # noqa: TRY301 - likewise
        except ChainError as error:
            raise ChainError(f"{path}, line {number + 1}: {error}") from error
        yield entry
        prev = entry.hash


def torn_counts(torn: bytes) -> bool:
    """Whether an interrupted write counts as a reservation; see the module's text."""
    return not torn.startswith(_HARMLESS_STARTS)


def torn_text(torn: bytes) -> str:
    """Return the evidence as base64 text."""
    return base64.b64encode(torn).decode()


def matching_mu(entry: Entry, plan: Plan) -> bool:
    """Whether an entry's rate, mu and noise are those of its plan, for its survivors or the floor."""
    if entry.sample_rate != plan.sample_rate:
        return False
    survivors = len(entry.survivors) if entry.kind == "commit" else plan.sites - plan.dropouts
    try:
        sigma, mu = plan.sigma_effective(survivors), plan.mu(survivors)
    except PlanError:
        return False
    return math.isclose(entry.sigma_eff, sigma, rel_tol=_MU_TOLERANCE) and math.isclose(
        entry.mu, mu, rel_tol=_MU_TOLERANCE
    )
