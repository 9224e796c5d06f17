from pathlib import Path

import pytest

from fl.errors import RunError
from fl.files import append_line, write_file


def test_lines_are_strict_json(tmp_path):
    """F14: a number that JSON cannot hold never reaches the file, and an unwritable file is named."""
    path = tmp_path / "lines.jsonl"
    append_line(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_line(path, {"a": float("nan")})
    assert path.read_text() == '{"a":1}\n'
    with pytest.raises(RunError, match="absent"):
        append_line(tmp_path / "absent" / "lines.jsonl", {})


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    """When the disk refuses, the file is named, the one before stands, and no partial file stays."""
    path = tmp_path / "result.json"
    write_file(path, "first")

    def refuse(_source, _target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(RunError, match=r"result\.json: cannot be written: No space left on device"):
        write_file(path, "second")
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]
    assert path.read_text() == "first"
