import numpy as np
import pytest

from secagg import Block, RoundParams, graph, messages
from secagg.errors import ParameterError
from secagg.params import PHASES
from secagg.testing import simulate_round

BLOCK = (Block("x", 7, 32, 2**20),)


def simulate(p, drops=None, tap=None):
    """A round with inputs at and within the bound; the inputs and the outcome."""
    rng = np.random.default_rng(len(p.cohort))
    inputs = {i: {"x": rng.integers(-(2**20), 2**20, 7, endpoint=True)} for i in p.cohort}
    return inputs, simulate_round(p, inputs, drops, tap=tap)


@pytest.mark.parametrize(("n", "colluders", "dropouts"), [(201, 4, 12), (240, 5, 10)])
def test_a_sparse_round_is_exact_with_silence_in_every_phase(n, colluders, dropouts):
    """Over 200 clients, two of them silent from each exchange on: the sum over the survivors, entry by entry."""
    ids = tuple(range(3, 3 + 5 * n, 5))
    p = RoundParams(cohort=ids, blocks=BLOCK, suite="classical", colluders=colluders, dropouts=dropouts)
    assert not p.complete
    drops = {ids[17 * place + extra]: phase for place, phase in enumerate(PHASES) for extra in (0, 90)}
    inputs, out = simulate(p, drops)
    gone = {i for i, phase in drops.items() if phase in PHASES[:3]}
    assert out.survivors == tuple(i for i in ids if i not in gone)
    assert out.dropped == drops
    assert np.array_equal(out.sums["x"], sum(inputs[i]["x"] for i in out.survivors))


def test_each_client_deals_to_its_neighbours_on_the_ring():
    """The frames of exchange 2 have one part for each holder of the graph that T1 gives, and no more."""
    p = RoundParams(cohort=range(201), blocks=BLOCK, suite="classical", colluders=1, dropouts=5, adversary="curious")
    frames = {}
    _, out = simulate(p, tap=lambda phase, sender, frame: frames.setdefault(phase, {}).update({sender: frame}))
    ring = graph.build(p.cohort, p.cohort, p.degree, out.transcript)
    for i, frame in frames["share"].items():
        leaves = messages.decode(frame, messages.ShareFrame).leaves
        assert [len(leaf) == 64 for leaf in leaves] == [holder == i for holder in ring.holders(i)]
    assert len(ring.neighbours(0)) == p.degree < 40


SMALL = {"cohort": range(60), "blocks": BLOCK, "suite": "classical", "colluders": 1, "dropouts": 5}


def small(**fields):
    """A sparse round of sixty against a curious server, with the degree and the threshold written out."""
    found = graph.choose(60, SMALL["colluders"], SMALL["dropouts"], "curious")
    chosen = {"degree": found.degree, "threshold": found.threshold, "adversary": "curious"}
    return RoundParams(**(SMALL | chosen | fields))


def test_a_small_explicit_degree_is_exact_with_silence_in_every_phase():
    """Few neighbours each, one client silent from each exchange on: no mask is left in the sum."""
    p = small()
    assert p.degree % 2 == 0
    assert p.degree <= 10
    drops = {11 * place + 3: phase for place, phase in enumerate(PHASES)}
    inputs, out = simulate(p, drops)
    gone = {i for i, phase in drops.items() if phase in PHASES[:3]}
    assert out.survivors == tuple(i for i in p.cohort if i not in gone)
    assert out.dropped == drops
    assert np.array_equal(out.sums["x"], sum(inputs[i]["x"] for i in out.survivors))


def test_a_degree_comes_with_its_threshold():
    """Either alone could not be checked against the bounds that the other was chosen for."""
    for fields in ({"degree": 20}, {"threshold": 12, "cohort": range(240)}):
        with pytest.raises(ParameterError, match="needs its degree and threshold together, or neither"):
            RoundParams(**(SMALL | fields))


@pytest.mark.parametrize(("adversary", "needed"), [("curious", 40), ("lying", 104)])
def test_a_degree_that_is_too_weak_is_refused_with_its_bits(adversary, needed):
    """The message has what the graph gives and what is needed; the number is that of `graph.bounds`."""
    weak = {"colluders": 6, "degree": 12, "threshold": 5, "adversary": adversary}
    found = graph.bounds(60, 6, 5, 12, 5, adversary).security_bits
    assert found < needed
    with pytest.raises(ParameterError, match=rf"up to 2\^-{found:.1f}, at most 2\^-{needed} is needed"):
        small(**weak)


def test_each_client_gets_the_advertisements_of_its_neighbours(new_round):
    """Those that U1 has on the ring that T1 gives, byte for byte, and nobody else's."""
    chosen = small()
    fields = {name: getattr(chosen, name) for name in ("degree", "threshold", "colluders", "dropouts", "adversary")}
    rd = new_round(60, **fields)
    for client in (7, 30):
        rd.silence(client, "advertise")
    rd.run("share")
    members = tuple(i for i in range(60) if i not in {7, 30})
    header = messages.decode(rd.answered["advertise"][0], messages.AdvertisedFrame).header
    ring = graph.build(tuple(range(60)), members, chosen.degree, rd.payload(header, messages.Advertised).transcript)
    assert tuple(rd.answered["advertise"]) == members
    for i in members:
        got = messages.decode(rd.answered["advertise"][i], messages.AdvertisedFrame).frames
        assert got == tuple(rd.sent["advertise"][peer] for peer in ring.neighbours(i))
        assert i not in ring.neighbours(i)
        assert chosen.degree - 2 <= len(got) <= chosen.degree
    assert any(len(ring.neighbours(i)) < chosen.degree for i in members)
