"""Who shares secrets with whom, and how many neighbours and shares a round needs."""

from secagg.graph.topology import adds, is_chooser, neighbours, position

__all__ = ["adds", "is_chooser", "neighbours", "position"]
