import itertools

import numpy as np
import pytest

from secagg import Block, RoundParams, ring
from secagg.crypto import prg
from secagg.errors import BelowThresholdError, InputError, ParameterError
from secagg.params import PHASES
from secagg.testing import simulate_round

UPDATE = Block("update", 7, 20, 1000)
COUNT = Block("count", 1, 64, 10**15)
# The end of a chunk of keystream, of a column of packed lanes, and of a word's lanes, per width of the word.
WORDS = {8: (7, 8), 16: (13, 16), 32: (22, 32), 64: (41, 64)}


def is_exact(outcome, expected, survivors):
    """Whether a round gave exactly these sums over exactly these clients."""
    return outcome.survivors == tuple(survivors) and {k: v.tolist() for k, v in outcome.sums.items()} == expected


@pytest.mark.case("S1")
@pytest.mark.parametrize("n", [3, 4, 6, 12])
def test_one_never_answers(params_of, inputs_of, total, n):
    """Whoever does not answer the first exchange is left out, wherever it stands: the sum of the others is exact."""
    params = params_of(n, (UPDATE, COUNT), dropouts=1)
    inputs = inputs_of(params)
    for silent in (0, n // 2, n - 1):
        others = [i for i in range(n) if i != silent]
        outcome = simulate_round(params, inputs, drops={silent: "advertise"})
        assert is_exact(outcome, total(inputs, others), others)
        assert outcome.dropped == {silent: "advertise"}


@pytest.mark.case("S2")
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("n", [3, 6, 9])
def test_one_stops_in_the_middle(params_of, inputs_of, total, n, phase):
    """One that stops after its keys, or at any later step, costs the others nothing: in the sum once its vector arrived."""
    params = params_of(n, (UPDATE, COUNT), dropouts=1)
    inputs = inputs_of(params)
    survivors = [i for i in range(n) if i != 1 or phase in PHASES[3:]]
    outcome = simulate_round(params, inputs, drops={1: phase})
    assert is_exact(outcome, total(inputs, survivors), survivors)
    assert outcome.dropped == {1: phase}


@pytest.mark.case("S2")
def test_two_stop_after_one_another(params_of, inputs_of, total):
    """Clients that stop at different steps of one round are each accounted for."""
    params = params_of(9, (UPDATE, COUNT), dropouts=3)
    inputs = inputs_of(params)
    outcome = simulate_round(params, inputs, drops={0: "share", 5: "mask", 8: "unmask"})
    survivors = [1, 2, 3, 4, 6, 7, 8]
    assert is_exact(outcome, total(inputs, survivors), survivors)


@pytest.mark.case("S3")
@pytest.mark.parametrize("n", range(3, 8))
def test_any_number_of_shares(params_of, inputs_of, total, n):
    """Every number of neighbours and every threshold works, one client missing, or is refused by its numbers."""
    worked, refused = set(), {}
    for adversary, degree, threshold in itertools.product(("lying", "curious"), range(n + 1), range(n + 1)):
        fields = {"degree": degree, "threshold": threshold, "adversary": adversary, "dropouts": 1}
        try:
            params = params_of(n, (UPDATE,), **fields)
        except ParameterError as error:
            refused[degree, threshold] = str(error)
            continue
        worked.add((adversary, degree))
        inputs, survivors = inputs_of(params), [0, *range(2, n)]
        assert is_exact(simulate_round(params, inputs, drops={1: "mask"}), total(inputs, survivors), survivors)
    assert ("lying", n - 1) in worked
    assert n < 4 or ("curious", 2) in worked
    for (degree, threshold), message in refused.items():
        assert f"degree k = {degree}" in message or f"threshold t = {threshold}" in message


@pytest.mark.case("S4")
@pytest.mark.parametrize(
    ("n", "bits", "bound"), [(1100, 32, 2**21), (1100, 22, 2**21 - 1), (1100, 60, 2**50), (6, 4, 2)]
)
def test_sums_that_could_wrap_are_refused(n, bits, bound):
    """Refused at construction by clients, bound and bits; the bits that it names are accepted, and one fewer are not."""
    with pytest.raises(
        ParameterError, match=rf"n = {n} .*bound {bound} .*bits = {bits}; bits = \d+ would do"
    ) as caught:
        RoundParams(cohort=range(n), blocks=(Block("update", 10, bits, bound),))
    needed = int(str(caught.value).split("bits = ")[-1].split()[0])
    RoundParams(cohort=range(n), blocks=(Block("update", 10, needed, bound),))
    with pytest.raises(ParameterError, match="could wrap around"):
        RoundParams(cohort=range(n), blocks=(Block("update", 10, needed - 1, bound),))


@pytest.mark.case("S4")
@pytest.mark.parametrize("n", [3, 5, 11])
def test_the_fullest_ring_is_exact(params_of, n):
    """With every value of every client at the bound, and the bound as large as is accepted, the sum is still right."""
    blocks = [Block(f"b{bits}", 3, bits, (2 ** (bits - 1) - 1) // n) for bits in (5, 8, 9, 16, 17, 32, 33, 63, 64)]
    params = params_of(n, blocks)
    for sign in (1, -1):
        inputs = {i: {b.name: np.full(3, sign * b.bound, np.int64) for b in blocks} for i in range(n)}
        sums = simulate_round(params, inputs, drops={1: "unmask"}).sums
        assert {name: x.tolist() for name, x in sums.items()} == {b.name: [sign * n * b.bound] * 3 for b in blocks}


@pytest.mark.case("S5")
@pytest.mark.parametrize("weight", [1001, 5000, -1001, 2**40, np.uint64(2**64 - 1)])
def test_a_weight_above_the_maximum(params_of, weight):
    """A weight beyond the agreed maximum never leaves its client, which is named with the block and the maximum; 1 000 is exact."""
    params = params_of(4, (UPDATE, Block("weight", 1, 16, 1000)))
    inputs = {i: {"update": np.full(7, i), "weight": np.array([1000])} for i in range(4)}
    assert simulate_round(params, inputs).sums["weight"].tolist() == [4000]
    inputs[2]["weight"] = np.array([weight])
    with pytest.raises(InputError, match=rf"client 2: block 'weight': values {weight}\.\.{weight} are outside \+-1000"):
        simulate_round(params, inputs)


@pytest.mark.case("S8")
@pytest.mark.parametrize("shape", [(1,), (), (0,), (49,), (51,), (50, 1), (1, 50)])
def test_a_vector_of_another_shape(params_of, inputs_of, shape):
    """A leaf that could be broadcast to the agreed one is refused all the same, by client, block and both shapes."""
    params = params_of(4, (Block("leaf", 50, 20, 1000), COUNT))
    inputs = inputs_of(params)
    inputs[3]["leaf"] = np.ones(shape, np.int64)
    expected = f"client 3: block 'leaf': shape {shape} instead of (50,)"
    with pytest.raises(InputError) as caught:
        simulate_round(params, inputs)
    assert str(caught.value) == expected


@pytest.mark.case("S14")
@pytest.mark.parametrize("phase", [None, *PHASES])
def test_large_client_ids(params_of, inputs_of, total, phase):
    """Ids up to 2^64 - 2 take part and drop out like any others."""
    cohort = (0, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 3, 2**64 - 2)
    params = params_of(cohort, (UPDATE, COUNT), dropouts=2)
    assert RoundParams.decode(params.encode()) == params
    inputs = inputs_of(params)
    drops = {} if phase is None else {2**63: phase, 2**64 - 2: phase}
    survivors = [i for i in cohort if drops.get(i) not in PHASES[:3]]
    outcome = simulate_round(params, inputs, drops=drops)
    assert is_exact(outcome, total(inputs, survivors), survivors)
    assert outcome.dropped == drops


@pytest.mark.case("S14")
@pytest.mark.parametrize("wrong", [2**64 - 1, 2**64, -1])
def test_ids_that_are_none(params_of, wrong):
    """The server's own id, one that is no u64 and a negative one are refused by their value."""
    with pytest.raises(ParameterError, match=f"client id = {wrong} is outside"):
        params_of((0, 1, wrong), (UPDATE,))


@pytest.mark.case("S18")
def test_every_width_at_its_maximum(params_of):
    """In rings of 2 to 64 bits, entries at the bound beside zeros and beside each other come out as they went in."""
    n = 3
    blocks = [Block(f"b{bits}", 70, bits, (2 ** (bits - 1) - 1) // n) for bits in range(2, 65)]
    patterns = [np.array(p * 35, np.int64) for p in ([1, 0], [1, 1], [-1, 1])]
    params = params_of(n, blocks)
    inputs = {i: {b.name: patterns[i] * b.bound for b in blocks} for i in range(n)}
    sums = simulate_round(params, inputs, drops={0: "confirm"}).sums
    assert all(np.array_equal(sums[b.name], sum(patterns) * b.bound) for b in blocks)
    sums = simulate_round(params, inputs, drops={0: "mask"}).sums
    assert all(np.array_equal(sums[b.name], (patterns[1] + patterns[2]) * b.bound) for b in blocks)


@pytest.mark.case("S18")
@pytest.mark.parametrize("bits", range(2, 65))
def test_packing_does_not_carry(bits):
    """An entry with every bit set leaves its neighbours alone, wherever it stands, and they leave it alone; one that is too wide is refused."""
    length, top = 3 * ring.word_dtype(bits).itemsize * 8 + 1, (1 << bits) - 1
    for background, lone in ((0, top), (top, 0)):
        for place in (0, 1, length // 3, length - 2, length - 1):
            words = np.full(length, background, ring.word_dtype(bits))
            words[place] = lone
            packed = ring.pack(words, bits)
            assert len(packed) == ring.packed_length(length, bits)
            assert ring.unpack(packed, length, bits).tolist() == words.tolist()
    if bits < 8 * words.itemsize:
        words[1] = top + 1
        with pytest.raises(InputError, match=f"a word has more than {bits} bits"):
            ring.pack(words, bits)


@pytest.mark.case("S22")
@pytest.mark.parametrize("width", WORDS)
def test_lengths_around_every_boundary(params_of, inputs_of, width):
    """0, 1, 2, and one below, at and above each boundary of lanes, keystream chunks and packing blocks, in part and in full words."""
    chunk = prg.CHUNK_BYTES * 8 // width
    ends = (width, chunk, 2 * chunk) if width < 64 else (width, chunk)
    lengths = [0, 1, 2, *(end + off for end in ends for off in (-1, 0, 1))]
    blocks = [Block(f"{bits}x{length}", length, bits, 1) for bits in WORDS[width] for length in lengths]
    params = params_of(3, blocks)
    inputs = inputs_of(params)
    outcome = simulate_round(params, inputs, drops={1: "mask"})
    assert outcome.survivors == (0, 2)
    for block in blocks:
        assert np.array_equal(outcome.sums[block.name], inputs[0][block.name] + inputs[2][block.name]), block


@pytest.mark.case("S22")
@pytest.mark.parametrize(("bits", "offset"), [(31, -1), (31, 1), (64, 1)])
def test_lengths_beyond_one_packing_block(params_of, inputs_of, bits, offset):
    """The same where a vector fills more columns than are packed at a time, and more than one thread adds its streams."""
    length = 2**20 + offset
    params = params_of(3, (Block("long", length, bits, 1),))
    inputs = inputs_of(params)
    outcome = simulate_round(params, inputs)
    assert np.array_equal(outcome.sums["long"], sum(x["long"] for x in inputs.values()))


@pytest.mark.case("S24")
@pytest.mark.parametrize(("rows", "largest"), [(13_000, 150), (10_000, 700_000), (4_800, 2**31), (2**31, 2**30 - 1)])
@pytest.mark.parametrize("sites", [4, 10])
def test_bits_follow_from_the_bound(params_of, rows, largest, sites):
    """So many rows up to so much: too narrow a ring is refused, also for one site alone, until the bits that errors name are exact."""
    bound, widths = -(-rows // sites) * largest, [8]
    while True:
        try:
            params = params_of(sites, (Block("total", 1, widths[-1], bound),))
        except ParameterError as error:
            widths.append(int(str(error).split("bits = ")[-1].split()[0]))
        else:
            break
    assert widths == sorted(set(widths))
    assert widths[-1] == (sites * bound).bit_length() + 1
    inputs = {i: {"total": np.array([bound])} for i in range(sites)}
    assert simulate_round(params, inputs).sums["total"].tolist() == [sites * bound]


@pytest.mark.case("S1", "S2")
@pytest.mark.parametrize("phase", PHASES)
def test_too_few_is_a_named_error(params_of, inputs_of, phase):
    """Where more are silent than were planned for, nobody sees a KeyError: the phase, how many are left and how many it takes."""
    params = params_of(4, (UPDATE,), colluders=1, dropouts=1)
    with pytest.raises(BelowThresholdError, match=f"{phase}: 2 of at least 3 clients are left"):
        simulate_round(params, inputs_of(params), drops={0: phase, 3: phase})
