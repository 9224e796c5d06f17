"""How many seconds does pfl take for a round of FedAvg? Run by an interpreter that has pfl and PyTorch; prints one JSON line.

pfl's own simulation: `FederatedAveraging` on a `SimulatedBackend` with its default sum aggregator, users as tensors in memory,
no callback but the clock, metrics neither evaluated nor printed after round 0. With `--workers 2` the cohort is shared between
processes of one thread each, as pfl's chapter on fast simulations does it.
"""

import argparse
import importlib.metadata
import os
import socket
import subprocess
import sys
import time
from typing import Any

import numpy as np
from common import BATCH, CLASSES, CLIENTS, EXAMPLES, FEATURES, HIDDEN, RATE, line, task


def build(params: list[Any]) -> Any:  # noqa: ANN401 - a type of a package that only this interpreter has, here and below
    """The model: what pfl asks of a PyTorch module."""
    import torch  # noqa: PLC0415 - after the environment says how many workers there are, here and below

    class Network(torch.nn.Module):  # type: ignore[misc]
        """784-128-10 with ReLU."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(FEATURES, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, CLASSES)
            )

        def loss(self, x: Any, y: Any) -> Any:  # noqa: ANN401
            return torch.nn.functional.cross_entropy(self.layers(x), y)

        def metrics(self, x: Any, y: Any) -> dict[str, Any]:  # noqa: ANN401
            from pfl.metrics import Weighted  # noqa: PLC0415

            return {"loss": Weighted(self.loss(x, y).item() * len(x), len(x))}

    network = Network()
    with torch.no_grad():
        for target, value in zip(network.parameters(), params, strict=True):
            target.copy_(torch.from_numpy(value.T.copy()))
    return network


def run(warmup: int, rounds: int) -> tuple[list[float], float]:
    """The seconds of every round after the warm-up, and the loss on all training data at the end."""
    import torch  # noqa: PLC0415
    from pfl.aggregate.simulate import SimulatedBackend  # noqa: PLC0415
    from pfl.algorithm.base import NNAlgorithmParams  # noqa: PLC0415
    from pfl.algorithm.federated_averaging import FederatedAveraging  # noqa: PLC0415
    from pfl.callback.base import TrainingProcessCallback  # noqa: PLC0415
    from pfl.data.federated_dataset import FederatedDataset  # noqa: PLC0415
    from pfl.data.pytorch import PyTorchTensorDataset  # noqa: PLC0415
    from pfl.data.sampling import get_user_sampler  # noqa: PLC0415
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams  # noqa: PLC0415
    from pfl.metrics import Metrics  # noqa: PLC0415
    from pfl.model.pytorch import PyTorchModel  # noqa: PLC0415

    x, y, params = task()
    network = build(params)
    users = [
        PyTorchTensorDataset((torch.from_numpy(x[i]), torch.from_numpy(y[i])), user_id=str(i)) for i in range(CLIENTS)
    ]
    cohort = FederatedDataset(users.__getitem__, get_user_sampler("minimize_reuse", range(CLIENTS)))
    ends: list[float] = []

    class Watch(TrainingProcessCallback):  # type: ignore[misc]
        """Notes when a round ended."""

        def after_central_iteration(self, *_: object, **__: object) -> tuple[bool, Metrics]:
            ends.append(time.perf_counter())
            return False, Metrics()

    model = PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), 1.0))
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=warmup + rounds,
            evaluation_frequency=warmup + rounds,
            train_cohort_size=CLIENTS,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=cohort, val_data=cohort),
        model=model,
        model_train_params=NNTrainHyperParams(local_num_epochs=1, local_learning_rate=RATE, local_batch_size=BATCH),
        model_eval_params=NNEvalHyperParams(local_batch_size=EXAMPLES),
        callbacks=[Watch()],
        send_metrics_to_platform=False,
    )
    with torch.no_grad():
        loss = float(network.loss(torch.from_numpy(x.reshape(-1, FEATURES)), torch.from_numpy(y.reshape(-1))))
    return np.diff(ends[warmup - 1 :]).tolist(), loss


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warmup", type=int, default=3, help="rounds before the clock counts, at least 1; default 3")
    parser.add_argument("--rounds", type=int, default=20, help="rounds that count; default 20")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the cohort; default 1")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads in each process; default 1")
    parser.add_argument("--addresses", help="where the workers meet; set for the others by the first")
    parser.add_argument("--rank", type=int, default=0, help="which worker this is; set for the others by the first")
    return parser.parse_args()


def start_others(workers: int) -> tuple[str, list[subprocess.Popen[bytes]]]:
    """Starts every worker but this one; where all meet, and their processes."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    addresses = ",".join(f"localhost:{port + i}" for i in range(workers))
    command = [sys.executable, *sys.argv, "--addresses", addresses]
    return addresses, [
        subprocess.Popen([*command, "--rank", str(rank)], stdout=subprocess.DEVNULL)  # noqa: S603 - this very script
        for rank in range(1, workers)
    ]


def main() -> None:
    """Print one JSON line."""
    chosen = options()
    addresses: str | None = chosen.addresses
    others: list[subprocess.Popen[bytes]] = []
    if chosen.workers > 1 and addresses is None:
        addresses, others = start_others(chosen.workers)
    if addresses:
        os.environ |= {"PFL_WORKER_ADDRESSES": addresses, "PFL_WORKER_RANK": str(chosen.rank)}
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)
    try:
        seconds, loss = run(chosen.warmup, chosen.rounds)
    finally:
        for other in others:
            other.wait(60)
    print(
        line(
            "pfl",
            "pfl",
            f"PyTorch {importlib.metadata.version('torch')}, {chosen.workers} x {chosen.threads} threads",
            seconds,
            loss,
        )
    )


if __name__ == "__main__":
    main()
