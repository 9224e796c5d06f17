"""Sites' records from a function of one's own: anything that is not a table."""

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np

from fl.data.loaders import SiteData, table_fingerprint
from fl.data.population import GeneratedPopulation, Population
from fl.errors import DataError
from fl.plugins import blame, import_function


def load_population(name: str, seed: int) -> tuple[Population, dict[str, SiteData]]:
    """Call "package.module:function" with the seed: a population of generated clients, and held-out records by name.

    Raises:
        ConfigError: there is no such function, or it raises anything.
        DataError: it does not give (population, {name: (x, y)}); the message names the function or the part.
    """
    function = import_function("data.population", name)
    with blame("data.population", name):
        found = function(seed)
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[0], GeneratedPopulation):
        raise DataError(f"data.population: {name} gives no (GeneratedPopulation, held-out records)")
    return found[0], _by_site("data.population", name, found[1])


def load_source(name: str, seed: int) -> dict[str, SiteData]:
    """Call "package.module:function" with the seed, and check what it gives.

    Args:
        name: A function of (seed) that gives {site: (x (rows, ...), y (rows, ...))}, arrays of floats or integers; floats
            become float32 and integers int32.
        seed: The experiment's.

    Raises:
        ConfigError: there is no such function, or it raises anything.
        DataError: it does not give that; the message names the function or the site.
    """
    function = import_function("data.source", name)
    with blame("data.source", name):
        found = function(seed)
    return _by_site("data.source", name, found)


def _by_site(key: str, name: str, found: Any) -> dict[str, SiteData]:  # noqa: ANN401 - whatever the function gives
    if not isinstance(found, Mapping) or not found:
        raise DataError(f"{key}: {name} gives a {type(found).__name__}, not records by site")
    names = [str(site) for site in found]
    for site, count in collections.Counter(names).items():
        if count > 1:
            raise DataError(f"{key}: {name} gives {count} sites {site}")
    return {site: _site(f"{key}: {name}", site, pair) for site, pair in zip(names, found.values(), strict=True)}


def _site(source: str, site: str, pair: Any) -> SiteData:  # noqa: ANN401 - as above
    try:
        x, y = pair
    except (TypeError, ValueError):
        raise DataError(f"{source} gives a {type(pair).__name__} for site {site}, not (x, y)") from None
    x, y = (_single(f"site {site}: {what}", part) for what, part in (("x", x), ("y", y)))
    if len(x) != len(y):
        raise DataError(f"site {site}: x has {len(x)} rows and y {len(y)}")
    return SiteData(name=site, x=x, y=y, features=(), fingerprint=table_fingerprint(x, y))


def _single(what: str, part: Any) -> np.ndarray[Any, Any]:  # noqa: ANN401 - as above
    try:
        values = np.asarray(part)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} is no array: {error}") from error
    if values.ndim < 1:
        raise DataError(f"{what} is a single value, not one for each record")
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite, and is refused by site
            return values.astype(np.float32)
    if values.dtype.kind not in "iu":
        raise DataError(f"{what} is an array of {values.dtype}, not of floats or integers")
    if values.size and not np.iinfo(np.int32).min <= values.min() <= values.max() <= np.iinfo(np.int32).max:
        raise DataError(f"{what} has integers beyond 32 bits")
    return values.astype(np.int32)
