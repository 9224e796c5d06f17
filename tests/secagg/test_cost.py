import collections
import math

import numpy as np
import pytest

from secagg import cost
from secagg.crypto import prg
from secagg.crypto.sealing import Suite
from secagg.errors import ParameterError
from secagg.identity import Identity, Roster, ServerIdentity
from secagg.params import PHASES, Block, RoundParams
from secagg.protocols.pairwise import ClientSession, mask, parties
from secagg.testing import simulate_round

BLOCKS = (Block("update", 50, 20, 1000), Block("count", 1, 64, 10**12))


@pytest.fixture
def counted(monkeypatch):
    """`counted(params, dropouts)`: what each party really did in a round, `{party: {operation: count}}`, and the outcome."""
    counts = {"client": collections.Counter(), "server": collections.Counter()}
    party = ["server"]

    def count(owner, method, name, amount=lambda *_: 1):
        original = getattr(owner, method)

        def counting(*arguments, **options):
            counts[party[0]][name] += amount(*arguments)
            return original(*arguments, **options)

        monkeypatch.setattr(owner, method, counting)

    def as_client(method):
        original = getattr(ClientSession, method)

        def inside(*arguments):
            party[0] = "client"
            try:
                return original(*arguments)
            finally:
                party[0] = "server"

        monkeypatch.setattr(ClientSession, method, inside)

    def run(params, dropouts=0):
        inputs = {block.name: np.zeros(block.length, np.int64) for block in params.blocks}
        silent = dict.fromkeys(params.cohort[len(params.cohort) - dropouts :], "mask")
        simulate_round(params, dict.fromkeys(params.cohort, inputs), silent)  # identities and graph, not counted
        for owner, method, name in (
            (Suite, "key_pair", "key_pairs"),
            (Suite, "seal", "seals"),
            (Suite, "open", "opens"),
            (Suite, "check_public_key", "key_checks"),
            (Identity, "sign", "signatures"),
            (ServerIdentity, "sign", "signatures"),
            (Roster, "error", "verifications"),
            (mask, "derive", "stream derivations"),
            (parties, "derive", "other derivations"),
        ):
            count(owner, method, name)
        original = prg.add_streams

        def add_streams(words, keys):
            listed = list(keys)
            counts[party[0]]["streams"] += len(listed)
            counts[party[0]]["stream_bytes"] += len(listed) * words.nbytes
            return original(words, listed)

        monkeypatch.setattr(prg, "add_streams", add_streams)
        for method in ("start", "receive"):
            as_client(method)
        return counts, simulate_round(params, dict.fromkeys(params.cohort, inputs), silent)

    return run


def total(phases, name):
    """One operation over all phases."""
    return sum(getattr(operations, name) for operations in phases.values())


COUNTED = ("seals", "opens", "key_checks", "signatures", "verifications", "streams", "stream_bytes", "key_pairs")


@pytest.mark.parametrize("suite", ["hybrid", "classical"])
@pytest.mark.parametrize("n", [3, 8])
def test_counts_are_those_of_a_real_round(counted, n, suite):
    """Both parties seal, open, sign, verify, derive and stream exactly as often as predicted; a client's counts are the mean."""
    params = RoundParams(cohort=tuple(range(n)), blocks=BLOCKS, suite=suite)
    predicted, (counts, _) = cost.predict(params), counted(params)
    for name in COUNTED:
        assert n * total(predicted.client, name) == counts["client"][name], name
        assert total(predicted.server, name) == counts["server"][name], name
    # Two key pairs take two derivations each in the hybrid suite and one each in the classical: part of a key pair here.
    for party, clients in (("client", n), ("server", 1)):
        pairs = 2 * n * (2 if suite == "hybrid" else 1) if party == "client" else 0
        made = counts[party]["stream derivations"] + counts[party]["other derivations"] - pairs
        assert clients * total(getattr(predicted, party), "derivations") == made


def test_silent_clients_cost_the_server_a_stream_for_each_edge(counted):
    """With dropouts the server's counts are still exact on a complete graph."""
    params = RoundParams(cohort=tuple(range(9)), blocks=BLOCKS, suite="classical")
    predicted, (counts, _) = cost.predict(params, 2), counted(params, 2)
    assert total(predicted.server, "streams") == (7 + 2 * 7) * 2
    for name in COUNTED:
        assert total(predicted.server, name) == counts["server"][name], name


def test_bytes_are_those_of_a_real_round():
    """Bytes by phase and direction equal the outcome's."""
    params = RoundParams(cohort=tuple(range(7)), blocks=BLOCKS)
    inputs = {block.name: np.zeros(block.length, np.int64) for block in BLOCKS}
    outcome = simulate_round(params, dict.fromkeys(params.cohort, inputs), {6: "mask"})
    predicted = cost.predict(params, 1)
    assert predicted.bytes_up == outcome.bytes_up
    assert predicted.bytes_down == outcome.bytes_down


def test_seconds_are_counts_times_units():
    """Each operation's count is weighed with its own unit."""
    counts = cost.Operations(seals=3, verifications=2, stream_bytes=1000)
    unit = cost.Operations(seals=0.5, verifications=0.25, stream_bytes=1e-3, opens=100)
    assert counts.seconds(unit) == pytest.approx(3.0)
    assert (counts + counts).seconds(unit) == pytest.approx(6.0)


@pytest.mark.parametrize("suite", ["hybrid", "classical"])
def test_calibration_finds_a_unit_for_everything(suite):
    """Every operation takes some time and less than a second, and a prediction has every phase of either party."""
    params = RoundParams(cohort=tuple(range(5)), blocks=BLOCKS, suite=suite)
    unit = cost.calibrate(params, budget_s=0.01)
    for name in cost.Operations.__dataclass_fields__:
        assert 0 < getattr(unit, name) < 1, name
    seconds = cost.predict(params).seconds(unit)
    assert set(seconds) == {"client", "server"}
    for phases in seconds.values():
        assert tuple(phases) == PHASES
        assert all(math.isfinite(s) and s > 0 for s in phases.values())


@pytest.mark.parametrize("dropouts", [-1, 3])
def test_a_round_that_cannot_end_has_no_cost(dropouts):
    """A number of silent clients that leaves too few survivors is refused with the numbers."""
    params = RoundParams(cohort=tuple(range(5)), blocks=BLOCKS)
    with pytest.raises(ParameterError, match=f"^{dropouts} silent clients of 5 leave fewer than 3 survivors"):
        cost.predict(params, dropouts)
