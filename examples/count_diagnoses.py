"""Three hospitals add up how often they saw each diagnosis; the server learns the totals and nothing else. No JAX, no model.

Each hospital is a process of its own that talks to the server through a pipe, as it would through a socket: bytes go in, bytes come out. What it
counts is a dictionary; the diagnoses that everybody counts are agreed on beforehand, since their number and order are public.

    python examples/count_diagnoses.py
"""

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np

from secagg import Block, ClientPolicy, ClientSession, Identity, Roster, RoundParams, ServerIdentity, run_round
from secagg.errors import PolicyError, SecaggError
from secagg.guard import FileGuard
from secagg.protocols.pairwise import decline

DIAGNOSES = ("asthma", "diabetes", "influenza", "migraine", "pneumonia")
MOST = 100_000
BLOCKS = (Block("counts", length=len(DIAGNOSES), bits=32, bound=MOST),)
COUNTS = {
    1: {"asthma": 120, "diabetes": 410, "influenza": 87},
    2: {"asthma": 64, "migraine": 33, "pneumonia": 12},
    3: {"diabetes": 205, "influenza": 310, "migraine": 8, "pneumonia": 41},
}


def hospital(pipe: Connection, identity: Identity, roster: Roster, counts: Mapping[str, int], store: Path) -> None:
    """One client: it answers the server's frames until there is nothing left to say."""
    vector = np.array([counts.get(name, 0) for name in DIAGNOSES])
    policy = ClientPolicy(min_cohort=3, blocks=BLOCKS)
    proposal = pipe.recv_bytes()
    with FileGuard(store) as guard:
        try:
            session = ClientSession.join(proposal, policy, identity, roster, {"counts": vector}, guard=guard)
        except PolicyError as error:
            pipe.send_bytes(decline(proposal, identity, error))
            return
        try:
            pipe.send_bytes(session.start())
            while session.waiting:
                answer = session.receive(pipe.recv_bytes())
                if answer is not None:
                    pipe.send_bytes(answer)
        except SecaggError as error:
            pipe.send_bytes(session.decline(error))


class Pipes:
    """The engine: one pipe a client."""

    def __init__(self, pipes: Mapping[int, Connection]) -> None:
        self._pipes = dict(pipes)
        self.client_seconds: dict[str, dict[int, float]] = {}

    @property
    def peers(self) -> tuple[int, ...]:
        """Who is connected."""
        return tuple(self._pipes)

    def exchange(
        self, phase: str, frames: Mapping[int, bytes], *, deadline_s: float | None
    ) -> Iterator[tuple[int, bytes]]:
        """Send to everybody, then take the answers as they come."""
        del phase
        for client in frames:
            self._pipes[client].send_bytes(frames[client])
        waiting = {self._pipes[client]: client for client in frames}
        end = time.monotonic() + (60.0 if deadline_s is None else deadline_s)
        while waiting and (ready := wait(list(waiting), timeout=max(0.0, end - time.monotonic()))):
            for pipe in ready:
                client = waiting.pop(pipe)
                try:
                    yield client, pipe.recv_bytes()
                except EOFError:  # the hospital's process has ended: it is silent
                    continue

    def close(self) -> None:
        """Hang up."""
        for pipe in self._pipes.values():
            pipe.close()


def main() -> dict[str, int]:
    """Keys, three processes, one round; prints and returns the totals."""
    identities = {client: Identity.generate(client) for client in COUNTS}
    server = ServerIdentity.generate()
    roster = Roster(
        {i: identity.public_key for i, identity in identities.items()}, server.verify_key, server.sealing_key
    )
    context = multiprocessing.get_context("fork")  # identities are never pickled, so the processes inherit theirs
    pipes, processes = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for client, identity in identities.items():
            pipes[client], theirs = context.Pipe()
            arguments = (theirs, identity, roster, COUNTS[client], Path(folder) / f"guard-{client}.jsonl")
            processes.append(context.Process(target=hospital, args=arguments))
            processes[-1].start()
            theirs.close()
        engine = Pipes(pipes)
        try:
            outcome = run_round(engine, RoundParams(cohort=tuple(COUNTS), blocks=BLOCKS), server, roster, deadline_s=60)
        finally:
            engine.close()
            for process in processes:
                process.join()
    totals = dict(zip(DIAGNOSES, outcome.sums["counts"].tolist(), strict=True))
    for name, total in totals.items():
        print(f"{name:<10} {total:>6}")
    print(f"over hospitals {list(outcome.survivors)}; JAX loaded: {'jax' in sys.modules}")
    return totals


if __name__ == "__main__":
    main()
