"""The rows about a ledger as a file: what a long one costs, and whether it was changed."""

import collections
import hashlib
import json
import sys

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy import Ledger, verify
from privacy.ledger import chain, read_entries, witness
from privacy.ledger.chain import ChainError
from privacy.ledger.head import head_path

SERVER, SITE = (Ed25519PrivateKey.from_private_bytes(bytes([at]) * 32) for at in (1, 2))


def book(path, plan, rounds, reserve, *, survivors=(0, 1, 2), signer=SERVER):
    """A ledger of some rounds; its lines."""
    with Ledger(path, signer=signer) as ledger:
        for number in range(rounds):
            ledger.commit(reserve(ledger, number, plan), survivors=survivors, transcript="ab")
    return path.read_bytes().splitlines(keepends=True)


def long_ledger(path, plan, rounds, reserve):
    """A ledger of that many rounds, written as the API would, but for the flushes to the disk."""
    first, *_ = book(path, plan, 1, reserve, signer=None)
    data, prev = [first], hashlib.sha256(first[:-1]).hexdigest()
    same = {"plan": plan.hash, "run": "run", "private": True, "mu": plan.mu(3), "sigma_eff": plan.sigma_effective(3)}
    same |= {"versions": {}, "epsilon": {}, "epsilon_total": {}}
    for number in range(rounds):
        at = 2 * number + 1
        kinds = (
            {"kind": "reserve", "seq": at, "attempt": 0, "data_set": None, "draws": plan.draws},
            {"kind": "commit", "seq": at + 1, "closes": at, "survivors": (0, 1, 2), "transcript": "ab"},
        )
        for values in kinds:
            line = chain.encode(same | values | {"round": number, "prev": prev})
            prev = hashlib.sha256(line[:-1]).hexdigest()
            data.append(line)
    path.write_bytes(b"".join(data))


def calls_in(job):
    """How many calls a job makes, of Python's functions and of those in C, and what it gives."""
    counted = collections.Counter()

    def count(_frame, event, _argument):
        counted[event] += 1

    sys.setprofile(count)
    try:
        result = job()
    finally:
        sys.setprofile(None)
    return counted["call"] + counted["c_call"], result


@pytest.mark.case("P20")
def test_a_long_ledger_is_opened_in_proportion(plan_of, reserve, tmp_path, monkeypatch):
    """10 000 entries take ten times the calls and hashed bytes of 1 000, each decoded once; an append takes the same at both."""
    plan, opening, appending = plan_of(rounds=6000), {}, {}
    hashed, decoded = [], []
    real_hash, real_decode = hashlib.sha256, chain.decode
    for size in (1_000, 10_000):
        file = tmp_path / f"{size}.jsonl"
        long_ledger(file, plan, size // 2, reserve)
        opening[size], ledger = calls_in(lambda file=file: Ledger(file))
        with ledger:
            appending[size], _ = calls_in(lambda ledger=ledger: reserve(ledger, 9999, plan))
        with monkeypatch.context() as patch:
            patch.setattr(chain.hashlib, "sha256", lambda data: hashed.append(len(data)) or real_hash(data))
            patch.setattr(chain, "decode", lambda line: decoded.append(1) or real_decode(line))
            Ledger(file).close()
        assert len(decoded) == size + 2
        assert sum(hashed) < 1.1 * file.stat().st_size
        hashed.clear()
        decoded.clear()
    assert 9 < opening[10_000] / opening[1_000] < 10.5
    assert appending[10_000] == pytest.approx(appending[1_000], rel=0.05)


@pytest.mark.case("P20")
def test_a_long_ledger_is_verified_in_proportion(plan_of, reserve, tmp_path):
    """Verifying four times the entries, every epsilon with them, takes four times the calls at most."""
    work = []
    for rounds in (25, 100):
        file = tmp_path / f"{rounds}.jsonl"
        book(file, plan_of(rounds=200), rounds, reserve)
        calls, report = calls_in(lambda file=file: verify(file))
        assert (report.entries, report.rounds) == (2 * rounds + 1, rounds)
        work.append(calls)
    assert work[1] / work[0] < 4.2


def edited(lines, at, **fields):
    """A line with other values, in canonical JSON as the API writes it."""
    values = json.loads(lines[at]) | fields
    return [*lines[:at], rfc8785.dumps(values) + b"\n", *lines[at + 1 :]]


# what somebody did to the lines, and what is said of it
CHANGES = {
    "edited": (lambda lines: edited(lines, 3, round=7), r"line 5: .*prev is not the hash of the line before"),
    "noise edited": (lambda lines: edited(lines, 4, sigma_eff=1e9), r"line 5: .*do not follow from the plan"),
    "last edited": (lambda lines: edited(lines, 6, transcript="cd"), r"line 7: a fork: .*ledger\.head\.json"),
    "first edited": (lambda lines: edited(lines, 0, versions={}), r"line 2: .*prev is not the hash of the line before"),
    "one byte": (
        lambda lines: [*lines[:2], lines[2].replace(b"private", b"privbte"), *lines[3:]],
        r"line 3: keys missing",
    ),
    "spaced": (lambda lines: [*lines[:2], b" " + lines[2], *lines[3:]], r"line 3: not canonical"),
    "removed": (lambda lines: [*lines[:3], *lines[4:]], r"line 4: seq is 4, and 3 belongs here"),
    "first removed": (lambda lines: lines[1:], r"line 1: seq is 1, and 0 belongs here"),
    "doubled": (lambda lines: [*lines[:3], lines[2], *lines[3:]], r"line 4: seq is 2, and 3 belongs here"),
    "reordered": (lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]], r"line 4: seq is 4, and 3 belongs here"),
    "tail cut": (lambda lines: lines[:5], r"the tail was cut: .*ledger\.head\.json \(writer\) signs 7 entries, and 5"),
    "all cut": (lambda _lines: [], r"the tail was cut: .* signs 7 entries, and 0 are left"),
}


@pytest.mark.case("P21")
@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_is_named(plan_of, reserve, tmp_path, typed, change):
    """Whatever was done to the lines, opening, verifying and the commands find it, with file and line or head; exit 2."""
    file, (tamper, named) = tmp_path / "ledger.jsonl", CHANGES[change]
    lines = book(file, plan_of(), 3, reserve)
    assert typed(["ledger", "verify", file])[0] == 0
    file.write_bytes(b"".join(tamper(lines)))
    for opener in (lambda: Ledger(file, signer=SERVER), lambda: verify(file)):
        with pytest.raises(ChainError, match=rf"{file}.*{named}"):
            opener()
    for command in ("verify", "total"):
        code, out, err = typed(["ledger", command, file])
        assert (code, out) == (2, "")
        with pytest.raises(ChainError, match=rf"^privacy: tampered: {file}.*{named}"):
            raise ChainError(err)


@pytest.mark.case("P21")
def test_a_chain_that_was_mended_is_found(plan_of, reserve, tmp_path):
    """Who mends all hashes behind an edit still has the signed head against him; and without one, the plan."""
    file = tmp_path / "ledger.jsonl"
    lines = edited(book(file, plan_of(), 3, reserve), 3, round=7)
    for cheap in ({}, {"mu": 1e-9, "sigma_eff": 1e12}):
        lines, prev = edited(lines, 4, round=7, **cheap), json.loads(lines[0])["prev"]
        for at in range(len(lines)):
            lines = edited(lines, at, prev=prev)
            prev = hashlib.sha256(lines[at][:-1]).hexdigest()
        file.write_bytes(b"".join(lines))
        with pytest.raises(ChainError, match=r"line 5: mu = 1e-09" if cheap else r"line 7: a fork: "):
            verify(file)


@pytest.mark.case("P21")
def test_two_heads(plan_of, reserve, tmp_path, typed):
    """Two signed heads that do not lie on one chain are a fork: line and both sources are named, in Python and in the shell."""
    ours, theirs = tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl"
    book(ours, plan_of(), 3, reserve)
    told = b"".join(book(theirs, plan_of(), 3, reserve, survivors=(0, 1, 2, 3)))
    other = tmp_path / "site.json"
    other.write_bytes(witness(told, read_entries(theirs), run="run", site=0, signer=SITE))
    named = rf"{ours}, line 7: a fork: {head_path(ours)} \(writer\) and {other} \(writer\) sign different entries"
    with pytest.raises(ChainError, match=named):
        verify(ours, heads=[other])
    code, out, err = typed(["ledger", "verify", ours, "--head", other])
    assert (code, out) == (2, "")
    assert f"line 7: a fork: {head_path(ours)}" in err
    assert str(other) in err
    with Ledger(ours, signer=SERVER) as ledger, pytest.raises(ChainError, match="fork"):
        ledger.countersign("site", other.read_bytes(), key=SITE.public_key().public_bytes_raw().hex())
    assert typed(["ledger", "compare", ours, theirs])[0] == 2
