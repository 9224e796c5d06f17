import pytest

from privacy.adaptive import AdaptiveClip
from privacy.plan import Plan

HEART = {
    "unit": "record",
    "relation": "add-remove",
    "sites": 4,
    "dropouts": 1,
    "colluders": 1,
    "clip": 1.0,
    "records_per_site": 303,
    "dimension": 40,
    "rounds": 40,
    "delta": 1e-4,
    "epsilon": 1.0,
    "divisor": 720.0,
}


@pytest.fixture
def heart():
    """Makes the heart plan, changed; a field that is None is left out."""

    def make(**changes):
        return Plan.solve(**{name: value for name, value in (HEART | changes).items() if value is not None})

    return make


@pytest.fixture
def adaptive():
    """A clip norm that follows the median of some 720 records."""
    return AdaptiveClip(quantile=0.5, learning_rate=0.2, bit_noise=36.0, expected=720.0, min_clip=0.01, max_clip=100.0)
