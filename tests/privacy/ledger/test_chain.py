import base64
import hashlib
import json
import math
from pathlib import Path

import pytest

from privacy.ledger.chain import ChainError, decode, encode, entries, torn_counts, torn_text

VALUES = {
    "seq": 0,
    "prev": "0" * 64,
    "kind": "reserve",
    "plan": "ab" * 32,
    "run": "run",
    "round": 3,
    "attempt": 1,
    "data_set": None,
    "draws": 160,
    "mu": 0.05,
    "sigma_eff": 2e7,
    "private": True,
    "epsilon": {"closed_form": 0.5, "rdp": math.inf},
    "epsilon_total": {"closed_form": 0.5, "rdp": 0.6},
    "versions": {"python": "3.11"},
}


def test_entry_survives_its_line():
    """What is encoded is read back, infinity as null, with the hash of the line."""
    line = encode(VALUES)
    entry = decode(line[:-1])
    assert {name: getattr(entry, name) for name in VALUES} == VALUES
    assert entry.hash == hashlib.sha256(line[:-1]).hexdigest()
    assert b'"rdp":null' in line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("v", 2),
        ("seq", -1),
        ("seq", 1.5),
        ("seq", True),
        ("prev", "0" * 63),
        ("prev", "A" * 64),
        ("plan", "x"),
        ("run", 1),
        ("round", 1 << 53),
        ("data_set", 1),
        ("draws", "160"),
        ("mu", -1),
        ("mu", "0.05"),
        ("sigma_eff", None),
        ("private", 1),
        ("epsilon", {"pld": 1}),
        ("epsilon", {"rdp": -1}),
        ("epsilon", {"rdp": 10**400}),
        ("mu", 10**400),
        ("run", "\ud800"),
        ("epsilon", 1),
        ("versions", {"python": 3}),
    ],
)
def test_values_of_the_wrong_kind_are_refused_by_name(name, value):
    """Each key has one type and range; the error says which key broke it."""
    with pytest.raises(ChainError, match=f"{name} = "):
        decode(json.dumps(json.loads(encode(VALUES)) | {name: value}).encode())


@pytest.mark.parametrize(
    "line",
    [b"", b"[]", b"1", b"{}", b'{"kind":["reserve"]}', b'{"kind":"spend"}', b"\xff", b'{"mu":NaN}', b"[" * 200_000],
)
def test_lines_that_are_no_entry_are_refused(line):
    """No JSON, another type, or an unknown kind raise and nothing else does."""
    with pytest.raises(ChainError):
        decode(line)


def test_chain_breaks_are_named_by_line():
    """The error says which file and line, counted from one."""
    first = encode(VALUES)[:-1]
    good = encode(VALUES | {"seq": 1, "prev": hashlib.sha256(first).hexdigest()})[:-1]
    assert [entry.seq for entry in entries([first, good], Path("x"))] == [0, 1]
    bad = encode(VALUES | {"seq": 1})[:-1]
    with pytest.raises(ChainError, match=r"x, line 2: the chain is broken"):
        list(entries([first, bad], Path("x")))


def test_survivor_ids_are_kept_exactly():
    """Ids up to 2**64 - 1 are texts in the file, since JSON numbers are exact to 2**53 only."""
    commit = {k: v for k, v in VALUES.items() if k not in {"attempt", "data_set", "draws"}}
    line = encode(commit | {"kind": "commit", "closes": 0, "survivors": (7, (1 << 64) - 1), "transcript": ""})
    assert b'"survivors":["7","18446744073709551615"]' in line
    assert decode(line[:-1]).survivors == (7, (1 << 64) - 1)
    for bad in (["07"], ["-1"], [7], ["7", "7"]):
        with pytest.raises(ChainError, match="survivors"):
            decode(json.dumps(json.loads(line) | {"survivors": bad}).encode())


def test_first_bytes_tell_what_was_torn():
    """A commit or a plan in the making counts nothing; a reserve, or too little to tell, counts."""
    assert encode(VALUES).startswith(b'{"attempt":')
    assert torn_counts(encode(VALUES)[:40])
    assert torn_counts(b"{")
    assert not torn_counts(b'{"closes":4')
    assert not torn_counts(b'{"body":{')
    assert base64.b64decode(torn_text(b"\x00\xff")) == b"\x00\xff"
