"""Tables of patients or loans, one per site: schema, strict loaders, splits, and the bundled heart table."""

from fl.data.heart import load_heart
from fl.data.loaders import SiteData, load_csv, load_csv_sites, table_fingerprint
from fl.data.schema import CategoryColumn, FlagColumn, Label, NumberColumn, Schema, Sites, load_schema
from fl.data.splits import split_by_record

__all__ = [
    "CategoryColumn",
    "FlagColumn",
    "Label",
    "NumberColumn",
    "Schema",
    "SiteData",
    "Sites",
    "load_csv",
    "load_csv_sites",
    "load_heart",
    "load_schema",
    "split_by_record",
    "table_fingerprint",
]
