import itertools

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from secagg import graph

IDS = tuple(sorted((7, 2**63, 11, 2**64 - 2, 0)))
T1 = bytes(range(32))


def complete(cohort, members=None):
    """The complete graph."""
    return graph.build(cohort, members or cohort, len(cohort) - 1, T1)


def reference_order(n, transcript):
    """The permutation by another road: the shuffle on one long stream of blocks, each enciphered by itself."""
    label = b"secagg/1 graph"
    info = bytes([len(label)]) + label
    key = HKDF(hashes.SHA256(), 32, transcript, info).derive(transcript)
    ecb = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - the definition of counter mode, by hand
    stream = b"".join(ecb.update(block.to_bytes(16, "big")) for block in range(n))
    words = (int.from_bytes(stream[at : at + 8], "little") for at in itertools.count(step=8))
    order = list(range(n))
    for i in reversed(range(1, n)):
        w = next(w for w in words if w < 2**64 // (i + 1) * (i + 1))
        order[i], order[w % (i + 1)] = order[w % (i + 1)], order[i]
    return order


def test_the_neighbours_are_all_the_others():
    """On the complete graph everybody else in U1 is a neighbour, sorted, and a holder holds for itself too."""
    assert complete(IDS).neighbours(11) == (0, 7, 2**63, 2**64 - 2)
    assert complete(IDS, (0, 11, 2**63)).neighbours(11) == (0, 2**63)
    assert complete(IDS, (0, 11, 2**63)).holders(11) == (0, 11, 2**63)
    assert complete(IDS, (11,)).neighbours(11) == ()
    assert complete(IDS).within(11, {0, 11, 5}) == (0,)


@pytest.mark.parametrize(("n", "k"), [(12, 4), (12, 10), (13, 2), (60, 20), (501, 76)])
def test_a_sparse_graph_is_regular_and_mutual(n, k):
    """Everybody has exactly k neighbours, none of them itself, and neighbourhood goes both ways."""
    ids = tuple(range(5, 5 + 3 * n, 3))
    sparse = graph.build(ids, ids, k, T1)
    for i in ids:
        near = sparse.neighbours(i)
        assert len(near) == len(set(near)) == k
        assert list(near) == sorted(near)
        assert i not in near
        assert all(i in sparse.neighbours(j) for j in near)


@pytest.mark.parametrize("n", [12, 13, 400])
def test_the_ring_is_the_permutation_of_the_definition(n):
    """The order comes from T1 as docs/protocol.md says, and neighbours are the nearest places on it."""
    ids = tuple(range(100, 100 + n))
    sparse = graph.build(ids, ids, 4, T1)
    order = [ids[place] for place in reference_order(n, T1)]
    assert list(sparse.ring) == order
    for slot, i in enumerate(order):
        assert set(sparse.neighbours(i)) == {order[(slot + step) % n] for step in (-2, -1, 1, 2)}


def test_another_transcript_is_another_order():
    """Nobody knows the ring before T1 is fixed."""
    ids = tuple(range(50))
    assert graph.build(ids, ids, 4, T1).ring != graph.build(ids, ids, 4, T1[::-1]).ring


def test_the_absent_leave_their_places_empty():
    """The ring is the cohort's: who did not advertise is nobody's neighbour, and nobody moves up."""
    ids = tuple(range(30))
    whole, members = graph.build(ids, ids, 6, T1), tuple(i for i in ids if i % 3)
    part = graph.build(ids, members, 6, T1)
    assert part.ring == whole.ring
    for i in members:
        assert part.neighbours(i) == tuple(j for j in whole.neighbours(i) if j % 3)


@pytest.mark.statistical
def test_orders_are_uniform():
    """Over 6 000 transcripts each of the 24 orders of four places comes equally often (chi-square, 23 degrees of freedom)."""
    counts = np.zeros((4,) * 4)
    for index in range(6000):
        counts[graph.build((0, 1, 2, 3), (0, 1, 2, 3), 2, index.to_bytes(32, "big")).ring] += 1
    found = counts[counts > 0]
    assert found.size == 24
    assert ((found - 250) ** 2 / 250).sum() < 65  # exceeded by a uniform law with probability 7e-6


@pytest.mark.parametrize("k", [11, 20])
def test_few_members_are_all_neighbours(k):
    """Up to k + 1 clients the graph is complete, whatever k is."""
    ids = tuple(range(12))
    small = graph.build(ids, ids, k, T1)
    assert small.ring is None
    assert len(small.neighbours(3)) == 11


def test_points_are_those_of_the_sorted_cohort():
    """The Shamir point does not depend on who is left of the cohort."""
    assert [complete(IDS, IDS[1:3]).point(i) for i in IDS] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("n", [3, 4, 7, 200])
def test_each_edge_has_one_chooser(n):
    """Exactly one side of an edge picks its seed, and nobody picks for more than about half of its edges."""
    whole = complete(tuple(range(n)))
    chosen = dict.fromkeys(range(n), 0)
    for i, j in itertools.combinations(range(n), 2):
        assert whole.is_chooser(i, j) != whole.is_chooser(j, i)
        chosen[i if whole.is_chooser(i, j) else j] += 1
    assert max(chosen.values()) <= n // 2
    assert min(chosen.values()) >= (n - 2) // 2


def test_the_chooser_is_the_lower_position_where_the_sum_is_odd():
    """The rule of the design, on positions and not on ids."""
    whole = complete(IDS)
    zero, seven, eleven = 0, 7, 11
    assert whole.is_chooser(zero, seven)
    assert whole.is_chooser(eleven, zero)
    assert whole.is_chooser(seven, eleven)


def test_the_lower_position_adds():
    """One side of an edge adds the stream, the other subtracts it."""
    whole = complete(IDS)
    for i, j in itertools.permutations(IDS, 2):
        assert whole.adds(i, j) == (i < j)


def test_few_that_are_left_of_many_stand_where_they_stood():
    """The ring does not close up when no more than k + 1 of the cohort advertise: the bounds are those of the whole ring."""
    ids = tuple(range(30))
    whole = graph.build(ids, ids, 6, T1)
    members = (0, 4, 9, 13, 22, 27, 29)
    part = graph.build(ids, members, 6, T1)
    assert part.ring == whole.ring
    for i in members:
        assert part.neighbours(i) == tuple(j for j in whole.neighbours(i) if j in members)
    assert any(len(part.neighbours(i)) < 6 for i in members)


@pytest.mark.parametrize(("n", "k"), [(60, 20), (501, 76)])
def test_choosers_are_balanced_on_a_ring(n, k):
    """Each edge of a sparse graph has one chooser, half a client's edges are its own on average, and nobody has all or none."""
    ids = tuple(range(n))
    sparse = graph.build(ids, ids, k, T1)
    chosen = {i: sum(sparse.is_chooser(i, j) for j in sparse.neighbours(i)) for i in ids}
    assert all(sparse.is_chooser(i, j) != sparse.is_chooser(j, i) for i in ids for j in sparse.neighbours(i))
    assert sum(chosen.values()) == n * k // 2
    assert min(chosen.values()) > 0
    assert max(chosen.values()) < k


def test_a_word_that_would_bias_is_skipped(monkeypatch):
    """The last word of u64 has no full stretch of three choices: the next one is used in its place."""
    words = np.array([3, 2**64 - 1, 1, 0], np.uint64)
    monkeypatch.setattr(graph.topology.prg, "stream", lambda *_: words)
    assert graph.build((0, 1, 2, 3), (0, 1, 2, 3), 2, b"\x5a" * 32).ring == (2, 0, 1, 3)
    graph.build.cache_clear()


@pytest.mark.parametrize("degree", [4, 11])
def test_choices_are_those_of_each_edge(degree):
    """In order of the neighbours, on a ring and on the complete graph."""
    found = graph.build(tuple(range(0, 36, 3)), tuple(range(3, 36, 3)), degree, T1)
    for i in found.members:
        assert found.choices(i) == [found.is_chooser(i, j) for j in found.neighbours(i)]
