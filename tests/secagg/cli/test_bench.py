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


def test_bench_prints_predicted_beside_measured():
    """Every phase has both figures of either party, and predicted bytes are the measured ones."""
    result = secagg("bench", "-n", "5", "-d", "100", "--bits", "20", "--repeat", "1", "--drop", "1", "--json")
    for row in json.loads(result.stdout)["phases"].values():
        assert row["bytes_up"] == row["predicted_bytes_up"] > 0
        assert row["bytes_down"] == row["predicted_bytes_down"] > 0
        assert min(row["client_s"], row["predicted_client_s"], row["server_s"], row["predicted_server_s"]) > 0


def test_bench_takes_a_sparse_graph():
    """Degree and threshold reach the round."""
    arguments = ("-n", "40", "-d", "10", "--degree", "30", "--threshold", "25", "--suite", "classical", "--repeat", "1")
    report = json.loads(secagg("bench", *arguments, "--json").stdout)
    assert (report["degree"], report["threshold"], report["survivors"]) == (30, 25, 40)


def test_bench_prints_a_table():
    """Without `--json` there is a line for each phase, and nothing on standard error that is no terminal."""
    result = secagg("bench", "-n", "3", "-d", "10", "--repeat", "1", "--suite", "classical")
    assert all(phase in result.stdout for phase in PHASES)
    assert not result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("bench", "-n", "2"), 1, "at least 3 clients"),
        (("bench", "-n", "4", "--drop", "3", "-d", "1"), 1, "3 silent clients of 4 leave fewer than 3 survivors"),
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
