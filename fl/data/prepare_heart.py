"""Turns the UCI heart table, as found, into `heart_disease/heart.csv`: `python -m fl.data.prepare_heart ORIGINAL.csv heart.csv`."""

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from fl.errors import DataError

HUNGARIAN_ROW_ID = "304"
ZERO_MEANS_MISSING = ("trestbps", "chol")
COLUMNS = ("id", "dataset", *ZERO_MEANS_MISSING)

Row = dict[str, str]


def prepare(rows: Sequence[Row]) -> tuple[list[Row], dict[str, list[str]]]:
    """Mends the table's known flaws; everything else stays as it was found, ids and order too.

    Args:
        rows: The original rows, cells as text.

    Returns:
        The prepared rows, and for each flaw the ids of the rows it was mended in.

    Raises:
        DataError: A flaw is not where it is known to be, so this is another table.
    """
    prepared: list[Row] = []
    mended: dict[str, list[str]] = {"moved to Hungary": [], "zero to missing": [], "duplicate dropped": []}
    seen: set[tuple[tuple[str, str], ...]] = set()
    for number, original in enumerate(rows, start=1):
        row = dict(original)
        absent = [column for column in COLUMNS if row.get(column) is None]
        if absent:
            raise DataError(f"data row {number} has no {absent[0]!r}: is it the table that the notice names?")
        # Row 304 opens UCI's Hungarian file; only this copy of the table labels it Cleveland.
        if row["id"] == HUNGARIAN_ROW_ID and row["dataset"] == "Cleveland":
            row["dataset"] = "Hungary"
            mended["moved to Hungary"].append(row["id"])
        for column in ZERO_MEANS_MISSING:
            if row[column] in {"0", "0.0"}:
                row[column] = ""
                mended["zero to missing"].append(row["id"])
        content = tuple((column, cell) for column, cell in row.items() if column != "id")
        if content in seen:
            mended["duplicate dropped"].append(row["id"])
            continue
        seen.add(content)
        prepared.append(row)
    for flaw, ids in mended.items():
        if not ids:
            raise DataError(f"the original has no row to be mended by '{flaw}': is it the table that the notice names?")
    return prepared, mended


def to_csv(rows: Sequence[Row]) -> str:
    """Rows as CSV text with a header; lines end in a line feed."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def main(arguments: Sequence[str]) -> int:
    """Writes the prepared table and says what was mended.

    Args:
        arguments: The path of the original, and of the table to be written.

    Returns:
        The exit code: 0, 1 if the original is not the known table, 2 for wrong arguments.
    """
    if len(arguments) != 2:
        sys.stderr.write("usage: python -m fl.data.prepare_heart ORIGINAL.csv PREPARED.csv\n")
        return 2
    original, prepared = map(Path, arguments)
    try:
        with original.open(encoding="utf-8", newline="") as file:
            rows, mended = prepare(list(csv.DictReader(file)))
    except (DataError, OSError) as error:
        sys.stderr.write(f"{original}: {error}\n")
        return 1
    prepared.write_text(to_csv(rows), encoding="utf-8", newline="")
    for flaw, ids in mended.items():
        sys.stdout.write(f"{flaw}: {len(ids)} ({', '.join(ids[:5])}{', …' if len(ids) > 5 else ''})\n")
    sys.stdout.write(f"{len(rows)} rows written\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
