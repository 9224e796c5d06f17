"""A whole round in one process with the real cryptography, seeded entropy and planned silences."""

import functools
import os
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from secagg.crypto.kdf import Label, digest
from secagg.engines.inprocess import Handler, InProcessEngine, Tap
from secagg.errors import InputError, ParameterError
from secagg.identity import Identity, Roster, ServerIdentity
from secagg.params import PHASES, RoundParams
from secagg.protocols.pairwise import ClientSession
from secagg.protocols.pairwise.mask import check_inputs
from secagg.session import RoundOutcome, run_round
from secagg.spool import MemorySpool

Inputs = Mapping[str, npt.NDArray[np.integer]]


def seeded_entropy(seed: int, *context: bytes | int) -> Callable[[int], bytes]:
    """An entropy source that anybody with the seed can repeat: for tests only.

    Args:
        seed: 0 <= seed < 2^64.
        *context: Who asks, and for what: other contexts give independent bytes.

    Returns:
        `entropy(n) -> n bytes`, each call the next stretch of one AES-256-CTR keystream.
    """
    key = digest(Label.TEST_ENTROPY, seed, *context)
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return lambda n: stream.update(bytes(n))


@functools.lru_cache(maxsize=8)
def parties(cohort: tuple[int, ...], suite: str) -> tuple[dict[int, Identity], ServerIdentity, Roster]:
    """Long-lived identities and a roster for a simulated cohort; kept, as a consortium's would be."""
    identities = {client: Identity.generate(client) for client in cohort}
    server = ServerIdentity.generate(suite)
    roster = Roster(
        clients={client: identity.public_key for client, identity in identities.items()},
        server_verify_key=server.verify_key,
        server_sealing_key=server.sealing_key,
    )
    return identities, server, roster


def silent_from(phase: str | None, handler: Handler) -> Handler:
    """A handler that does not answer from a phase on.

    Args:
        phase: The first silent phase. None: never silent.
        handler: What answers until then.
    """
    if phase is None:
        return handler
    silent = PHASES[PHASES.index(phase) :]
    return lambda current, frame: None if current in silent else handler(current, frame)


def client_handler(session: ClientSession, first_silent: str | None = None) -> Handler:
    """The handler of one client for the in-process engine.

    Args:
        session: A fresh session.
        first_silent: Phase from which on the client does not answer. None: never.
    """

    def handle(phase: str, frame: bytes) -> bytes | None:
        return session.start() if phase == PHASES[0] else session.receive(frame)

    return silent_from(first_silent, handle)


def simulate_round(
    params: RoundParams,
    inputs: Mapping[int, Inputs],
    drops: Mapping[int, str] | None = None,
    seed: int | None = None,
    tap: Tap | None = None,
) -> RoundOutcome:
    """A whole round in this process, through the real frames and keys.

    Args:
        params: The round.
        inputs: `{client id: {block name: integers (length,)}}`, one entry for each member of the cohort.
        drops: `{client id: phase}`: silent from that phase on.
        seed: Fixes the protocol's own secrets for a test; None: the operating system's entropy. The sealed boxes, and so
            every mask, differ from run to run even then; the sums do not.
        tap: Called with (phase, sender, frame) for every frame that reaches the server.

    Raises:
        InputError: An input is missing, unknown, or does not fit its block; names the client.
        ParameterError: A planned silence names a client or a phase that does not exist.
        RoundError: Too few clients are left.
    """
    drops = dict(drops or {})
    for client, phase in drops.items():
        if client not in params.cohort or phase not in PHASES:
            raise ParameterError(
                f"drops: client {client!r}, phase {phase!r}: not in the cohort, or not one of {PHASES}"
            )
    if set(inputs) != set(params.cohort):
        raise InputError(f"inputs are for clients {sorted(inputs)}, the cohort is {list(params.cohort)}")
    for client, values in inputs.items():
        try:
            check_inputs(params, values)
        except InputError as error:
            raise InputError(f"client {client}: {error}") from None
    identities, server, roster = parties(params.cohort, params.suite)
    handlers = {}
    for client in params.cohort:
        entropy = os.urandom if seed is None else seeded_entropy(seed, client)
        session = ClientSession(params, identities[client], roster, inputs[client], entropy=entropy)
        handlers[client] = client_handler(session, drops.get(client))
    engine = InProcessEngine(handlers, tap)
    outcome = run_round(engine, params, server, roster, spool=MemorySpool())
    if engine.failures:
        raise next(iter(engine.failures.values()))
    return outcome
