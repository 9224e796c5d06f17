"""How many seconds does Flower's simulation take for a round of FedAvg? Run by an interpreter that has Flower, Ray and JAX.

Prints one JSON line. Flower's `run_simulation` with its Ray backend, a `ClientApp`, and a `ServerApp` whose `FedAvg` asks every
client to train and none to evaluate. A client trains in one compiled JAX program; an actor compiles it once and holds the data
of all clients, since Ray imports this file as a module there. Each actor has one CPU.
"""

import argparse
import functools
import importlib.metadata
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import BATCH, CLIENTS, EXAMPLES, FEATURES, RATE, line, task


@functools.cache
def programs() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The compiled local training (parameters, x, y) -> parameters, and the compiled mean loss of the same arguments."""
    import jax  # noqa: PLC0415 - where it runs: in an actor, and here for the last loss
    import jax.numpy as jnp  # noqa: PLC0415

    def loss(params: list[Any], x: Any, y: Any) -> Any:  # noqa: ANN401 - traced arrays
        w1, b1, w2, b2 = params
        scores = jax.nn.log_softmax(jax.nn.relu(x @ w1 + b1) @ w2 + b2)
        return -jnp.take_along_axis(scores, y[:, None], axis=1).mean()

    def step(params: list[Any], batch: tuple[Any, Any]) -> tuple[list[Any], None]:
        return [p - RATE * g for p, g in zip(params, jax.grad(loss)(params, *batch), strict=True)], None

    def train(params: list[Any], x: Any, y: Any) -> Any:  # noqa: ANN401
        batches = x.reshape(-1, BATCH, FEATURES), y.reshape(-1, BATCH)
        return jax.lax.scan(step, params, batches)[0]

    return jax.jit(train), jax.jit(loss)


def train_client(message: Any, context: Any) -> Any:  # noqa: ANN401 - types of a package that only this interpreter has
    """What a client does with a message: trains on its own data and answers with the new parameters."""
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict  # noqa: PLC0415

    x, y, _ = task()
    client = int(context.node_config["partition-id"])
    params = programs()[0](message.content["arrays"].to_numpy_ndarrays(), x[client], y[client])
    arrays = ArrayRecord([np.asarray(leaf) for leaf in params])
    metrics = MetricRecord({"num-examples": EXAMPLES})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def run(warmup: int, rounds: int, cpus: float) -> tuple[list[float], float]:
    """The seconds of every round after the warm-up, and the loss on all training data at the end."""
    from flwr.app import ArrayRecord  # noqa: PLC0415
    from flwr.clientapp import ClientApp  # noqa: PLC0415
    from flwr.serverapp import ServerApp  # noqa: PLC0415
    from flwr.serverapp.strategy import FedAvg  # noqa: PLC0415
    from flwr.simulation import run_simulation  # noqa: PLC0415

    logging.getLogger("flwr").setLevel(logging.ERROR)
    x, y, first = task()
    ends: list[float] = []
    last: list[Any] = []
    client, server = ClientApp(), ServerApp()
    client.train()(train_client)

    def note(_round: int, arrays: Any) -> None:  # noqa: ANN401
        ends.append(time.perf_counter())
        last[:] = [arrays]

    @server.main()  # type: ignore[untyped-decorator]
    def serve(grid: Any, _context: Any) -> None:  # noqa: ANN401
        strategy = FedAvg(
            fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS
        )
        strategy.start(grid, ArrayRecord(first), num_rounds=warmup + rounds, evaluate_fn=note)

    backend = {"client_resources": {"num_cpus": cpus, "num_gpus": 0.0}, "init_args": {"logging_level": "error"}}
    run_simulation(server, client, num_supernodes=CLIENTS, backend_config=backend)
    loss = programs()[1](last[0].to_numpy_ndarrays(), x.reshape(-1, FEATURES), y.reshape(-1))
    return np.diff(ends[warmup:]).tolist(), float(loss)


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warmup", type=int, default=3, help="rounds before the clock counts; default 3")
    parser.add_argument("--rounds", type=int, default=20, help="rounds that count; default 20")
    parser.add_argument("--cpus", type=float, default=1.0, help="CPUs that Ray reserves for a client; default 1")
    return parser.parse_args()


def main() -> None:
    """Print one JSON line."""
    chosen = options()
    os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "JAX_PLATFORMS": "cpu"}
    sys.path.insert(0, str(Path(__file__).parent))
    # By this name an actor imports the functions; from the script itself they would travel, and compile, with every message.
    import flower_round  # noqa: PLC0415

    seconds, loss = flower_round.run(chosen.warmup, chosen.rounds, chosen.cpus)
    print(
        line(
            "Flower",
            "flwr",
            f"Ray {importlib.metadata.version('ray')}, JAX {importlib.metadata.version('jax')}, {chosen.cpus:g} CPUs a client",
            seconds,
            loss,
        )
    )


if __name__ == "__main__":
    main()
