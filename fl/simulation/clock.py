"""What a run's rounds would take over the consortium's network that its configuration describes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from fl.experiment import Experiment
from fl.rounds import RoundRecord
from fl.sections import Config
from fl.simulation.network import Consortium, Exchange, round_time
from secagg.params import PHASES
from secagg.sizes import frame_sizes

_MODEL_ENTRY = 4  # bytes of a parameter on its way down


def described(config: Config) -> Consortium | None:
    """The consortium's links and computers, or None where no network is described.

    Raises:
        ConfigError: a number is out of range; the message names the key.
    """
    network = config.network
    if network is None:
        return None
    return Consortium(
        upload=np.array([network.upload_mbit * 1e6]),
        download=np.array([network.download_mbit * 1e6]),
        latency_s=np.array([network.latency_ms * 1e-3]),
        speed=np.array([network.speed]),
        straggling=network.straggling,
        deadline_s=network.deadline_s,
        seed=config.seed,
    )


def simulated_clock(experiment: Experiment, history: Sequence[RoundRecord]) -> dict[str, Any] | None:
    """Seconds of every round and of the run, the model's own way to the sites included; None where no network is described.

    Bytes are those of the run's frames; where a simulation leaves the protocol out, those that its frames would have, and
    for a float mean one vector each way. Seconds are those that were measured.

    Args:
        experiment: What ran.
        history: Its committed rounds.
    """
    consortium = described(experiment.config)
    if consortium is None:
        return None
    predicted = _predicted(experiment)
    times = [
        round_time(consortium, _exchanges(experiment, record, predicted), _members(record), number=record.round)
        for record in history
    ]
    return {
        "seconds": sum(time.seconds for time in times),
        "rounds": [time.seconds for time in times],
        "late": sum(len(time.late) for time in times),
    }


def _members(record: RoundRecord) -> int:
    return len({*record.survivors, *record.dropped})


def _exchanges(
    experiment: Experiment, record: RoundRecord, predicted: dict[str, tuple[float, float]]
) -> dict[str, Exchange]:
    """By phase: bytes and seconds of the median client."""
    clients = _members(record)
    model = _MODEL_ENTRY * experiment.adapter.schema.dimension
    found = {}
    for phase in PHASES:
        up, down = (record.bytes[way].get(phase, 0) / clients for way in ("up", "down"))
        if not any(record.bytes["up"].values()):
            up, down = predicted[phase]
        found[phase] = Exchange(
            down=down + (model if phase == PHASES[0] else 0),
            up=up,
            client_s=record.seconds["client"].get(phase, 0.0),
            server_s=record.seconds["server"].get(phase, 0.0),
        )
    return found


def _predicted(experiment: Experiment) -> dict[str, tuple[float, float]]:
    """Bytes (up, down) of a client in each phase, where no frames are sent."""
    config, agreement = experiment.config, experiment.agreement
    if config.secagg.mode == "secure":
        return {}
    if config.secagg.mode == "plain":
        vector = _MODEL_ENTRY * experiment.adapter.schema.dimension
        return {phase: (vector if phase == "mask" else 0, 0) for phase in PHASES}
    count = config.simulation.cohort or len(agreement.sites)
    first = dataclasses.replace(agreement, sites={client: agreement.sites[client] for client in range(count)})
    sizes = frame_sizes(first.round_params(0, experiment.adapter.hash(experiment.adapter.params)))
    return {
        phase: (float(np.mean(list(sizes.up[phase].values()))), float(np.mean(list(sizes.down[phase].values()))))
        for phase in PHASES
    }
