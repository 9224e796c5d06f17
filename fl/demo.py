"""The bundled demonstration: four hospitals, patient-level privacy, one hospital that goes silent now and then."""

from fl.config import build_config
from fl.sections import Config


def heart(*, seed: int = 0, rounds: int = 40, epsilon: float = 1.0) -> Config:
    """The experiment of examples/heart.toml.

    Args:
        seed: Split, initial model and planned silences.
        rounds: How many.
        epsilon: The budget, at δ = 1e-4.

    Raises:
        ConfigError: a value is out of range; the message names its key.
    """
    return build_config(
        {
            "name": "heart",
            "seed": seed,
            "rounds": rounds,
            "data": {"bundled": "heart"},
            "model": {"kind": "logistic"},
            "algorithm": {"name": "dp_fedsgd"},
            "server": {"optimizer": "sgd", "learning_rate": 2.0, "average": "last_half"},
            "privacy": {
                "epsilon": epsilon,
                "delta": 1e-4,
                "unit": "record",
                "clip": 0.35,
                "records_per_site": 303,
                "divisor": 720,
                "colluders": 1,
                "dropouts": 1,
            },
            "secagg": {"mode": "secure", "suite": "hybrid"},
            "simulation": {"drop_rate": 0.2, "baselines": True},
        }
    )
