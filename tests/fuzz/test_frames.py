import importlib.util
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parent / "frames.py"


def load():
    """The program as a module."""
    spec = importlib.util.spec_from_file_location("fuzz_frames", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_mutated_frames_crash_nothing_and_none_is_taken():
    """Twenty thousand mutants over both sides and every phase: errors of ours only; half of them signed anew."""
    frames = load()
    counts = frames.fuzz(20_000, seed=1)
    assert {key[:2] for key in counts} == set(frames.TARGETS)
    assert not [key for key in counts if key[3].startswith(("CRASH", "ACCEPTED"))]
    signed = sum(n for key, n in counts.items() if key[2] == "signed")
    assert 0.45 < signed / counts.total() < 0.55
    reached = {key[3] for key in counts}
    assert {"DecodeError", "SignatureError", "PeerFault", "ServerFault", "variant"} <= reached


def test_a_check_that_is_missing_is_found(monkeypatch):
    """Without the commitment check on revealed shares the same program reports what was accepted."""
    frames = load()
    from secagg.protocols.pairwise import unmask

    monkeypatch.setattr(unmask.CollectingAnswers, "_keep", lambda *_: None)
    monkeypatch.setattr(frames, "TARGETS", [("server", "unmask")])
    counts = frames.fuzz(600, seed=1)
    assert [key for key in counts if key[3] == "ACCEPTED"]


def test_the_program_says_what_it_did():
    """A short run exits 0, prints a line for each side and phase, and the totals."""
    result = subprocess.run(
        [sys.executable, str(PROGRAM), "--frames", "400"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 10
    assert "400 frames" in result.stdout
    assert "crashed or accepted: 0" in result.stdout
