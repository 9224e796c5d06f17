import math
import re
from fractions import Fraction

import numpy as np
import pytest

from privacy.accounting import epsilon, gaussian_epsilon, noise_multiplier
from privacy.accounting import routes as accounting
from privacy.accounting.gaussian import rdp_form
from privacy.errors import AccountingError


def test_p1_relation_counts_when_subsampled():
    """Replace-one is dearer than add-remove by both routes, and tends to the unsampled value."""
    for q in (0.1, 0.9):
        one, two = (
            epsilon(noise_multiplier=2.0, sample_rate=q, steps=10, delta=1e-5, relation=relation)
            for relation in ("add-remove", "replace-one")
        )
        assert two.lower > one.upper
        assert two.routes["rdp"] > one.routes["rdp"]
        assert two.upper <= 17.86


@pytest.mark.parametrize("name", ["noise_multiplier", "sample_rate", "steps", "delta"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0, -1, True, "1", None, np.True_])
def test_p2_p3_inputs_that_mean_nothing_are_refused(name, value):
    """P2, P3: NaN, infinity, zero, negative numbers, booleans and texts raise, and the error names the input."""
    question = {"noise_multiplier": 1.0, "sample_rate": 0.5, "steps": 1, "delta": 1e-5} | {name: value}
    with pytest.raises(AccountingError, match=name):
        epsilon(**question)


@pytest.mark.parametrize(
    ("name", "value"),
    [("delta", 2.0), ("delta", 1.0), ("sample_rate", 1.5), ("steps", 1.5), ("steps", 1 << 60), ("relation", "swap")],
)
def test_p3_inputs_out_of_range_are_refused(name, value):
    """P3: delta of 1 or 2, a rate above 1, steps that are no count, an unknown relation."""
    question = {"noise_multiplier": 1.0, "sample_rate": 0.5, "steps": 1, "delta": 1e-5} | {name: value}
    with pytest.raises(AccountingError, match=name):
        epsilon(**question)


@pytest.mark.parametrize("value", [10**400, Fraction(10**400, 3)])
def test_numbers_beyond_float_are_refused(value):
    """An integer or fraction that no float can hold is refused by name, like infinity."""
    with pytest.raises(AccountingError, match="noise_multiplier"):
        epsilon(noise_multiplier=value, steps=1, delta=1e-5)


@pytest.mark.parametrize("q", [1.0, 0.3, 5e-324])
@pytest.mark.parametrize("target", [5e-324, 1e-300, 1e60, 1e300, 1.7e308])
@pytest.mark.parametrize("delta", [5e-324, 1e-5, 1 - 2**-53])
def test_budgets_that_float64_cannot_hold_are_refused(target, delta, q):
    """A budget too small or too large for any noise to be computed is refused with its numbers."""
    with pytest.raises(AccountingError, match=f"epsilon = {re.escape(f'{target:g}')} at delta"):
        noise_multiplier(epsilon=target, delta=delta, steps=100, sample_rate=q)


def test_a_spend_below_the_least_still_counts():
    """A sum of squares near the end of float64 is between 0 and an epsilon that no delta hides."""
    answer = gaussian_epsilon(1e-320, 1e-300)
    assert answer.lower == 0 < answer.upper < 1e-95


def test_noise_that_squares_out_of_range_is_refused():
    """Noise whose square leaves float64 raises instead of giving 0 or inf."""
    for extreme in (1e-200, 1e200):
        with pytest.raises(AccountingError, match="beyond float64"):
            epsilon(noise_multiplier=extreme, steps=1, delta=1e-5)


@pytest.mark.parametrize("relation", ["add-remove", "replace-one"])
@pytest.mark.parametrize("q", [1.0, 0.01])
def test_p4_tiny_noise_is_answered_without_memory(q, relation, monkeypatch):
    """P4: a noise multiplier of 0.001 is answered by closed form or Rényi; no privacy loss distribution is built."""
    for name in ("pld_route", "gaussian_bounds"):
        monkeypatch.setattr(accounting, name, lambda *_, **__: pytest.fail("asked for a PLD"))
    answer = epsilon(noise_multiplier=1e-3, sample_rate=q, steps=1, delta=1e-5, relation=relation)
    exact = 504263.8929 if relation == "add-remove" else 2008528.7827
    assert answer.upper == pytest.approx(exact, rel=1e-6)
    assert answer.lower <= answer.upper


@pytest.mark.parametrize("q", [5e-324, 1 - 2**-53])
def test_rates_at_the_edge_are_answered(q):
    """A rate that rounding hardly tells from 0 or 1 is answered by Rényi or the unsampled closed form."""
    answer = epsilon(noise_multiplier=0.3, sample_rate=q, steps=12, delta=1e-5)
    assert answer.routes.keys() == {"rdp", "unsampled"}
    assert answer.upper <= epsilon(noise_multiplier=0.3, steps=12, delta=1e-5).upper


def test_more_steps_than_a_distribution_is_trusted_for(monkeypatch):
    """Beyond a million steps no privacy loss distribution is built, and the other routes answer."""
    monkeypatch.setattr(accounting, "pld_route", lambda *_, **__: pytest.fail("asked for a PLD"))
    answer = epsilon(noise_multiplier=110.0, sample_rate=1e-10, steps=10**8, delta=0.9)
    assert answer.routes.keys() == {"rdp", "unsampled"}


def test_delta_too_small_for_a_distribution_is_exact_or_an_honest_bound():
    """A delta of 1e-20 gives 9.5109 unsampled; subsampled it is Rényi's bound, not inf and not 0."""
    assert epsilon(noise_multiplier=1.0, steps=1, delta=1e-20).upper == pytest.approx(9.510936240574381, rel=1e-10)
    sampled = epsilon(noise_multiplier=1.0, sample_rate=0.1, steps=10, delta=1e-20)
    assert 1 < sampled.upper < math.inf
    assert "pld" not in sampled.routes


def test_numpy_numbers_are_numbers():
    """Scalars of numpy give the same answer as Python's."""
    plain = epsilon(noise_multiplier=2.0, steps=3, delta=1e-5)
    assert epsilon(noise_multiplier=np.float64(2), steps=np.int64(3), delta=np.float64(1e-5)) == plain


def test_contradictions_raise(monkeypatch):
    """An optimistic PLD above an upper bound, a closed form off the PLD or above Rényi: each raises."""
    question = {"noise_multiplier": 1.0, "steps": 1, "delta": 1e-5}

    def liar(pessimistic_value, optimistic_value):
        return lambda *_, pessimistic=True: pessimistic_value if pessimistic else optimistic_value

    monkeypatch.setattr(accounting, "gaussian_bounds", lambda *_: (4.3772, 4.0))
    assert epsilon(**question).upper == pytest.approx(4.377178, rel=1e-6)
    for pessimistic, optimistic, message in [
        (4.379, 4.0, "contradict"),
        (4.375, 4.0, "contradict"),
        (math.nan, 4.0, "contradict"),
        (4.3772, 4.5, "above"),
        (4.3772, math.nan, "above"),
    ]:
        monkeypatch.setattr(accounting, "gaussian_bounds", lambda *_, answer=(pessimistic, optimistic): answer)
        with pytest.raises(AccountingError, match=message):
            epsilon(**question)
    monkeypatch.setattr(accounting, "pld_route", liar(1.0, 99.0))
    with pytest.raises(AccountingError, match="above"):
        epsilon(**question, sample_rate=0.5)
    monkeypatch.setattr(accounting, "rdp_form", lambda mu_squared, delta: 0.9 * rdp_form(mu_squared, delta))
    with pytest.raises(AccountingError, match="Rényi"):
        epsilon(**question)
    with pytest.raises(AccountingError, match="Rényi"):
        gaussian_epsilon(1.0, 1e-5)


def test_gaussian_epsilon_composes_unequal_releases():
    """Only the sum of mu**2 counts: one release of mu = 1 is a hundred of mu = 0.1."""
    answer = gaussian_epsilon(1.0, 1e-5)
    assert answer.lower <= 4.3771780956812245 <= answer.upper
    assert answer.upper - answer.lower < 1e-10
    assert set(answer.routes) == {"closed_form", "rdp"}
    assert gaussian_epsilon(0.0, 1e-5).upper == 0


def test_gaussian_epsilon_never_decreases():
    """More spent, or more drawn, is never a smaller epsilon, to the last digit."""
    values = [
        gaussian_epsilon(m, 1e-5, sampler_delta=s).upper
        for m, s in [
            (0, 0),
            (1e-9, 0),
            (0.5, 0),
            (0.5, 1e-12),
            (0.5000001, 1e-12),
            (0.51, 1e-9),
            (1.0, 1e-9),
            (1e6, 1e-9),
        ]
    ]
    assert values == sorted(values)
    assert values[-1] == math.inf


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, True])
def test_p2_a_release_of_nan_does_not_lower_epsilon(value):
    """P2: a spend or sampler distance that is no finite number is an error, not an epsilon of 0."""
    with pytest.raises(AccountingError, match="mu_squared"):
        gaussian_epsilon(value, 1e-5)
    with pytest.raises(AccountingError, match="sampler_delta"):
        gaussian_epsilon(1.0, 1e-5, sampler_delta=value)


def test_p2_one_nan_event_after_a_hundred_rounds_is_an_error():
    """P2: a hundred rounds and then one of NaN do not total zero."""
    with pytest.raises(AccountingError, match="mu_squared"):
        gaussian_epsilon(sum([1.0] * 100 + [math.nan]), 1e-5)


@pytest.mark.parametrize("relation", ["add-remove", "replace-one"])
@pytest.mark.parametrize("target", [0.1, 1.0, 8.0])
@pytest.mark.parametrize("steps", [1, 100])
def test_p5_calibration_is_never_above_the_target(target, steps, relation):
    """P5: unsampled, the epsilon of the solved noise is at most the target and within 1e-8 of it."""
    noise = noise_multiplier(epsilon=target, delta=1e-5, steps=steps, relation=relation)
    answer = epsilon(noise_multiplier=noise, delta=1e-5, steps=steps, relation=relation).upper
    assert target * (1 - 1e-8) < answer <= target


@pytest.mark.parametrize(
    ("target", "steps", "q", "relation"), [(2.0, 50, 0.2, "add-remove"), (1.0, 20, 0.5, "replace-one")]
)
def test_p5_calibration_under_sampling_is_never_above_the_target(target, steps, q, relation):
    """P5: subsampled, the solved noise keeps to the target and is within 0.1 % of it."""
    noise = noise_multiplier(epsilon=target, delta=1e-5, steps=steps, sample_rate=q, relation=relation)
    answer = epsilon(noise_multiplier=noise, delta=1e-5, steps=steps, sample_rate=q, relation=relation).upper
    assert target * 0.999 < answer <= target


def test_calibration_is_monotone():
    """A smaller target, a smaller delta, more steps and a dearer relation all need more noise."""
    base = {"epsilon": 1.0, "delta": 1e-5, "steps": 10}
    least = noise_multiplier(**base)
    for change in ({"epsilon": 0.9}, {"delta": 1e-6}, {"steps": 11}, {"relation": "replace-one"}):
        assert noise_multiplier(**(base | change)) > least
    assert noise_multiplier(**base, sample_rate=0.5) < least


def test_p15_weights_outside_the_sensitivity_would_show():
    """P15: a site of 90 % of the rows under noise for one tenth spends 78, not 4.4; mu says so."""
    assert gaussian_epsilon(1.0, 1e-5).upper == pytest.approx(4.377, abs=1e-3)
    assert gaussian_epsilon(9.0**2, 1e-5).upper > 70


@pytest.mark.parametrize("relation", ["add-remove", "zero-out", "replace-one"])
def test_a_patient_at_k_sites_costs_k_times_the_sensitivity(relation):
    """At q = 1 three sites are three clip norms, exactly; the noise for a budget is three times as much."""
    one = epsilon(noise_multiplier=2.0, steps=5, delta=1e-5, relation=relation)
    assert epsilon(noise_multiplier=6.0, steps=5, delta=1e-5, relation=relation, silos=3).upper == one.upper
    noise = noise_multiplier(epsilon=1.0, steps=5, delta=1e-5, relation=relation, silos=3)
    assert noise == pytest.approx(3 * noise_multiplier(epsilon=1.0, steps=5, delta=1e-5, relation=relation), rel=1e-8)
    assert epsilon(noise_multiplier=noise, steps=5, delta=1e-5, relation=relation, silos=3).upper <= 1


def test_a_patient_at_k_sites_under_sampling_is_bounded():
    """Below q = 1 it costs more than the sensitivity alone would, and no less than all the data at one site."""
    question = {"steps": 20, "delta": 1e-5}
    answer = epsilon(**question, noise_multiplier=6.0, sample_rate=0.1, silos=3)
    assert answer.upper > epsilon(**question, noise_multiplier=2.0, sample_rate=0.1).upper
    assert answer.upper < epsilon(**question, noise_multiplier=6.0, silos=3).upper
    assert answer.lower == epsilon(**question, noise_multiplier=6.0, sample_rate=0.1).lower
    noise = noise_multiplier(**question, epsilon=1.0, sample_rate=0.1, silos=3)
    assert 0.999 < epsilon(**question, noise_multiplier=noise, sample_rate=0.1, silos=3).upper <= 1


def test_a_client_is_zeroed_out_in_every_round():
    """The client unit has the record's bound at q = 1 without a sampling rate, twice the clip norm under replace-one."""
    question = {"noise_multiplier": 4.0, "steps": 50, "delta": 1e-6}
    assert epsilon(**question, unit="client") == epsilon(**question, relation="zero-out")
    assert epsilon(**question, unit="client", relation="replace-one") == epsilon(**question, relation="replace-one")
    with pytest.raises(AccountingError, match="cohort"):
        epsilon(**question, unit="client", sample_rate=0.5)
    with pytest.raises(AccountingError, match="zero-out"):
        noise_multiplier(epsilon=1.0, steps=1, delta=1e-5, unit="client", relation="add-remove")


@pytest.mark.parametrize("relation", ["zero-out", "replace-one"])
def test_p8_shuffled_batches_are_accounted_at_one(relation):
    """P8: batches of a fixed size cost what full batches cost, several times the Poisson answer, with no lower bound."""
    question = {"noise_multiplier": 2.0, "steps": 50, "delta": 1e-5, "relation": relation}
    fixed = epsilon(**question, sample_rate=0.1, sampling="fixed")
    assert fixed.upper == epsilon(**question).upper
    assert fixed.lower == 0
    assert fixed.upper > 4 * epsilon(**question, sample_rate=0.1).upper
    solved = {"epsilon": 1.0, "steps": 50, "delta": 1e-5, "relation": relation}
    assert noise_multiplier(**solved, sample_rate=0.1, sampling="fixed") == noise_multiplier(**solved)


def test_p8_shuffled_batches_have_no_add_remove():
    """P8: when a record leaves a batch of a fixed size another takes its place, so the relation is asked for and refused."""
    for relation in (None, "add-remove"):
        with pytest.raises(AccountingError, match=r"needs a relation|another takes its place"):
            epsilon(noise_multiplier=2.0, steps=50, delta=1e-5, sample_rate=0.1, sampling="fixed", relation=relation)


def test_the_cross_check_leaves_out_what_its_grid_cannot_tell():
    """At a delta next to 1, or losses beyond float64, the closed form and Rényi stand alone."""
    for question in ({"noise_multiplier": 3.0, "delta": 1 - 1e-16}, {"noise_multiplier": 0.01, "delta": 1e-5}):
        assert epsilon(**question, steps=100).routes.keys() == {"closed_form", "rdp"}


@pytest.mark.parametrize("relation", ["add-remove", "replace-one"])
def test_a_delta_that_covers_every_draw_ends_the_search(relation):
    """Where delta is above the chance that a record is drawn at all, any noise would do, and the search still ends."""
    question = {"delta": 0.5, "steps": 1000, "sample_rate": 1e-9, "relation": relation}
    noise = noise_multiplier(epsilon=1e-9, **question)
    assert 0 < noise < 1
    assert epsilon(noise_multiplier=noise, **question).upper <= 1e-9
