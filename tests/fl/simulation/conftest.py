"""What the tests of simulations have in common."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _short_reports(request, monkeypatch):
    """Charts take longer than a toy run; a test that reads the report of a run asks for `whole_report`."""
    if "whole_report" in request.fixturenames:
        return
    from fl.simulation import alone, runs

    def write(folder):
        path = Path(folder) / "report.html"
        path.write_text("a test that reads its report asks for it")
        return path

    for module in (alone, runs):
        monkeypatch.setattr(module, "write_report", write)


@pytest.fixture
def whole_report():
    """The run's report is written as it is for users."""
