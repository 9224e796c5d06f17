import json
import math
from pathlib import Path

import pytest

from fl.errors import RunError
from fl.files import FLAG, append_line, cut_lines, finite, read_lines, write_file


def test_lines_are_strict_json(tmp_path):
    """F14: a number that JSON cannot hold is null in the file, its name is beside it, and an unwritable file is named."""
    path = tmp_path / "lines.jsonl"
    append_line(path, {"a": 1})
    append_line(path, {"a": math.nan, "b": {"c": [1.0, math.inf]}})
    assert path.read_text() == '{"a":1}\n{"a":null,"b":{"c":[1.0,null]},"not_finite":["a","b.c.1"]}\n'
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    with pytest.raises(RunError, match="absent"):
        append_line(tmp_path / "absent" / "lines.jsonl", {})


def test_what_is_finite_stays_as_it_is():
    """Only what JSON cannot hold changes, and names that were flagged already stay flagged."""
    whole = {"a": 1.5, "b": [True, None, "x"], "c": {"d": 0}}
    assert finite(whole) == whole
    assert finite({FLAG: ["auc"], "auc": None, "loss": -math.inf}) == {
        FLAG: ["auc", "loss"],
        "auc": None,
        "loss": None,
    }


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


def test_bytes_are_written_as_they_are(tmp_path):
    """What is no text arrives unchanged, and text arrives as UTF-8."""
    write_file(tmp_path / "a", bytes(range(256)))
    assert (tmp_path / "a").read_bytes() == bytes(range(256))
    write_file(tmp_path / "b", "ε\n")
    assert (tmp_path / "b").read_bytes() == b"\xce\xb5\n"


def test_a_torn_line_is_no_line(tmp_path):
    """What a crash left of a last line is not read; no file has no lines; a broken whole line is named by its number."""
    path = tmp_path / "lines.jsonl"
    assert read_lines(path) == []
    path.write_text('{"a":1}\n{"a":2}\n{"a":')
    assert read_lines(path) == [{"a": 1}, {"a": 2}]
    for broken in ("{", "[1]"):
        path.write_text('{"a":1}\n' + broken + "\n")
        with pytest.raises(RunError, match=r"lines\.jsonl: line 2"):
            read_lines(path)
    with pytest.raises(RunError, match="cannot be read"):
        read_lines(tmp_path)


def test_lines_after_the_last_commit_are_cut_off(tmp_path):
    """The first lines stay byte for byte, torn and later ones go, and fewer than there must be is an error."""
    path = tmp_path / "lines.jsonl"
    assert cut_lines(path, 0) == []
    assert not path.exists()
    path.write_text('{"a": 1.50}\n{"a":2}\n{"a":3}\n{"a"')
    assert cut_lines(path, 2) == [{"a": 1.5}, {"a": 2}]
    assert path.read_text() == '{"a": 1.50}\n{"a":2}\n'
    append_line(path, {"a": 4})
    assert read_lines(path)[-1] == {"a": 4}
    with pytest.raises(RunError, match=r"has 3 whole lines, and the checkpoint is of 4 rounds"):
        cut_lines(path, 4)
