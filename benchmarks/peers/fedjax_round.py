"""How many seconds does FedJAX take for a round of FedAvg? Run by an interpreter that has FedJAX; prints one JSON line.

FedJAX's own `fed_avg.federated_averaging`, its model built from Haiku, clients in memory. `--backend` chooses how its
`for_each_client` runs: `jit` (its default), `pmap` over as many CPU devices as `--devices` asks for, or `debug`. Examples are
not shuffled: all that are compared then take the same steps, and FedJAX is spared the permutation.
"""

import argparse
import importlib.metadata
import os
import time
from typing import Any

from common import BATCH, CLASSES, CLIENTS, FEATURES, HIDDEN, RATE, line, task


def build(x: Any, y: Any) -> Any:  # noqa: ANN401 - a type of a package that only this interpreter has
    """The model as FedJAX wants it: 784-128-10 with ReLU; the training loss of every example."""
    import fedjax  # noqa: PLC0415 - after the environment says how many devices there are, here and below
    import haiku  # noqa: PLC0415
    import jax  # noqa: PLC0415

    def forward(batch: Any) -> Any:  # noqa: ANN401
        layers = [haiku.Linear(HIDDEN, name="first"), jax.nn.relu, haiku.Linear(CLASSES, name="second")]
        return haiku.Sequential(layers)(batch["x"])

    def loss(batch: Any, logits: Any) -> Any:  # noqa: ANN401
        return fedjax.metrics.unreduced_cross_entropy_loss(batch["y"], logits)

    sample = {"x": x[0, :BATCH], "y": y[0, :BATCH]}
    return fedjax.create_model_from_haiku(haiku.transform(forward), sample, loss)


def run(warmup: int, rounds: int, backend: str) -> tuple[list[float], float]:
    """The seconds of every round after the warm-up, and the loss on all training data at the end."""
    import fedjax  # noqa: PLC0415
    import jax  # noqa: PLC0415
    from fedjax.algorithms import fed_avg  # noqa: PLC0415

    x, y, (w1, b1, w2, b2) = task()
    model = build(x, y)
    clients = [
        (str(i), fedjax.ClientDataset({"x": x[i], "y": y[i]}), key)
        for i, key in enumerate(jax.random.split(jax.random.PRNGKey(0), CLIENTS))
    ]
    with fedjax.for_each_client_backend(backend):
        algorithm = fed_avg.federated_averaging(
            fedjax.model_grad(model),
            fedjax.optimizers.sgd(RATE),
            fedjax.optimizers.sgd(1.0),
            fedjax.ShuffleRepeatBatchHParams(batch_size=BATCH, num_epochs=1, skip_shuffle=True),
        )
    state = algorithm.init(jax.device_put({"first": {"w": w1, "b": b1}, "second": {"w": w2, "b": b2}}))
    seconds = []
    for _ in range(warmup + rounds):
        start = time.perf_counter()
        state, _ = algorithm.apply(state, clients)
        jax.block_until_ready(state.params)  # type: ignore[no-untyped-call]
        seconds.append(time.perf_counter() - start)
    everything = {"x": x.reshape(-1, FEATURES), "y": y.reshape(-1)}
    logits = model.apply_for_eval(state.params, everything)
    return seconds[warmup:], float(model.train_loss(everything, logits).mean())


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warmup", type=int, default=3, help="rounds before the clock counts; default 3")
    parser.add_argument("--rounds", type=int, default=20, help="rounds that count; default 20")
    parser.add_argument("--backend", choices=("jit", "pmap", "debug"), default="jit", help="default jit")
    parser.add_argument("--devices", type=int, default=1, help="CPU devices that JAX sees; default 1")
    return parser.parse_args()


def main() -> None:
    """Print one JSON line."""
    chosen = options()
    os.environ["JAX_PLATFORMS"] = "cpu"
    if chosen.devices > 1:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={chosen.devices}"
    seconds, loss = run(chosen.warmup, chosen.rounds, chosen.backend)
    print(
        line(
            "FedJAX",
            "fedjax",
            f"JAX {importlib.metadata.version('jax')}, {chosen.backend}, {chosen.devices} CPU devices",
            seconds,
            loss,
        )
    )


if __name__ == "__main__":
    main()
