"""Cases from other frameworks: the marker that ties a test to its rows, and what the tests have in common.

A test of this folder is marked `@pytest.mark.case("S1")`; `rows.json` has the rows, `test_every_row_has_a_test.py` ties them together.
Nothing here may be skipped: a report that says so becomes a failure.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from privacy.cli import main as privacy_main
from privacy.plan import Plan
from secagg import RoundParams


def pytest_configure(config):
    """The marker, known to `--strict-markers`."""
    config.addinivalue_line("markers", "case(row, ...): the rows of tests/cases/rows.json that a test stands for")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):  # noqa: ARG001 - the hook's signature
    """A row that was not tried is not held: skipped and expected failures fail here."""
    report = yield
    if report.skipped or hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"no test in tests/cases may be skipped or expected to fail: {report.longrepr}"
        report.__dict__.pop("wasxfail", None)
    return report


def round_params(n, blocks, **fields):
    """Parameters of a round of clients 0 … n - 1, or of the given ids, in the classical suite."""
    cohort = tuple(range(n)) if isinstance(n, int) else tuple(n)
    return RoundParams(cohort=cohort, blocks=tuple(blocks), **({"suite": "classical"} | fields))


def at_random(params, seed=0):
    """Inputs of every client, each entry anywhere within its block's bound, both bounds among them."""
    rng = np.random.default_rng(seed)

    def values(block):
        x = rng.integers(-block.bound, block.bound, block.length, endpoint=True, dtype=np.int64)
        x[: block.length // 3] = block.bound
        x[block.length // 3 : 2 * block.length // 3] *= -1
        return x

    return {i: {block.name: values(block) for block in params.blocks} for i in params.cohort}


def added(inputs, clients):
    """The sums over some clients, in Python's integers: `{block: list}`."""
    chosen = [inputs[i] for i in clients]
    return {
        name: [sum(column) for column in zip(*(x[name].tolist() for x in chosen), strict=True)] for name in chosen[0]
    }


@pytest.fixture(scope="session")
def params_of():
    """`params_of(n or ids, blocks, **fields)`: parameters in the classical suite."""
    return round_params


@pytest.fixture(scope="session")
def inputs_of():
    """`inputs_of(params, seed=0)`: inputs of every client, within the bounds and at them."""
    return at_random


@pytest.fixture(scope="session")
def total():
    """`total(inputs, clients)`: the sums in Python's integers."""
    return added


@pytest.fixture(scope="session")
def plan_of():
    """`plan_of(**fields)`: a privacy plan of four hospitals, solved for what is left out; None takes a field away."""
    hospitals = json.loads((Path(__file__).parents[1] / "heart_plan.json").read_text(encoding="utf-8"))

    def build(**fields):
        return Plan.solve(**{name: value for name, value in (hospitals | fields).items() if value is not None})

    return build


@pytest.fixture
def typed(capsys):
    """`typed(words)`: what somebody sees who types `privacy` and these words: exit code, stdout and stderr."""

    def run(words):
        code = privacy_main(words.split() if isinstance(words, str) else [str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="session")
def reserve():
    """`reserve(ledger, number, plan, **fields)`: a round of the one run, reserved as a site or a server does it."""

    def book(ledger, number, plan, **fields):
        return ledger.reserve(
            round=number, plan=plan, **({"run": "run", "attempt": 0, "private": True, "data_set": None} | fields)
        )

    return book
