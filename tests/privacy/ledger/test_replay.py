from pathlib import Path

import pytest

from privacy.ledger.chain import ChainError, decode, encode
from privacy.ledger.replay import Books, _Cohorts


def test_cohorts_that_differ_by_one_site_are_told():
    """Against every earlier set, by a site that left or came, once a set; never for equal sets or for two sites at once."""
    cohorts = _Cohorts()
    assert cohorts.add((0, 1, 2, 2**64 - 1), 0) == []
    assert cohorts.add((0, 1, 2, 2**64 - 1), 1) == []
    assert cohorts.add((0, 1), 2) == []
    assert cohorts.add((0, 1, 2), 3) == [(2, 2), (2**64 - 1, 0)]
    assert cohorts.add((2, 1, 0), 4) == []
    assert cohorts.add((0, 1, 2, 3, 4), 5) == []


def test_recovered_entry_must_count_the_floor():
    """A recovery cannot be written by hand to count another amount."""
    values = {
        "seq": 0, "prev": "0" * 64, "kind": "recovered", "plan": None, "run": "", "mu": 0.5, "private": True,
        "epsilon": {}, "epsilon_total": {}, "draws": 0, "torn": "ew==", "versions": {},
    }  # fmt: skip
    with pytest.raises(ChainError, match="x, line 1: a recovered entry"):
        Books(Path("x")).book(decode(encode(values)[:-1]))
    with pytest.raises(ChainError, match="x, line 1: torn is not base64"):
        Books(Path("x")).book(decode(encode(values | {"mu": 0.0, "torn": "e"})[:-1]))
    Books(Path("x")).book(decode(encode(values | {"mu": 0.0})[:-1]))
