"""Writing a run folder: a file whole or not at all, a line on disk before the run goes on."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl.errors import RunError


def write_file(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        RunError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunError(f"{path}: cannot be written: {error.strerror}") from error


def append_line(path: Path, entry: Mapping[str, Any]) -> None:
    """Append one line of JSON and wait until it is on disk.

    Raises:
        RunError: the file cannot be written.
    """
    line = json.dumps(entry, allow_nan=False, separators=(",", ":")) + "\n"
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}") from error
