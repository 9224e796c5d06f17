from pathlib import Path

import pytest

from fl.config import load_config
from fl.demo import heart
from fl.errors import ConfigError
from fl.sections import DpFedSgd

EXAMPLE = Path(__file__).parents[2] / "examples" / "heart.toml"


def test_the_example_is_the_demo():
    """The shipped TOML file and the demo's settings are the same experiment."""
    assert load_config(EXAMPLE) == heart(seed=0)


def test_the_demo_is_what_it_claims():
    """Patient level at ε = 1 and δ = 1e-4, real protocol with hybrid keys, one dropout and one colluder planned."""
    config = heart()
    assert isinstance(config.algorithm, DpFedSgd)
    assert (config.privacy.unit, config.privacy.epsilon, config.privacy.delta) == ("record", 1.0, 1e-4)
    assert (config.privacy.dropouts, config.privacy.colluders) == (1, 1)
    assert (config.secagg.mode, config.secagg.suite) == ("secure", "hybrid")
    assert config.simulation.drop_rate == 0.2


def test_a_budget_out_of_range_is_refused():
    """The demo's options go through the same checks as a file's keys."""
    with pytest.raises(ConfigError, match=r"privacy\.epsilon: expected `float` > 0"):
        heart(epsilon=0)
