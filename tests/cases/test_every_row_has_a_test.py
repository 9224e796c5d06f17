"""No row without a test, no test without a row, and nothing that could keep a test from running."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROWS = [
    case["row"]
    for table, cases in json.loads((HERE / "rows.json").read_text(encoding="utf-8")).items()
    if table != "provenance"
    for case in cases
]
ALLOWED_MARKS = {"case", "parametrize", "hookimpl"}
WAYS_OUT = {
    "skip",
    "skipif",
    "xfail",
    "importorskip",
    "exit",
    "SkipTest",
    "skipTest",
    "collect_ignore",
    "collect_ignore_glob",
    "__test__",
}
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}

# Collects a folder as `make test` does, and prints which rows each collected test stands for.
COLLECT = """
import json, sys
import pytest

class Rows:
    def pytest_collection_finish(self, session):
        self.found = [
            (item.nodeid.split("::", 1)[0].rsplit("/", 1)[-1], item.nodeid.split("::", 1)[1],
             [row for mark in item.iter_markers("case") for row in mark.args],
             sorted({mark.name for mark in item.iter_markers()}))
            for item in session.items
        ]

rows = Rows()
code = pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "-m", "not sweep", sys.argv[1]], plugins=[rows])
print("\\nCOLLECTED" + json.dumps([int(code), getattr(rows, "found", [])]))
"""


def collected(folder):
    """(file, test, rows, marks) of every test that `make test` would run in a folder."""
    result = subprocess.run(
        [sys.executable, "-c", COLLECT, str(folder)],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    code, found = json.loads(result.stdout.rpartition("COLLECTED")[2])
    assert code == 0, result.stdout
    return [(file, test, tuple(rows), set(marks)) for file, test, rows, marks in found if file != Path(__file__).name]


def missing(found):
    """Rows without a test that runs."""
    held = {row for _, _, rows, marks in found if not marks & WAYS_OUT for row in rows}
    return [row for row in ROWS if row not in held]


def ways_out(source):
    """What in a file could keep a test from running: by name, wherever it comes from, and marks that can be deselected."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        name = {ast.Attribute: "attr", ast.Name: "id", ast.alias: "name", ast.keyword: "arg"}.get(type(node))
        if name is not None and getattr(node, name) in WAYS_OUT:
            found.add(getattr(node, name))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr == "mark":
            found |= {node.attr} - ALLOWED_MARKS
    return found


@pytest.fixture(scope="module")
def here():
    """The tests of this folder."""
    return collected(HERE)


def test_the_rows_are_all_there():
    """The tables are copied whole: thirty rows of secure aggregation, twenty of learning, twenty-five of privacy, none twice."""
    sizes = {"S": 30, "F": 20, "P": 25}
    assert [f"{table}{number}" for table, size in sizes.items() for number in range(1, size + 1)] == ROWS


def test_every_row_has_a_test(here):
    """Each row has a test that `make test` collects and does not skip."""
    assert missing(here) == []


def test_every_test_has_a_row(here):
    """Each test of the folder names a row, and one that there is."""
    assert [(file, test) for file, test, rows, _ in here if not rows] == []
    assert {row for _, _, rows, _ in here for row in rows} <= set(ROWS)


@pytest.mark.parametrize("file", sorted(HERE.glob("*.py")), ids=lambda path: path.name)
def test_nothing_here_can_be_skipped(file):
    """No file of the folder uses a way to skip, deselect or excuse a test."""
    if file.name != Path(__file__).name:
        assert ways_out(file.read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pytest\npytest.skip('no')", {"skip"}),
        ("from pytest import skip as leave", {"skip"}),
        ("import pytest\nnp = pytest.importorskip('numpy')", {"importorskip"}),
        ("import unittest\nraise unittest.SkipTest", {"SkipTest"}),
        ("import pytest\n@pytest.mark.skipif(True, reason='')\ndef test_a(): pass", {"skipif"}),
        ("import pytest\n@pytest.mark.xfail\ndef test_a(): pass", {"xfail"}),
        ("import pytest\n@pytest.mark.sweep\n@pytest.mark.case('S1')\ndef test_a(): pass", {"sweep"}),
        ("import pytest\npytestmark = [pytest.mark.slow]", {"slow"}),
        ("__test__ = False", {"__test__"}),
        ("import pytest\n@pytest.mark.case('S1')\n@pytest.mark.parametrize('a', [1])\ndef test_a(a): pass", set()),
    ],
)
def test_ways_out_are_found(source, found):
    """The search is not vacuous: each way to keep a test from running is found by its name."""
    assert ways_out(source) == found


PLANTED = """
import pytest

@pytest.mark.case("S1")
def test_of_two_rows():
    pass

@pytest.mark.case("S2")
@pytest.mark.parametrize("never", [])
def test_without_a_parameter(never):
    pass

@pytest.mark.case("S3")
@pytest.mark.sweep
def test_that_is_deselected():
    pass

@pytest.mark.case("S4")
@pytest.mark.skip(reason="no")
def test_that_is_skipped():
    pass

@pytest.mark.case("S5")
def test_that_skips_itself():
    pytest.skip("no")

@pytest.mark.case("S6")
@pytest.mark.xfail
def test_that_is_expected_to_fail():
    assert False

@pytest.fixture
def absent():
    pytest.skip("no")

@pytest.mark.case("S7")
def test_that_its_fixture_skips(absent):
    pass
"""


def test_planted_gaps_are_found(tmp_path):
    """A row whose tests are gone, deselected, skipped or excused counts as missing, and a skip at run time is a failure."""
    shutil.copy(HERE / "conftest.py", tmp_path)
    (tmp_path / "test_planted.py").write_text(PLANTED, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\nmarkers =\n    sweep: heavy\n")
    assert missing(collected(tmp_path)) == [row for row in ROWS if row not in ("S1", "S5", "S7")]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(tmp_path)],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.stdout.splitlines()[-1].startswith("2 failed, 2 passed, 3 errors"), result.stdout
    assert "no test in tests/cases may be skipped or expected to fail" in result.stdout
