import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("epsilon", "--noise-multiplier", "nan", "--delta", "1e-5"), "noise_multiplier"),
        (("epsilon", "--noise-multiplier", "1", "--delta", "2"), "delta"),
        (("noise", "--epsilon", "-1", "--delta", "1e-5"), "epsilon"),
        (("epsilon", "--noise-multiplier", "1", "--delta", "1e-5", "--steps", "0"), "steps"),
        (("epsilon", "--noise-multiplier", "one", "--delta", "1e-5"), "noise-multiplier"),
        (("epsilon", "--noise-multiplier", "1"), "delta"),
        (("epsilon", "--noise-multiplier", "1", "--delta", "1e-5", "--relation", "swap"), "relation"),
        (("nothing",), "nothing"),
        (("ledger", "verify", "/nowhere/ledger.jsonl"), "/nowhere/ledger.jsonl"),
        (("ledger", "show", "/nowhere/ledger.jsonl"), "/nowhere/ledger.jsonl"),
        (("ledger", "total", "/nowhere/ledger.jsonl"), "/nowhere/ledger.jsonl"),
        (("noise", "--epsilon", "1e300", "--delta", "1e-300"), "epsilon = 1e+300 at delta = 1e-300"),
        (("noise", "--epsilon", "5e-324", "--delta", "1e-5"), "epsilon = 4.94066e-324"),
        (("epsilon", "--noise-multiplier", "1e-55", "--delta", "1e-5"), "noise_multiplier = 1e-55"),
        (("epsilon", "--noise-multiplier", "1e-113", "--sample-rate", "1e-9", "--delta", "1e-5"), "1e-113"),
    ],
)
def test_errors_go_to_stderr_and_exit_1(call, arguments, name):
    """A bad value, a missing option, an unknown command or file: exit 1, what was at fault on stderr, empty stdout."""
    code, out, err = call(*arguments)
    assert (code, out) == (1, "")
    assert name in err
    assert "Traceback" not in err


def test_command_runs_as_a_module():
    """The command works from a shell, and `--version` names it."""
    done = subprocess.run(
        [sys.executable, "-m", "privacy.cli", "--version"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stdout.startswith("privacy, version ")
