import json

import jsonschema
import pytest

from privacy.ledger.head import head_path


def validator(docs, name):
    """A validator of one of the published schemas, which is itself valid."""
    schema = json.loads((docs / "schemas" / name).read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture
def lines(docs):
    """A validator of ledger lines."""
    return validator(docs, "ledger-1.json")


@pytest.fixture
def heads(docs):
    """A validator of head files."""
    return validator(docs, "head-1.json")


def test_real_lines_are_valid(lines, every_kind, write):
    """Every line of real ledgers, of every kind, keeps to the schema."""
    seen = set()
    for path in (every_kind, write()):
        for line in path.read_bytes().splitlines():
            lines.validate(json.loads(line))
            seen.add(json.loads(line)["kind"])
    assert seen == {"plan", "reserve", "commit", "recovered"}


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("reserve", {"v": 2}),
        ("reserve", {"seq": -1}),
        ("reserve", {"seq": 1.5}),
        ("reserve", {"prev": "AB" * 32}),
        ("reserve", {"kind": "spend"}),
        ("reserve", {"plan": None}),
        ("reserve", {"mu": "0.1"}),
        ("reserve", {"mu": -1}),
        ("reserve", {"private": 1}),
        ("reserve", {"data_set": 3}),
        ("reserve", {"epsilon": {"pld": 1}}),
        ("reserve", {"epsilon": {"rdp": -1}}),
        ("reserve", {"survivors": []}),
        ("reserve", {"extra": 1}),
        ("commit", {"survivors": ["01"]}),
        ("commit", {"survivors": ["1", "1"]}),
        ("commit", {"survivors": [1]}),
        ("commit", {"transcript": "abc"}),
        ("commit", {"transcript": "AB"}),
        ("commit", {"closes": None}),
        ("plan", {"body": {}}),
        ("plan", {"plan": "x"}),
        ("recovered", {"torn": "*"}),
        ("recovered", {"versions": {"python": 3}}),
    ],
)
def test_wrong_lines_are_not(lines, every_kind, kind, change):
    """A line with one value out of its range, or a key too many, is refused; so is one with a key too few."""
    real = next(each for each in map(json.loads, every_kind.read_bytes().splitlines()) if each["kind"] == kind)
    assert not lines.is_valid(real | change)
    for name in real:
        assert not lines.is_valid({key: value for key, value in real.items() if key != name})


def test_real_heads_are_valid(heads, write):
    """The heads file of several parties, and each of its heads alone."""
    whole = json.loads(head_path(write()).read_bytes())
    assert set(whole["heads"]) == {"server", "north"}
    for each in (whole, *whole["heads"].values()):
        heads.validate(each)


@pytest.mark.parametrize(
    "change",
    [{"format": "privacy-ledger-head/2"}, {"hash": "x"}, {"key": 1}, {"seq": -1}, {"signature": "ab"}, {"extra": 1}],
)
def test_wrong_heads_are_not(heads, write, change):
    """A head with one value out of its range is refused, alone and among several."""
    whole = json.loads(head_path(write()).read_bytes())
    head = whole["heads"]["server"]
    assert not heads.is_valid(head | change)
    assert not heads.is_valid(whole | {"heads": {"server": head | change}})
    assert not heads.is_valid(whole | {"heads": {}})
    assert not heads.is_valid(whole | {"writer": None})
