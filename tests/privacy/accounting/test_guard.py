import math
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from scipy.stats import norm

from privacy.accounting import guard
from privacy.accounting.guard import Subsampled, question
from privacy.errors import AccountingError


def asked(**change):
    """A question about one step of all records, but for what is changed."""
    parts = {"sample_rate": 1.0, "steps": 1, "unit": "record", "relation": None, "sampling": "poisson", "silos": 1}
    return question(**(parts | change))


def test_a_unit_has_its_own_relation():
    """Left open, a record is added or removed and a client zeroed out; named, replace-one is either's."""
    assert asked().relation == "add-remove"
    assert asked(unit="client").relation == "zero-out"
    for unit in ("record", "client"):
        answer = asked(unit=unit, relation="replace-one")
        assert (answer.relation, answer.above(2.0)) == ("replace-one", Subsampled(2.0, 1.0, 1, replace_one=True))
        assert asked(unit=unit, relation="zero-out").above(2.0) == Subsampled(2.0, 1.0, 1, replace_one=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unit": "client", "sample_rate": 0.5}, "signed cohort"),
        ({"unit": "client", "relation": "add-remove"}, "who takes part is public"),
        ({"unit": "client", "silos": 2}, "a client is one site"),
        ({"sampling": "fixed", "sample_rate": 0.5}, "needs a relation"),
        ({"sampling": "fixed", "sample_rate": 0.5, "relation": "add-remove"}, "another takes its place"),
        ({"unit": "patient"}, "unit = 'patient' is none of record, client"),
        ({"sampling": "shuffled"}, "sampling = 'shuffled' is none of poisson, fixed"),
        ({"relation": "swap"}, "relation = 'swap' is none of add-remove, zero-out, replace-one"),
        ({"relation": ["zero-out"]}, "relation"),
        ({"relation": False}, "relation"),
        ({"unit": None}, "unit"),
        ({"silos": 0}, "silos"),
        ({"silos": 2.0}, "silos"),
        ({"silos": True}, "silos"),
        ({"silos": "2"}, "silos"),
        ({"steps": 1 << 53}, "steps"),
        ({"sample_rate": Fraction(3, 2)}, "sample_rate"),
    ],
)
def test_what_does_not_go_together_is_refused(change, message):
    """A wrong relation, unit, sampler or count is refused with its name, and never read as another."""
    with pytest.raises(AccountingError, match=message):
        asked(**change)


def test_p8_batches_of_a_fixed_size_are_accounted_in_every_step():
    """P8: shuffled batches get no amplification: q = 1, and no lower bound is claimed for them."""
    answer = asked(sampling="fixed", sample_rate=0.01, steps=9, relation="replace-one")
    assert answer.above(3.0) == Subsampled(3.0, 1.0, 9, replace_one=True)
    assert answer.below(3.0) is None
    assert asked(sampling="fixed").below(3.0) == asked().below(3.0)  # all records are no batch


def test_a_patient_at_k_sites_is_k_times_the_sensitivity():
    """Noise k times smaller; below q = 1, in a step if any of k coins falls; the lower bound has all data at one site."""
    assert asked(silos=4).above(8.0) == asked(silos=4).below(8.0) == Subsampled(2.0, 1.0, 1, replace_one=False)
    sampled = asked(silos=3, sample_rate=0.1)
    above = sampled.above(6.0)
    assert above.z == 2.0
    assert 1 - 0.9**3 <= above.q <= (1 - 0.9**3) * (1 + 1e-14)
    assert sampled.below(6.0) == Subsampled(6.0, 0.1, 1, replace_one=False)
    assert asked(silos=10**6, sample_rate=0.5).above(1.0).q == 1


@pytest.mark.parametrize("q", [0.02, 0.3, 0.8])
@pytest.mark.parametrize("relation", ["add-remove", "replace-one"])
def test_one_coin_before_k_clip_norms_hides_less_than_k_coins(q, relation):
    """At every level and in both orders, k sites with coins of their own are told apart no better than the bound's pair.

    What the bound is not: k clip norms at the rate of one coin would be exceeded.
    """
    k, z = 3, 2.0
    x, width = np.linspace(-12 * z - k, 12 * z + k, 100_001, retstep=True)

    def law(weights):
        return sum(weight * norm.pdf(x, mean, z) for mean, weight in weights.items())

    def sampled(rate, size):
        return law({0: 1 - rate, size: rate})

    def divergence(first, second, level):
        return float(np.maximum(first - level * second, 0).sum() * width)

    def sites(sign):
        return law({sign * j: comb(k, j) * q**j * (1 - q) ** (k - j) for j in range(k + 1)})

    above = asked(silos=k, sample_rate=q).above(z)
    assert above.z == z / k
    truth = (sites(1), sites(-1) if relation == "replace-one" else law({0: 1}))
    bound = (sampled(above.q, k), sampled(above.q, -k) if relation == "replace-one" else law({0: 1}))
    wrong = (sampled(q, k), sampled(q, -k) if relation == "replace-one" else law({0: 1}))
    exceeded = []
    for level in (0.5, 0.9, 0.99, 1.0, 1.01, 1.1, 1.5, 3.0):
        for order in (1, -1):
            assert divergence(*truth[::order], level) <= divergence(*bound[::order], level) + 1e-10
            exceeded.append(divergence(*truth[::order], level) > divergence(*wrong[::order], level) + 1e-6)
    assert any(exceeded)


@pytest.mark.parametrize("check", [guard.positive, guard.not_negative, guard.rate, guard.probability])
@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -1, -5e-324, "1", "nan", None, True, np.True_, 1j, [1], np.array([1.0]), 10**400, 10**5000],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_finite_number_is_refused_by_name(check, value):
    """NaN, infinity, texts, booleans, arrays and numbers beyond float64 raise, with the name, in a line."""
    with pytest.raises(AccountingError, match="the_name") as caught:
        check("the_name", value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.float64(0.5), Fraction(1, 2)])
def test_numbers_of_any_library_are_numbers(value):
    """Python's, numpy's and exact fractions mean the same."""
    for check in (guard.positive, guard.not_negative, guard.rate, guard.probability):
        assert check("name", value) == 0.5


@pytest.mark.parametrize(
    "value",
    [math.nan, 1.0, np.float64(3), "3", True, np.True_, 0, -1, 1 << 53, 10**5000, None],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_count_is_refused_by_name(value):
    """Floats, texts, booleans, zero and what float64 cannot hold are no number of steps."""
    with pytest.raises(AccountingError, match="the_name"):
        guard.count("the_name", value)


def test_counts_may_be_numpys():
    """An integer of numpy is one of Python's from then on."""
    assert type(guard.count("steps", np.int32(3))) is int


def test_ends_of_the_ranges():
    """A rate may be 1 and a probability may not; neither is 0."""
    assert guard.rate("q", 1) == 1
    for check, value in ((guard.rate, 0), (guard.rate, 1 + 1e-9), (guard.probability, 1), (guard.probability, 0)):
        with pytest.raises(AccountingError, match="the_name"):
            check("the_name", value)
    assert guard.not_negative("x", 0) == 0
