"""The layout of the house: imports point down, modules stay small, tests mirror the source, and nothing forbidden is used."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("secagg", "privacy", "fl")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
# Tested through what uses them: packages, exceptions, and interfaces without code.
UNTESTED_BY_NAME = {"__init__.py", "__main__.py", "errors.py", "base.py"}
FORBIDDEN_IMPORTS = {
    "pickle": "runs code of whoever wrote the bytes",
    "shelve": "is pickle",
    "dill": "is pickle",
    "cloudpickle": "is pickle",
    "joblib": "is pickle",
    "random": "is not for secrets, and NumPy's Generator does the rest",
}


def imports(path):
    """Top-level names of the modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def lint(folder):
    """The import contracts, checked over the packages in a folder."""
    command = [
        str(Path(sys.executable).parent / "lint-imports"),
        "--no-cache",
        "--config",
        str(folder / "pyproject.toml"),
    ]
    return subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("secagg/ring.py", "import fl.errors", "fl stands on secagg and privacy"),
        ("secagg/session.py", "import privacy.errors", "fl stands on secagg and privacy"),
        ("privacy/noise.py", "import secagg.ring", "fl stands on secagg and privacy"),
        ("secagg/messages.py", "import secagg.session", "inside secagg, imports point down"),
        ("secagg/crypto/kdf.py", "import secagg.params", None),
        ("fl/site.py", "import fl.simulation", "inside fl, imports point down"),
        ("privacy/codec.py", "import jax", "secagg and privacy run without JAX"),
    ],
)
def test_a_planted_upward_import_breaks_its_contract(tmp_path, module, line, contract):
    """The contracts are not vacuous: one import in the wrong direction fails, and names the contract."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    planted = tmp_path / module
    planted.write_text(planted.read_text(encoding="utf-8") + f"\n{line}  # planted\n", encoding="utf-8")
    result = lint(tmp_path)
    broken = [x for x in result.stdout.splitlines() if x.endswith("BROKEN")]
    if contract is None:
        assert not broken, result.stdout
    else:
        assert result.returncode != 0
        assert any(x.startswith(contract) for x in broken), result.stdout


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_fits_one_sitting(path):
    """No module has more than 500 lines."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_nothing_forbidden(path):
    """No pickle in any disguise, and no `random`."""
    found = {name: FORBIDDEN_IMPORTS[name] for name in imports(path) if name in FORBIDDEN_IMPORTS}
    assert not found


@pytest.mark.parametrize(
    "path", [p for p in MODULES if p.name not in UNTESTED_BY_NAME], ids=lambda p: str(p.relative_to(ROOT))
)
def test_a_module_has_its_test_module(path):
    """Tests mirror the source: package/a/b.py is tested by tests/package/a/test_b.py."""
    relative = path.relative_to(ROOT)
    expected = ROOT / "tests" / relative.parent / f"test_{relative.stem}.py"
    assert expected.exists(), f"{expected.relative_to(ROOT)} is missing"


def test_only_the_engines_and_entry_points_of_secagg_do_io():
    """The protocol core is bytes in, bytes out: no files, sockets, threads or clocks."""
    io_modules = {"socket", "pathlib", "threading", "asyncio", "subprocess", "tempfile", "time", "datetime", "logging"}
    core = [p for p in (ROOT / "secagg").rglob("*.py") if p.parent.name in ("pairwise", "crypto", "graph")]
    core += [ROOT / "secagg" / f"{name}.py" for name in ("params", "messages", "ring")]
    allowed = {name: {"threading"} for name in ("prg.py", "ring.py", "mask.py")}  # per-thread scratch buffers
    for path in core:
        assert not (set(imports(path)) & io_modules) - allowed.get(path.name, set()), path


def test_every_module_has_its_line_in_the_layout():
    """docs/layout.md lists exactly the modules that exist."""
    text = (ROOT / "docs" / "layout.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| \**`([a-z_/]+?(?:\.py|/))`", text, re.MULTILINE))
    expected = set()
    for path in MODULES:
        relative = path.relative_to(ROOT)
        expected.add(f"{relative.parent}/" if path.name == "__init__.py" else str(relative))
    assert listed == expected
