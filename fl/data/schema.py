"""The public description of a table: columns, ranges, levels, label; everything that scaling may know.

Nothing here is measured on data. Ranges and levels are public knowledge agreed on before training, so that scaling
and one-hot encoding release nothing about a patient.
"""

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path

import msgspec
import rfc8785

from fl.errors import ConfigError


class NumberColumn(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="number"
):
    """A measurement, scaled by its public range: `(x - middle) / half-range`.

    Attributes:
        name: Column name in the table's header.
        low: Lower end of the public range, in `unit`; encoded as -1.
        high: Upper end; encoded as +1. Values between the range and the plausible limits are clamped to -1 or +1.
        lowest: Smallest value that can be a measurement at all; below it the row is refused.
        highest: Largest such value.
        unit: Unit of measurement, for people.
        may_be_missing: Whether a missing token is allowed; it adds the feature `name:missing`.
    """

    name: str
    low: float
    high: float
    lowest: float
    highest: float
    unit: str = ""
    may_be_missing: bool = False

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.low, self.high, self.lowest, self.highest))):
            raise ValueError(f"column {self.name!r}: low, high, lowest and highest must be finite")
        if not self.lowest <= self.low < self.high <= self.highest:
            raise ValueError(
                f"column {self.name!r}: needs lowest <= low < high <= highest, "
                f"has {self.lowest:g}, {self.low:g}, {self.high:g}, {self.highest:g}"
            )

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that the column becomes, without the missing indicator."""
        return (self.name,)


class CategoryColumn(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="category"
):
    """A category with public levels, one-hot encoded.

    Attributes:
        name: Column name in the table's header.
        levels: Every level that may occur, in feature order.
        may_be_missing: Whether a missing token is allowed; it adds the feature `name:missing`.
    """

    name: str
    levels: tuple[str, ...]
    may_be_missing: bool = False

    def __post_init__(self) -> None:
        _check_distinct(self.levels, f"column {self.name!r}: levels")
        if len(self.levels) < 2:
            raise ValueError(f"column {self.name!r}: needs at least two levels, has {len(self.levels)}")

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that the column becomes, without the missing indicator."""
        return tuple(f"{self.name}={level}" for level in self.levels)


class FlagColumn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="flag"):
    """A yes-or-no column, encoded as 1 or 0.

    Attributes:
        name: Column name in the table's header.
        yes: Cells that mean 1.
        no: Cells that mean 0.
        may_be_missing: Whether a missing token is allowed; it adds the feature `name:missing`.
    """

    name: str
    yes: tuple[str, ...]
    no: tuple[str, ...]
    may_be_missing: bool = False

    def __post_init__(self) -> None:
        _check_both_sides(self.yes, self.no, f"column {self.name!r}: yes and no")

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that the column becomes, without the missing indicator."""
        return (self.name,)


Column = NumberColumn | CategoryColumn | FlagColumn


class Label(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The binary label.

    Attributes:
        column: Column name in the table's header; never missing.
        positive: Cells that mean 1.
        negative: Cells that mean 0.
    """

    column: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_both_sides(self.positive, self.negative, f"label {self.column!r}: positive and negative")


class Sites(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How one table of several sites is told apart.

    Attributes:
        column: Column that says whose row it is.
        names: Site name → cell in that column, in the fixed order of the sites.
    """

    column: str
    names: dict[str, str]

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError(f"sites {self.column!r}: names is empty")
        _check_distinct(self.names.values(), f"sites {self.column!r}: names")


class Schema(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table's public description.

    Attributes:
        name: What the table is called.
        label: The binary label.
        columns: The columns that become features, in feature order.
        missing: Cells that mean "not measured".
        ignore: Columns that may be in the file and are never read, such as a row id.
        sites: For a table that holds several sites.

    Guarantees:
        Schemas that differ in any key or value have different hashes; comments and layout of the TOML do not matter.
    """

    name: str
    label: Label
    columns: tuple[Column, ...]
    missing: tuple[str, ...] = ("",)
    ignore: tuple[str, ...] = ()
    sites: Sites | None = None

    def __post_init__(self) -> None:
        if not self.columns:
            raise ValueError("columns is empty")
        site_column = () if self.sites is None else (self.sites.column,)
        names = [column.name for column in self.columns]
        _check_distinct([*names, self.label.column, *self.ignore, *site_column], "column names")
        _check_distinct(self.features, "feature names")
        _check_distinct(self.missing, "missing")
        for owner, cells in self._meaningful_cells():
            for cell in cells:
                if cell in self.missing:
                    raise ValueError(f"{owner}: {cell!r} is also listed under missing")
                if cell != cell.strip():
                    raise ValueError(f"{owner}: {cell!r} has spaces around it; cells are read without them")

    def _meaningful_cells(self) -> Iterable[tuple[str, tuple[str, ...]]]:
        """Every list of cells that carry a meaning, with its owner's name."""
        yield f"label {self.label.column!r}", self.label.positive + self.label.negative
        for column in self.columns:
            match column:
                case CategoryColumn():
                    yield f"column {column.name!r}", column.levels
                case FlagColumn():
                    yield f"column {column.name!r}", column.yes + column.no
                case NumberColumn():
                    pass

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the encoded features, in order."""
        return tuple(
            name
            for column in self.columns
            for name in (*column.features, *((f"{column.name}:missing",) if column.may_be_missing else ()))
        )

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of the canonical JSON [RFC8785] of every field."""
        return hashlib.sha256(rfc8785.dumps(msgspec.to_builtins(self))).hexdigest()


def load_schema(path: str | Path) -> Schema:
    """Reads a schema from TOML.

    Args:
        path: The TOML file.

    Returns:
        The checked schema.

    Raises:
        ConfigError: The file cannot be read, is not TOML, has an unknown or missing key, or contradicts itself; the
            message names file and key.
    """
    try:
        return msgspec.toml.decode(Path(path).read_bytes(), type=Schema)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML in UTF-8: {error}") from error


def _check_distinct(items: Iterable[str], what: str) -> None:
    seen: set[str] = set()
    for item in items:
        if item in seen:
            raise ValueError(f"{what}: {item!r} is there twice")
        seen.add(item)


def _check_both_sides(ones: tuple[str, ...], zeros: tuple[str, ...], what: str) -> None:
    if not ones or not zeros:
        raise ValueError(f"{what}: each needs at least one cell")
    _check_distinct((*ones, *zeros), what)
