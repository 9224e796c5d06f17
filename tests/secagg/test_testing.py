import collections

import numpy as np
import pytest

from secagg import Block, RoundParams
from secagg.crypto import prg
from secagg.errors import BelowThresholdError, InputError, ParameterError
from secagg.params import PHASES
from secagg.testing import parties, seeded_entropy, simulate_round


def test_seeded_entropy_repeats_itself():
    """The same seed and context give the same bytes, however they are asked for."""
    one, two = seeded_entropy(7, 1), seeded_entropy(7, 1)
    assert one(3) + one(0) + one(40) == two(43)
    assert one(16) != one(16)


@pytest.mark.parametrize("other", [(8, 1), (7, 2), (7,), (7, b"\1"), (7, 1, 1)])
def test_other_seeds_and_contexts_are_independent(other):
    """A change of the seed or of any context item gives other bytes."""
    assert seeded_entropy(*other)(32) != seeded_entropy(7, 1)(32)


def test_the_parties_of_a_cohort_are_kept():
    """Identities live longer than a round; another cohort or suite has its own."""
    assert parties((1, 2, 3), "classical") is parties((1, 2, 3), "classical")
    identities, server, roster = parties((1, 2, 3), "hybrid")
    assert roster.clients == {i: identities[i].public_key for i in (1, 2, 3)}
    assert roster.server_sealing_key == server.sealing_key


@pytest.mark.parametrize("suite", ["classical", "hybrid"])
@pytest.mark.parametrize("seed", [None, 0, 2**64 - 1])
def test_a_simulated_round_is_a_round(params_of, inputs_of, suite, seed):
    """Seeded or not, the sum is exact."""
    p = params_of(suite=suite)
    inputs = inputs_of(p)
    out = simulate_round(p, inputs, seed=seed)
    assert np.array_equal(out.sums["update"], sum(inputs[i]["update"] for i in p.cohort))


def test_two_silences_at_different_phases(params_of, inputs_of):
    """Drops are by client and phase, from that phase on."""
    p = params_of(5)
    inputs = inputs_of(p)
    out = simulate_round(p, inputs, {1: "share", 4: "unmask"})
    assert out.dropped == {1: "share", 4: "unmask"}
    assert np.array_equal(out.sums["count"], sum(inputs[i]["count"] for i in (0, 2, 3, 4)))


def test_below_the_threshold_it_raises(params_of, inputs_of):
    """Two silent of four with t = 3: a named error, no sum."""
    p = params_of()
    with pytest.raises(BelowThresholdError, match="mask: 2 of at least 3"):
        simulate_round(p, inputs_of(p), {1: "mask", 2: "mask"})


@pytest.mark.parametrize("drops", [{9: "mask"}, {1: "sleep"}, {1: None}, {1: "Mask"}])
def test_a_plan_with_an_unknown_client_or_phase_is_refused(params_of, inputs_of, drops):
    """A typing error in a test plan is no round without dropouts."""
    p = params_of()
    with pytest.raises(ParameterError, match="drops: client"):
        simulate_round(p, inputs_of(p), drops)


def test_inputs_must_be_those_of_the_cohort(params_of, inputs_of):
    """A missing and an unknown client are both named."""
    p = params_of()
    inputs = inputs_of(p)
    with pytest.raises(InputError, match=r"\[0, 1, 2\], the cohort is \[0, 1, 2, 3\]"):
        simulate_round(p, {i: inputs[i] for i in (0, 1, 2)})
    with pytest.raises(InputError, match=r"\[0, 1, 2, 3, 9\]"):
        simulate_round(p, inputs | {9: inputs[0]})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.full(5, np.nan), "client 2: block 'update': an integer array is needed, got float64"),
        (np.zeros(1, int), r"client 2: block 'update': shape \(1,\) instead of \(5,\)"),
        (np.full(5, 1001), r"client 2: block 'update': values 1001..1001 are outside \+-1000"),
    ],
)
def test_s8_a_bad_input_names_client_and_block(params_of, inputs_of, value, message):
    """A NaN, a wrong shape and a value outside the bound are refused before the round starts."""
    p = params_of()
    inputs = inputs_of(p)
    with pytest.raises(InputError, match=message):
        simulate_round(p, inputs | {2: inputs[2] | {"update": value}})


# S11. What a client put in must not be in anything that reaches the server, in any form in which it might leak.

SECRET = Block("update", 64, 20, 1000)


def captured(monkeypatch, masked, **fields):
    """Every byte that reached the server in one round, by client, and the inputs."""
    prg.self_test()  # once, before the generator is taken out
    if not masked:
        monkeypatch.setattr(prg, "add_streams", lambda _acc, _keys: None)
    p = RoundParams(cohort=range(4), blocks=(SECRET, Block("count", 8, 64, 10**15)), **fields)
    rng = np.random.default_rng(11)
    inputs = {i: {b.name: rng.integers(1, b.bound, b.length) for b in p.blocks} for i in p.cohort}
    view = collections.defaultdict(bytes)

    def tap(_phase, sender, frame):
        view[sender] += frame

    out = simulate_round(p, inputs, tap=tap)
    assert np.array_equal(out.sums["update"], sum(inputs[i]["update"] for i in p.cohort))
    return p, inputs, b"".join(view.values())


def forms(p, values):
    """A client's vectors the way they could be found: integers of all widths, floats, and the packed ring words."""
    from secagg import ring

    for block in p.blocks:
        x = values[block.name]
        words = ring.encode(x, block.bits)
        yield f"{block.name} packed", bytes(ring.pack(words, block.bits))
        for dtype in ("<i8", ">i8", "<i4", "<u4", "<f8", "<f4"):
            piece = x[:4].astype(dtype)
            if np.array_equal(piece.astype(np.int64), x[:4]):
                yield f"{block.name} {dtype}", piece.tobytes()


def found(p, inputs, view):
    """In which forms which client's vector is in the view."""
    return {(i, form) for i in p.cohort for form, needle in forms(p, inputs[i]) if needle in view}


@pytest.mark.parametrize("suite", ["classical", "hybrid"])
def test_s11_the_servers_view_has_nobodys_vector(monkeypatch, suite):
    """No client's vector is in any byte that the server got, in any form."""
    p, inputs, view = captured(monkeypatch, masked=True, suite=suite)
    assert len(view) > 5_000
    assert found(p, inputs, view) == set()


def test_s11_the_same_search_finds_them_without_masks(monkeypatch):
    """With the masks switched off the very same search finds every client's vectors: it can see."""
    p, inputs, view = captured(monkeypatch, masked=False, suite="classical")
    hits = found(p, inputs, view)
    assert {(i, "update packed") for i in p.cohort} <= hits
    assert {(i, "count packed") for i in p.cohort} <= hits
    assert {(i, "count <i8") for i in p.cohort} <= hits


def test_the_masked_vectors_look_uniform():
    """All-zero inputs leave as words with about half of their bits set, and never twice the same."""
    p = RoundParams(cohort=range(3), blocks=(Block("x", 4096, 32, 1),), suite="classical")
    bodies = []
    zeros = {i: {"x": np.zeros(4096, int)} for i in p.cohort}
    tap = lambda phase, _sender, frame: bodies.append(frame[-4 * 4096 :]) if phase == "mask" else None  # noqa: E731
    for _ in range(2):
        simulate_round(p, zeros, seed=1, tap=tap)
    assert len(set(bodies)) == 6
    for body in bodies:
        ones = np.unpackbits(np.frombuffer(body, np.uint8)).sum()
        assert abs(int(ones) - 65536) < 8 * 181


def test_a_client_that_stops_is_not_hidden(params_of, inputs_of, monkeypatch):
    """In a simulation all parties are ours: an error of one is raised, even where the round could go on."""
    p = params_of()
    from secagg.protocols.pairwise import confirm

    real = confirm.accept

    def stubborn(state, frame):
        if state.agreed.me.id == 2:
            raise InputError("client 2 stops")
        return real(state, frame)

    monkeypatch.setattr(confirm, "accept", stubborn)
    with pytest.raises(InputError, match="client 2 stops"):
        simulate_round(p, inputs_of(p))


def test_every_phase_is_a_valid_plan(params_of, inputs_of):
    """The five names are accepted."""
    p = params_of()
    for phase in PHASES:
        assert simulate_round(p, inputs_of(p), {0: phase}).dropped == {0: phase}
