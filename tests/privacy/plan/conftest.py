import json
from pathlib import Path

import pytest

from privacy.adaptive import AdaptiveClip
from privacy.plan import Plan

HEART = json.loads((Path(__file__).parents[2] / "heart_plan.json").read_text(encoding="utf-8"))


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
