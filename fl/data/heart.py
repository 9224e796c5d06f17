"""The bundled heart-disease table: 918 patients of four hospitals [UCI-HEART]."""

from pathlib import Path

from fl.data.loaders import SiteData, load_csv_sites
from fl.data.schema import load_schema

HEART_FOLDER = Path(__file__).with_name("heart_disease")


def load_heart() -> dict[str, SiteData]:
    """The four hospitals, encoded by the public schema beside the table.

    Returns:
        Name → hospital, always in the order cleveland, hungary, switzerland, va_long_beach. `x` is float32
        (rows, 32), `y` is int32 (rows,): 1 for disease (`num` above 0).

    Guarantees:
        No hospital's encoding depends on any hospital's data: ranges and levels come from the schema.
    """
    return load_csv_sites(HEART_FOLDER / "heart.csv", load_schema(HEART_FOLDER / "schema.toml"))
