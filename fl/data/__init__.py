"""Tables of patients or loans, one per site: schema, strict loaders, splits, and the bundled heart table."""

from fl.data.heart import load_heart
from fl.data.loaders import SiteData, load_csv, load_csv_sites, table_fingerprint
from fl.data.population import ArrayPopulation, GeneratedPopulation, Population
from fl.data.records import Arrays, Records
from fl.data.schema import CategoryColumn, FlagColumn, Label, NumberColumn, Schema, Sites, load_schema
from fl.data.source import load_population, load_source
from fl.data.splits import split_by_record

__all__ = [
    "ArrayPopulation",
    "Arrays",
    "CategoryColumn",
    "FlagColumn",
    "GeneratedPopulation",
    "Label",
    "NumberColumn",
    "Population",
    "Records",
    "Schema",
    "SiteData",
    "Sites",
    "load_csv",
    "load_csv_sites",
    "load_heart",
    "load_population",
    "load_schema",
    "load_source",
    "split_by_record",
    "table_fingerprint",
]
