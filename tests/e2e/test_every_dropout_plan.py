"""Every choice of who falls silent at which phase, for every cohort up to five."""

import itertools

import numpy as np
import pytest

from secagg import Block, RoundParams
from secagg.errors import BelowThresholdError
from secagg.params import PHASES
from secagg.testing import simulate_round

LENGTH = 5
SHARDS = 6


def plans(n):
    """All assignments of a first silent phase, or none, to n clients."""
    return itertools.product((None, *PHASES), repeat=n)


def every_plan():
    """The plans for 3, 4 and 5 clients: 6^3 + 6^4 + 6^5."""
    return [plan for n in (3, 4, 5) for plan in plans(n)]


def expectation(params, plan):
    """Who is in the sum, or None where the rules of the protocol end the round.

    Worked out from the rules alone: U1, U2, U3 shrink by who is silent; a quorum must confirm; t shares must be revealed.
    """
    order = [len(PHASES) if phase is None else PHASES.index(phase) for phase in plan]
    present = [[i for i, first in enumerate(order) if first > phase] for phase in range(5)]
    survivors = present[2]
    if any(len(present[phase]) < params.min_survivors for phase in (0, 1, 2)):
        return None
    if len(present[3]) < params.quorum(len(present[0])) or len(present[4]) < params.threshold:
        return None
    return survivors


def run(plan, suite):
    """Whether the round succeeded; fails the test unless it did exactly what the rules say."""
    n = len(plan)
    params = RoundParams(
        cohort=range(n), blocks=(Block("update", LENGTH, 20, 1000), Block("count", 1, 64, 10**15)), suite=suite
    )
    rng = np.random.default_rng(n)
    inputs = {i: {"update": rng.integers(-1000, 1001, LENGTH), "count": rng.integers(0, 10**15, 1)} for i in range(n)}
    drops = {i: phase for i, phase in enumerate(plan) if phase is not None}
    expected = expectation(params, plan)
    if expected is None:
        with pytest.raises(BelowThresholdError):
            simulate_round(params, inputs, drops)
        return False
    out = simulate_round(params, inputs, drops)
    assert out.survivors == tuple(expected), plan
    assert out.dropped == drops, plan
    for name in ("update", "count"):
        assert np.array_equal(out.sums[name], sum(inputs[i][name] for i in expected)), plan
    return True


# Worked out by hand for c = 0: n = 3 survives one silence, n = 4 one, n = 5 two.
SUCCEEDING = {3: 1 + 3 * 5, 4: 1 + 4 * 5, 5: 1 + 5 * 5 + 10 * 25}


def succeeds(plan):
    """Whether the rules let a round under this plan end with a sum."""
    return expectation(RoundParams(cohort=range(len(plan)), blocks=(Block("x", 1, 8, 1),)), plan) is not None


def chosen_plans():
    """Every plan for 3 and 4 clients and every one for 5 that succeeds; of the other 7 500 for 5, every seventh."""
    small = [plan for plan in every_plan() if len(plan) < 5]
    good = [plan for plan in plans(5) if succeeds(plan)]
    return small + good + [plan for plan in plans(5) if not succeeds(plan)][::7]


def run_all(chosen):
    """Runs some plans; the number that succeeded, by cohort."""
    succeeded = {3: 0, 4: 0, 5: 0}
    for plan in chosen:
        succeeded[len(plan)] += run(plan, "classical")
    return succeeded


@pytest.mark.parametrize("shard", range(SHARDS))
def test_classical_rounds_give_the_exact_sum_or_a_named_error(shard):
    """The classical suite, dealt out over shards so that they run side by side."""
    chosen = chosen_plans()
    assert len(chosen) == 216 + 1296 + 276 + 1072
    assert {n: sum(succeeds(plan) for plan in chosen if len(plan) == n) for n in (3, 4, 5)} == SUCCEEDING
    part = chosen[shard::SHARDS]
    assert sum(run_all(part).values()) == sum(map(succeeds, part))


@pytest.mark.sweep
def test_every_plan_of_five_gives_the_exact_sum_or_a_named_error():
    """All 9 288 plans."""
    assert run_all(every_plan()) == SUCCEEDING


def test_hybrid_rounds_give_the_exact_sum_or_a_named_error():
    """Every twentieth plan in the hybrid suite."""
    chosen = every_plan()[::20]
    assert len(chosen) == 465
    assert sum(run(plan, "hybrid") for plan in chosen) > 0


@pytest.mark.parametrize("phase", PHASES)
def test_sparse_rounds_give_the_exact_sum(phase):
    """Twelve on a ring of four neighbours: every client, and every third pair, silent from an exchange on, beside one that is so at the end.

    What is left is at least two holders of everything that must be opened, so each of these rounds ends with the sum.
    """
    params = RoundParams(
        cohort=range(12),
        blocks=(Block("update", LENGTH, 20, 1000),),
        suite="classical",
        degree=4,
        threshold=2,
        dropouts=2,
        adversary="curious",
    )
    assert not params.complete
    rng = np.random.default_rng(12)
    inputs = {i: {"update": rng.integers(-1000, 1001, LENGTH)} for i in range(12)}
    for gone in [*itertools.combinations(range(12), 1), *[*itertools.combinations(range(12), 2)][::3]]:
        drops = dict.fromkeys(gone, phase) | {(gone[-1] + 1) % 12: "unmask"}
        out = simulate_round(params, inputs, drops)
        survivors = tuple(i for i in range(12) if PHASES.index(drops.get(i, "unmask")) > 2)
        assert (out.survivors, out.dropped) == (survivors, drops)
        assert np.array_equal(out.sums["update"], sum(inputs[i]["update"] for i in survivors)), drops


def test_the_plans_are_all_there():
    """The count, so that a plan that is left out shows."""
    assert len(every_plan()) == len(set(every_plan())) == 6**3 + 6**4 + 6**5 == 9288
    assert 9288 % SHARDS == 0
