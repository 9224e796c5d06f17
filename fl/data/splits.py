"""Splits of one site's rows into parts."""

import collections
import hashlib

import numpy as np

from fl.data.loaders import SiteData
from fl.errors import ConfigError

_UNITS = 2**64


def split_by_record(site: SiteData, *, seed: int, test_fraction: float = 0.2) -> tuple[SiteData, SiteData]:
    """Splits a site's rows into train and test, each record by itself.

    A record is held out when a number that its own content gives, uniform in [0, 1), is below `test_fraction`. So the share
    of each class that is held out is `test_fraction` in expectation; a small class may be absent from a part. To make the
    shares exact, a record's part would have to depend on other patients' records, and then removing one patient would change
    more of the training data than that patient, which the privacy claim for a record does not allow.

    A split is not a secret: the seed is public, and so is the site's name that it is mixed with.

    Args:
        site: The whole site.
        seed: At least 0.
        test_fraction: Probability that a record is held out; strictly between 0 and 1.

    Returns:
        (train, test); rows keep their order, both keep the parent's name and fingerprint.

    Raises:
        ConfigError: `seed` or `test_fraction` is out of range.

    Guarantees:
        Every row is in exactly one part. Removing, adding or changing one record changes no other record's part.
    """
    if seed < 0:
        raise ConfigError(f"seed must be at least 0, is {seed}")
    if not 0 < test_fraction < 1:
        raise ConfigError(f"test_fraction must be strictly between 0 and 1, is {test_fraction}")
    prefix = hashlib.sha256(f"fl.data/1 split {seed} {site.name}".encode()).digest()
    copies: collections.Counter[bytes] = collections.Counter()
    tested = np.zeros(len(site.y), dtype=bool)
    for index, (row, label) in enumerate(zip(site.x, site.y, strict=True)):
        record = row.tobytes() + label.tobytes()
        # Identical records are told apart by how many come before: as sets of records, any of them may be the one that leaves.
        drawn = hashlib.sha256(prefix + copies[record].to_bytes(8, "big") + record).digest()
        tested[index] = int.from_bytes(drawn[:8], "big") < test_fraction * _UNITS
        copies[record] += 1
    return site.take(np.flatnonzero(~tested)), site.take(np.flatnonzero(tested))
