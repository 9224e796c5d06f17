"""The examples do what they say, as a user would run them."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_three_processes_sum_their_counts_without_jax():
    """Three clients in processes of their own: the totals are exact, and nothing loaded JAX."""
    command = [sys.executable, str(ROOT / "examples" / "count_diagnoses.py")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert {name: int(lines[name]) for name in ("asthma", "diabetes", "influenza", "migraine", "pneumonia")} == {
        "asthma": 184,
        "diabetes": 615,
        "influenza": 397,
        "migraine": 41,
        "pneumonia": 53,
    }
    assert "hospitals [1, 2, 3]; JAX loaded: False" in result.stdout


def test_importing_secagg_loads_neither_jax_nor_scipy():
    """Whoever only sums integers does not pay for a machine-learning stack."""
    code = (
        "import secagg, sys; print(sorted({m.split('.')[0] for m in sys.modules} & {'jax', 'jaxlib', 'scipy', 'flax'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
