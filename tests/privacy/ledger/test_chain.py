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
        ("v", True),
        ("seq", 10**20),
        ("versions", {"pythön": "3"}),
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
    ("old", "new"),
    [
        (b'"mu":0.05', b'"mu":0.050'),
        (b'"mu":0.05', b'"mu":5e-2'),
        (b'"mu":0.05', b'"mu":-0.0'),
        (b'"mu":0.05', b'"mu":-0'),
        (b'"mu":0.05', b'"mu":1.0'),
        (b'"mu":0.05', b'"mu":1e21'),
        (b'"mu":0.05', b'"mu":100000000000000000001'),
        (b'"mu":0.05', b'"mu":1' + b"0" * 400),
        (b'"mu":0.05', b'"mu":1e400'),
        (b'"mu":0.05', b'"mu":NaN'),
        (b'"mu":0.05', b'"mu": 0.05'),
        (b'"round":3', b'"round":3.0'),
        (b'"run":"run"', b'"run":"r\\u0075n"'),
        (b'"mu":0.05,', b""),
        (b'"v":1', b'"v":1.0'),
        (b"{", b" {"),
        (b"{", b"\xef\xbb\xbf{"),
        (b'{"attempt":1,"data_set":null', b'{"data_set":null,"attempt":1'),
    ],
)
def test_other_bytes_of_the_same_values_are_refused(old, new):
    """One entry has one line: other spellings of numbers and texts, blanks and other orders are found."""
    line = encode(VALUES)[:-1]
    assert old in line
    with pytest.raises(ChainError):
        decode(line.replace(old, new, 1))


@pytest.mark.parametrize(
    "value", [1e-7, 1.5e-6, 1e-5, 0.1, 1.0, 1e15, 1 / 3, 2.0**53, 1e17, 1e21, 1.5e300, 5e-324, 0.0]
)
def test_every_real_survives_its_line(value):
    """Numbers that Python and RFC 8785 write differently are read back as what they were."""
    entry = decode(encode(VALUES | {"mu": value, "epsilon": {"rdp": value}})[:-1])
    assert (entry.mu, type(entry.mu), entry.epsilon["rdp"]) == (value, float, value)


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
    for bad in (["07"], ["-1"], [7], ["7", "7"], [str(1 << 64)], ["9" * 20]):
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


def test_messages_are_short_and_plain():
    """However long or odd what was found is, the message that tells of it can be printed on a terminal."""
    line = json.loads(encode(VALUES))
    for bad in ({"\ud800\x1b": 1}, {"x" * 10**5: 1}, {"run": [0] * 10**5}, {"mu": "\x1b[2J" * 10**4}):
        with pytest.raises(ChainError) as caught:
            decode(json.dumps(line | bad).encode())
        assert len(str(caught.value)) < 200
        assert str(caught.value).isascii()
        assert str(caught.value).isprintable()


def test_a_sample_rate_is_in_the_line_where_it_is_below_one():
    """Left out at 1, so that old lines are what they were and one entry has one line; read back exactly below."""
    assert encode(VALUES | {"sample_rate": 1.0}) == encode(VALUES)
    assert decode(encode(VALUES)[:-1]).sample_rate == 1.0
    line = encode(VALUES | {"sample_rate": 0.1})
    assert b'"sample_rate":0.1,' in line
    assert decode(line[:-1]).sample_rate == 0.1
    for value in (b"1", b"0", b"1.5", b"-0.1", b"null", b'"0.1"', b"true", b"0.10"):
        with pytest.raises(ChainError):
            decode(line[:-1].replace(b'"sample_rate":0.1', b'"sample_rate":' + value))
