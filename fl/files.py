"""Writing a run folder: a file whole or not at all, a line on disk before the run goes on."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl.errors import RunError

FLAG = "not_finite"


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all, text in UTF-8, and wait until it is on disk.

    Raises:
        RunError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunError(f"{path}: cannot be written: {error.strerror}") from error


def append_line(path: Path, entry: Mapping[str, Any]) -> None:
    """Append one line of JSON and wait until it is on disk; what JSON cannot hold is null there, as `finite` has it.

    Raises:
        RunError: the file cannot be written.
    """
    line = json.dumps(finite(entry), allow_nan=False, separators=(",", ":")) + "\n"
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}") from error


def finite(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The entry with None for every number that JSON cannot hold, and the dotted names of these under `not_finite`.

    An entry whose numbers are all finite is as it was.
    """
    found: list[str] = []
    clean = {str(key): _finite(value, str(key), found) for key, value in entry.items()}
    return clean | {FLAG: [*clean.get(FLAG, []), *found]} if found else clean


def _finite(value: Any, name: str, found: list[str]) -> Any:  # noqa: ANN401 - whatever JSON has
    if isinstance(value, Mapping):
        return {str(key): _finite(each, f"{name}.{key}", found) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each, f"{name}.{index}", found) for index, each in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        found.append(name)
        return None
    return value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON objects; a last line that a crash tore off is no line, and no file has none.

    Raises:
        RunError: it cannot be read, or a whole line is no JSON object; the message names the line.
    """
    try:
        text = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error
    entries = []
    for number, line in enumerate(text.split(b"\n")[:-1], start=1):
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise RunError(f"{path}: line {number}: {error}") from error
        if not isinstance(entry, dict):
            raise RunError(f"{path}: line {number}: not a JSON object")
        entries.append(entry)
    return entries


def cut_lines(path: Path, count: int) -> list[dict[str, Any]]:
    """Cut a file of JSON lines back to its first lines; a crash on the way leaves it as it was.

    Args:
        path: The file.
        count: How many lines stay.

    Returns:
        What they hold.

    Raises:
        RunError: it has fewer, or cannot be read or written.
    """
    kept = read_lines(path)[:count]
    if len(kept) < count:
        raise RunError(f"{path}: has {len(kept)} whole lines, and the checkpoint is of {count} rounds")
    if path.exists():
        lines = path.read_bytes().split(b"\n")[:count]
        write_file(path, "".join(f"{line.decode()}\n" for line in lines))
    return kept
