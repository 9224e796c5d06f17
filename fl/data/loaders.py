"""Strict reading of a site's table: what does not fit the schema is refused where it lies."""

import csv
import dataclasses
import hashlib
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl.data.schema import CategoryColumn, Column, FlagColumn, NumberColumn, Schema
from fl.errors import DataError

# float() alone would also take "1_000", "nan" and digits of other scripts.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SiteData:
    """One site's rows, encoded.

    Attributes:
        name: The site.
        x: (rows, ...), read-only: float32 (rows, features) from a table; int32 where records are tokens. Zero rows are allowed.
        y: (rows, ...), read-only: int32, 0 or 1 from a table; another class, or float32 where it is a quantity.
        features: Names of a table's features; empty where a record is no row of a table.
        fingerprint: Hex SHA-256 of the site's whole table before any split: the name of the data set in ledgers. It
            is a hash of patients' rows, so it stays at the site or in a simulation's own folder.

    Raises:
        DataError: Shapes, types or values are not as above.

    Guarantees:
        `repr` shows no patient's values.
    """

    name: str
    x: NDArray[Any]
    y: NDArray[Any]
    features: tuple[str, ...]
    fingerprint: str

    def __post_init__(self) -> None:
        for what, values in (("x", self.x), ("y", self.y)):
            if values.dtype not in (np.float32, np.int32):
                raise DataError(f"site {self.name}: {what} must be float32 or int32, is {values.dtype}")
            if not np.isfinite(values).all():
                raise DataError(f"site {self.name}: {what} has values that are not finite")
        if self.x.ndim < 1 or self.y.ndim < 1 or len(self.x) != len(self.y):
            raise DataError(f"site {self.name}: x {self.x.shape} and y {self.y.shape} have not one row each per record")
        if self.features and (self.x.shape != (len(self.y), len(self.features)) or self.y.ndim != 1):
            raise DataError(
                f"site {self.name}: x {self.x.shape} and y {self.y.shape} do not fit a table of {len(self.features)} features"
            )
        if self.features and not np.isin(self.y, (0, 1)).all():
            raise DataError(f"site {self.name}: y has values other than 0 and 1")
        for field in ("x", "y"):
            # A view: the caller's own array stays writeable, this one cannot be changed by accident.
            view = getattr(self, field).view()
            view.flags.writeable = False
            object.__setattr__(self, field, view)

    def __repr__(self) -> str:
        return f"SiteData({self.name!r}, {len(self.y)} rows, {len(self.features)} features)"

    def take(self, rows: NDArray[np.intp]) -> "SiteData":
        """The site with some of its rows only; name and fingerprint stay the whole site's.

        Args:
            rows: Row indices, int (k,).
        """
        return dataclasses.replace(self, x=self.x[rows], y=self.y[rows])


def table_fingerprint(x: NDArray[Any], y: NDArray[Any]) -> str:
    """Names a data set that comes from arrays and not from a file, by its content.

    Args:
        x: float32 or int32 (rows, ...).
        y: float32 or int32 (rows, ...).

    Returns:
        Hex SHA-256 over shape and sorted rows, little-endian.

    Guarantees:
        The order of the rows, the site's name and the sign of zeros do not matter; any other change does.
    """
    parts = ((part + part.dtype.type(0)).astype(part.dtype.newbyteorder("<")) for part in (x, y))  # -0.0 becomes 0.0
    rows = sorted(row.tobytes() + label.tobytes() for row, label in zip(*parts, strict=True))
    digest = hashlib.sha256(b"fl.data/1 table")
    digest.update(np.array(x.shape, dtype="<u8").tobytes())
    for row in rows:
        digest.update(row)
    return digest.hexdigest()


def load_csv(path: str | Path, schema: Schema, *, name: str | None = None) -> SiteData:
    """Reads one site's CSV file: comma-separated, UTF-8, one header line; BOM and CRLF are understood.

    Spaces around cells and blank lines are skipped. A number outside its clinical range is clamped to it, one outside
    the plausible range is refused. Missing becomes 0 after scaling, and 1 in the column's `:missing` feature.

    Args:
        path: The file.
        schema: Its public description; where it names a site column, the file may have it or not.
        name: The site's name; by default the file's, without suffix.

    Returns:
        The encoded site; a file with a header and no rows is a site with no rows.

    Raises:
        DataError: The file does not fit the schema; the message names file, data row (from 1), line, column and cell.

    Guarantees:
        A row's encoding depends on this row and the schema only.
    """
    path = Path(path)
    table = _read_table(path)
    site_column = None if schema.sites is None else schema.sites.column
    positions = _find_columns(path, table.header, schema, optional=(site_column,))
    return _encode(path, table.rows, schema, positions, name=path.stem if name is None else name)


def load_records(path: str | Path, schema: Schema) -> NDArray[np.float32]:
    """Reads the records of a CSV file to be scored: as `load_csv`, and the label's column may be missing and is not read.

    Returns:
        float32 (rows, features); row i is data row i + 1 of the file.

    Raises:
        DataError: As for `load_csv`.
    """
    path = Path(path)
    table = _read_table(path)
    site_column = None if schema.sites is None else schema.sites.column
    positions = _find_columns(path, table.header, schema, optional=(site_column, schema.label.column))
    return _features(path, table.rows, schema, positions)


def load_csv_sites(path: str | Path, schema: Schema) -> dict[str, SiteData]:
    """Reads one CSV file that holds the rows of several sites, told apart by the schema's site column.

    Args:
        path: The file, as for `load_csv`.
        schema: Its public description, with `sites`.

    Returns:
        Name → site, every site of the schema in its order, those without rows too.

    Raises:
        DataError: As for `load_csv`; also an unknown site, or a schema without sites.
    """
    path = Path(path)
    if schema.sites is None:
        raise DataError(f"{path}: schema {schema.name!r} names no site column")
    table = _read_table(path)
    positions = _find_columns(path, table.header, schema, optional=())
    site_of_cell = {cell: name for name, cell in schema.sites.names.items()}
    rows_of: dict[str, list[_Row]] = {name: [] for name in schema.sites.names}
    for row in table.rows:
        cell = row.cells[positions[schema.sites.column]]
        if cell not in site_of_cell:
            raise _cell_error(path, row, schema.sites.column, cell, f"is no site; known: {_listed(site_of_cell)}")
        rows_of[site_of_cell[cell]].append(row)
    return {name: _encode(path, rows, schema, positions, name=name) for name, rows in rows_of.items()}


class _Row(NamedTuple):
    number: int  # data row, from 1
    line: int  # line of the file on which it starts, from 1
    cells: list[str]


class _Table(NamedTuple):
    header: list[str]
    rows: list[_Row]


def _read_table(path: Path) -> _Table:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: line {line} is not UTF-8 (save the file as UTF-8)") from error
    lines = _csv_lines(path, text)
    first = next(lines, None)
    if first is None:
        raise DataError(f"{path}: is empty; it needs a header line")
    rows: list[_Row] = []
    for number, (line, cells) in enumerate(lines, start=1):
        if len(cells) != len(first[1]):
            raise DataError(
                f"{path}: data row {number} (line {line}) has {len(cells)} cells, the header has {len(first[1])}"
                f"{' (a decimal comma, or a cell with a comma that needs quotes?)' if len(cells) > len(first[1]) else ''}"
            )
        rows.append(_Row(number, line, cells))
    return _Table(first[1], rows)


def _csv_lines(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """(first line, stripped cells) of every line that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{path}: line {line} is not CSV: {error}") from error
        if cells is None:
            return
        if cells:
            yield line, [cell.strip() for cell in cells]


def _find_columns(
    path: Path, header: list[str], schema: Schema, *, optional: tuple[str | None, ...]
) -> Mapping[str, int]:
    """Column name → position, after the header was checked against the schema."""
    positions: dict[str, int] = {}
    for position, column in enumerate(header):
        if column in positions:
            raise DataError(f"{path}: column {column!r} is in the header twice")
        positions[column] = position
    wanted = [column.name for column in schema.columns] + [schema.label.column]
    if schema.sites is not None:
        wanted.append(schema.sites.column)
    missing = [column for column in wanted if column not in positions and column not in optional]
    if missing:
        hint = next((f" (separated by {mark!r}? use commas)" for mark in ";\t|" if any(mark in c for c in header)), "")
        raise DataError(f"{path}: column {_listed(missing)} is missing from the header{hint}")
    extra = [column for column in header if column not in wanted and column not in schema.ignore]
    if extra:
        raise DataError(f"{path}: column {_listed(extra)} is not in schema {schema.name!r}, nor under its ignore")
    return positions


def _encode(path: Path, rows: list[_Row], schema: Schema, positions: Mapping[str, int], *, name: str) -> SiteData:
    x = _features(path, rows, schema, positions)
    y = np.zeros(len(rows), dtype=np.int32)
    meaning = dict.fromkeys(schema.label.positive, 1) | dict.fromkeys(schema.label.negative, 0)
    for index, row in enumerate(rows):
        cell = row.cells[positions[schema.label.column]]
        if cell in schema.missing:
            raise _cell_error(path, row, schema.label.column, cell, "is missing: the label must be there")
        if cell not in meaning:
            raise _cell_error(path, row, schema.label.column, cell, f"is no label; known: {_listed(meaning)}")
        y[index] = meaning[cell]
    return SiteData(name, x, y, schema.features, _file_fingerprint(rows, schema, positions, name))


def _features(path: Path, rows: list[_Row], schema: Schema, positions: Mapping[str, int]) -> NDArray[np.float32]:
    x = np.zeros((len(rows), len(schema.features)), dtype=np.float32)
    for index, row in enumerate(rows):
        x[index] = [
            value
            for column in schema.columns
            for value in _encode_cell(path, row, column, row.cells[positions[column.name]], schema.missing)
        ]
    return x


def _file_fingerprint(rows: list[_Row], schema: Schema, positions: Mapping[str, int], name: str) -> str:
    """Names a table by its raw cells, so that how they are encoded does not give the same patients a fresh ledger.

    The order of rows and columns, how a number or a missing value is spelt, the schema's ranges, levels and label, and the
    site's name do not matter; any changed, added or removed cell does, and gives another name. It is no defence against a site that edits its own data. A table
    without rows is named by its site, since two empty sites are not one data set.
    """
    site_column = None if schema.sites is None else schema.sites.column
    columns = sorted(column for column in positions if column not in schema.ignore and column != site_column)

    def plain(cell: str) -> str:
        if cell in schema.missing:
            return ""
        return repr(float(cell) + 0.0) if _NUMBER.fullmatch(cell) else cell

    def framed(cells: Iterable[str]) -> bytes:
        encoded = [plain(cell).encode() for cell in cells]
        return b"".join(len(cell).to_bytes(4, "big") + cell for cell in encoded)

    digest = hashlib.sha256(b"fl.data/1 file" + framed([str(len(columns)), *columns]))
    for row in sorted(framed(row.cells[positions[column]] for column in columns) for row in rows):
        digest.update(row)
    if not rows:
        digest.update(b"empty" + framed([name]))
    return digest.hexdigest()


def _encode_cell(path: Path, row: _Row, column: Column, cell: str, missing: tuple[str, ...]) -> list[float]:
    """The features of one cell, the missing indicator last."""
    if cell in missing:
        if not column.may_be_missing:
            raise _cell_error(path, row, column.name, cell, "is missing: the schema says it never is")
        return [0.0] * len(column.features) + [1.0]
    match column:
        case NumberColumn():
            values = [_scale(path, row, column, cell)]
        case CategoryColumn():
            if cell not in column.levels:
                raise _cell_error(path, row, column.name, cell, f"is no level; known: {_listed(column.levels)}")
            values = [float(cell == level) for level in column.levels]
        case FlagColumn():
            if cell not in column.yes + column.no:
                known = _listed(column.yes + column.no)
                raise _cell_error(path, row, column.name, cell, f"is neither yes nor no; known: {known}")
            values = [float(cell in column.yes)]
    return values + [0.0] * column.may_be_missing


def _scale(path: Path, row: _Row, column: NumberColumn, cell: str) -> float:
    if _DECIMAL_COMMA.fullmatch(cell):
        raise _cell_error(path, row, column.name, cell, f"has a decimal comma; write {cell.replace(',', '.')}")
    if _NOT_FINITE.fullmatch(cell):
        raise _cell_error(
            path, row, column.name, cell, "is not finite; a missing value needs one of the missing tokens"
        )
    if not _NUMBER.fullmatch(cell):
        raise _cell_error(path, row, column.name, cell, "is not a number")
    value = float(cell)
    if not math.isfinite(value) or not column.lowest <= value <= column.highest:
        limits = f"{column.lowest:g} to {column.highest:g} {column.unit}".rstrip()
        raise _cell_error(path, row, column.name, cell, f"is outside of what is plausible, {limits}")
    clamped = min(max(value, column.low), column.high)
    return (clamped - (column.low + column.high) / 2) / ((column.high - column.low) / 2)


def _cell_error(path: Path, row: _Row, column: str, cell: str, problem: str) -> DataError:
    shown = cell if len(cell) <= 40 else cell[:40] + "…"
    return DataError(f"{path}: data row {row.number} (line {row.line}), column {column!r}: {shown!r} {problem}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
