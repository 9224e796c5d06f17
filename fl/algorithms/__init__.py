"""Federated algorithms as data: pure functions on both sides of the sum."""

from fl.algorithms.base import Algorithm, LocalResult, Mean, ServerState
from fl.algorithms.dp_fedsgd import dp_fedsgd
from fl.algorithms.encoding import ClippedEncoding, SiteUpdate, WeightedEncoding
from fl.algorithms.fedavg import fedavg
from fl.algorithms.plain import plain_mean
from fl.algorithms.scaffold import scaffold
from fl.algorithms.server import Server, optimizer
from fl.algorithms.training import LocalTraining

__all__ = [
    "Algorithm",
    "ClippedEncoding",
    "LocalResult",
    "LocalTraining",
    "Mean",
    "Server",
    "ServerState",
    "SiteUpdate",
    "WeightedEncoding",
    "dp_fedsgd",
    "fedavg",
    "optimizer",
    "plain_mean",
    "scaffold",
]
