"""Splits of one site's rows into parts."""

import hashlib
import math

import numpy as np

from fl.data.loaders import SiteData
from fl.errors import ConfigError


def stratified_split(site: SiteData, *, seed: int, test_fraction: float = 0.2) -> tuple[SiteData, SiteData]:
    """Splits a site's rows into train and test, class by class.

    A split is not a secret: the seed is public, and so is the site's name that it is mixed with.

    Args:
        site: The whole site.
        seed: At least 0.
        test_fraction: Share of each class that is tested on, rounded to the nearest row; strictly between 0 and 1.

    Returns:
        (train, test); rows keep their order, both keep the parent's name and fingerprint.

    Raises:
        ConfigError: `seed` or `test_fraction` is out of range.

    Guarantees:
        Every row is in exactly one part. The split depends on (site, seed, test_fraction) only. A class with two rows
        or more has at least one in each part; a class's only row is trained on.
    """
    if seed < 0:
        raise ConfigError(f"seed must be at least 0, is {seed}")
    if not 0 < test_fraction < 1:
        raise ConfigError(f"test_fraction must be strictly between 0 and 1, is {test_fraction}")
    name_word = int.from_bytes(hashlib.sha256(site.name.encode()).digest())
    generator = np.random.default_rng([seed, name_word])
    tested = np.zeros(len(site.y), dtype=bool)
    for label in (0, 1):
        rows = np.flatnonzero(site.y == label)
        if len(rows) < 2:
            continue
        count = min(max(math.floor(test_fraction * len(rows) + 0.5), 1), len(rows) - 1)
        tested[generator.permutation(rows)[:count]] = True
    return site.take(np.flatnonzero(~tested)), site.take(np.flatnonzero(tested))
