"""The pairwise-masking protocol [BIK+17] [BBG+20], as docs/protocol.md describes it."""

from secagg.protocols.pairwise.client import ClientSession, decline
from secagg.protocols.pairwise.server import Result, ServerSession

__all__ = ["ClientSession", "Result", "ServerSession", "decline"]
