"""The `secagg` command."""

import json
import subprocess
import sys

import pytest

from secagg.params import PHASES


def secagg(*arguments):
    """The command in a process of its own."""
    return subprocess.run([sys.executable, "-m", "secagg.cli", *arguments], capture_output=True, text=True, check=False)


def test_bench_prints_one_json_object():
    """`--json` leaves one object on standard output and nothing else, with exactly the five phases."""
    result = secagg("bench", "-n", "4", "-d", "10", "--repeat", "1", "--drop", "1", "--json")
    report = json.loads(result.stdout)
    assert result.returncode == 0
    assert tuple(report["phases"]) == PHASES
    assert report["survivors"] == 3


def test_bench_prints_a_table():
    """Without `--json` there is a line for each phase."""
    result = secagg("bench", "-n", "3", "-d", "10", "--repeat", "1", "--suite", "classical")
    assert all(phase in result.stdout for phase in PHASES)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("bench", "-n", "2"), 1, "at least 3 clients"),
        (("bench", "-n", "4", "--drop", "3", "-d", "1"), 1, "1 of at least 3 clients"),
        (("bench", "--suite", "rot13"), 2, "rot13"),
        (("benhc",), 2, "benhc"),
    ],
)
def test_errors_are_one_line_without_a_traceback(arguments, code, words):
    """Our errors and usage errors have their exit code, name the culprit, and print no traceback."""
    result = secagg(*arguments)
    assert result.returncode == code
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not result.stdout
