"""Who shares secrets with whom, and how many neighbours and shares a round needs."""

from secagg.graph.degree import CORRECTNESS_BITS, SECURITY_BITS, Bounds, Degree, bounds, choose
from secagg.graph.topology import Graph, build

__all__ = ["CORRECTNESS_BITS", "SECURITY_BITS", "Bounds", "Degree", "Graph", "bounds", "build", "choose"]
