import numpy as np

from secagg import Block, RoundParams, graph, messages
from secagg.params import PHASES
from secagg.testing import simulate_round

BLOCK = (Block("x", 7, 32, 2**20),)


def simulate(p, drops=None, tap=None):
    """A round with inputs at and within the bound; the inputs and the outcome."""
    rng = np.random.default_rng(len(p.cohort))
    inputs = {i: {"x": rng.integers(-(2**20), 2**20, 7, endpoint=True)} for i in p.cohort}
    return inputs, simulate_round(p, inputs, drops, tap=tap)


def test_a_sparse_round_is_exact_with_silence_in_every_phase():
    """Two hundred and one clients, two of them silent from each exchange on: the sum over the survivors, entry by entry."""
    ids = tuple(range(3, 3 + 5 * 201, 5))
    p = RoundParams(cohort=ids, blocks=BLOCK, suite="classical", colluders=4, dropouts=12)
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
