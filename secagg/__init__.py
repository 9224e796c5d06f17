"""Secure aggregation: a server learns the sum of its clients' integer vectors, and nothing else about them."""

from secagg.identity import Identity, Roster, ServerIdentity
from secagg.params import Block, RoundParams
from secagg.policy import ClientPolicy
from secagg.protocols.pairwise import ClientSession, ServerSession
from secagg.session import RoundOutcome, run_round

__all__ = [
    "Block",
    "ClientPolicy",
    "ClientSession",
    "Identity",
    "Roster",
    "RoundOutcome",
    "RoundParams",
    "ServerIdentity",
    "ServerSession",
    "run_round",
]
