"""docs/privacy.md says what tests show: the tests that it names are there, and so are the rows that it answers."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")
TESTS = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]


def named_tests(page):
    """Functions that a page names as tests."""
    return set(re.findall(r"`(test_\w+)`", page))


def missing(page):
    """Tests and files of tests that a page names and nobody wrote."""
    defined = {name for source in TESTS for name in re.findall(r"^def (test_\w+)", source, re.MULTILINE)}
    files = {path for path in re.findall(r"`(tests/[\w/.]+)`", page) if not (ROOT / path).exists()}
    return (named_tests(page) - defined) | files


def pitfalls(page):
    """Rows of the table of pitfalls: (row, severity, test)."""
    return re.findall(r"^\| (P\d+) \| [^|]+ \| (\w+) \| [^|]+ \| ([^|]+) \|$", page, re.MULTILINE)


def test_every_test_that_the_page_names_exists():
    """No claim of the page rests on a test that was renamed or removed."""
    assert len(named_tests(PAGE)) > 60
    assert missing(PAGE) == set()


@pytest.mark.parametrize("name", ["`test_that_nobody_wrote`", "`tests/privacy/test_nothing.py`"])
def test_a_claim_without_a_test_is_found(name):
    """A name that no test has is reported, so the check above can fail."""
    assert missing(PAGE + name) == {name.strip("`")}


def test_every_pitfall_has_a_severity_and_a_test():
    """The rows P1 to P25 are there in order, each with one of the four severities and a test, or its row of the cases."""
    rows = pitfalls(PAGE)
    assert [row for row, _, _ in rows] == [f"P{number}" for number in range(1, 26)]
    assert {severity for _, severity, _ in rows} == {"critical", "high", "medium", "low"}
    for row, _, test in rows:
        assert named_tests(test) or f"row {row}" in test
