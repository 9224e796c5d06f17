import itertools

import pytest

from secagg import graph

IDS = (7, 2**63, 11, 2**64 - 2, 0)


def test_the_neighbours_are_all_the_others(params_of):
    """On the complete graph everybody else in the set is a neighbour, sorted, whatever the order of the set."""
    p = params_of(5, cohort=IDS)
    assert graph.neighbours(p, IDS, 11) == (0, 7, 2**63, 2**64 - 2)
    assert graph.neighbours(p, (2**63, 0, 11), 11) == (0, 2**63)
    assert graph.neighbours(p, (11,), 11) == ()


def test_neighbours_are_mutual(params_of):
    """Client j is a neighbour of i exactly if i is one of j."""
    p = params_of(5, cohort=IDS)
    for i, j in itertools.permutations(p.cohort, 2):
        assert (j in graph.neighbours(p, p.cohort, i)) == (i in graph.neighbours(p, p.cohort, j))


def test_positions_are_those_of_the_sorted_cohort(params_of):
    """The position does not depend on who is left of the cohort."""
    p = params_of(5, cohort=IDS)
    assert [graph.position(p, i) for i in sorted(IDS)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("n", [3, 4, 7, 200])
def test_each_edge_has_one_chooser(params_of, n):
    """Exactly one side of an edge picks its seed, and nobody picks for more than about half of its edges."""
    p = params_of(n, colluders=0, dropouts=None)
    chosen = dict.fromkeys(p.cohort, 0)
    for i, j in itertools.combinations(p.cohort, 2):
        assert graph.is_chooser(p, i, j) != graph.is_chooser(p, j, i)
        chosen[i if graph.is_chooser(p, i, j) else j] += 1
    assert max(chosen.values()) <= n // 2
    assert min(chosen.values()) >= (n - 2) // 2


def test_the_chooser_is_the_lower_position_where_the_sum_is_odd(params_of):
    """The rule of the design, on positions and not on ids."""
    p = params_of(5, cohort=IDS)
    zero, seven, eleven = 0, 7, 11
    assert graph.is_chooser(p, zero, seven)
    assert graph.is_chooser(p, eleven, zero)
    assert graph.is_chooser(p, seven, eleven)


def test_the_lower_position_adds(params_of):
    """One side of an edge adds the stream, the other subtracts it."""
    p = params_of(5, cohort=IDS)
    for i, j in itertools.permutations(p.cohort, 2):
        assert graph.adds(p, i, j) == (i < j)
