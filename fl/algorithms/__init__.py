"""Federated algorithms as triples of pure functions: federated averaging, and record-level private gradient descent."""

from fl.algorithms.base import Algorithm, Mean, Records, Server, ServerState, optimizer
from fl.algorithms.dp_fedsgd import dp_fedsgd
from fl.algorithms.fedavg import ClippedEncoding, LocalTraining, SiteUpdate, WeightedEncoding, fedavg, weighted_mean

__all__ = [
    "Algorithm",
    "ClippedEncoding",
    "LocalTraining",
    "Mean",
    "Records",
    "Server",
    "ServerState",
    "SiteUpdate",
    "WeightedEncoding",
    "dp_fedsgd",
    "fedavg",
    "optimizer",
    "weighted_mean",
]
