import math

import numpy as np
import pytest
from scipy.stats import norm

from privacy.accounting import block, block_epsilon, epsilon
from privacy.accounting.gaussian import RDP_ORDERS
from privacy.accounting.guard import Subsampled
from privacy.accounting.pld import Losses, one_step
from privacy.errors import AccountingError

QUESTION = {
    "noise_multiplier": 1.0,
    "sample_rate": 0.1,
    "local_steps": 20,
    "client_rate": 0.2,
    "rounds": 10,
    "delta": 1e-5,
}


@pytest.mark.parametrize("relation", ["add-remove", "zero-out"])
def test_one_local_step_is_where_the_rates_multiply(relation):
    """With one local step the two coins are one, of the product of the rates: both bounds meet that answer's."""
    answer = block_epsilon(**(QUESTION | {"local_steps": 1, "rounds": 200}), relation=relation)
    single = epsilon(noise_multiplier=1.0, sample_rate=0.02, steps=200, delta=1e-5)
    assert answer.upper == pytest.approx(single.upper, rel=2e-3)
    assert answer.upper >= single.lower
    assert answer.lower <= single.upper
    assert answer.lower == pytest.approx(single.lower, rel=0.2)


def test_a_block_of_full_batches_is_one_gaussian():
    """With q = 1 the block is a Gaussian of sqrt(L) clip norms behind a Poisson coin, and the answer that one's."""
    answer = block_epsilon(**(QUESTION | {"sample_rate": 1.0, "local_steps": 16, "noise_multiplier": 8.0}))
    assert answer == epsilon(noise_multiplier=2.0, sample_rate=0.2, steps=10, delta=1e-5)


@pytest.mark.parametrize("coin", ["secret", "seen"])
@pytest.mark.parametrize("relation", ["add-remove", "replace-one"])
def test_a_client_that_always_takes_part_has_no_coin(coin, relation):
    """At a client rate of 1 the answer is that of all local steps."""
    answer = block_epsilon(**(QUESTION | {"client_rate": 1.0}), coin=coin, relation=relation)
    assert answer == epsilon(noise_multiplier=1.0, sample_rate=0.1, steps=200, delta=1e-5, relation=relation)


def test_a_coin_that_is_seen_costs_more():
    """The order of the claims: product of rates < secret coin < coin that is seen < no coin."""
    product = epsilon(noise_multiplier=1.0, sample_rate=0.02, steps=200, delta=1e-5).upper
    secret, seen = (block_epsilon(**QUESTION, coin=coin) for coin in ("secret", "seen"))
    without = epsilon(noise_multiplier=1.0, sample_rate=0.1, steps=200, delta=1e-5).lower
    assert product < secret.lower <= secret.upper < seen.lower <= seen.upper < without
    for answer in (secret, seen):
        assert set(answer.routes) == {"pld", "rdp", "unsampled"}
        assert answer.upper == min(answer.routes.values())


def exact_round_delta(level, *, c, mu, coin):
    """Two-way delta of one round whose block is a Gaussian of mean mu: by integration, from the definition."""
    x, width = np.linspace(-14, 14 + mu, 400_001, retstep=True)
    absent, present = norm.pdf(x), norm.pdf(x, mu)
    if coin == "secret":
        first, second = (1 - c) * absent + c * present, absent
    else:  # a round without the client is an outcome of its own, as likely under both
        first, second = (np.append(c * law, (1 - c) / width) for law in (present, absent))
    return max(
        float(np.maximum(p - math.exp(level) * q, 0).sum() * width) for p, q in ((first, second), (second, first))
    )


@pytest.mark.parametrize("coin", ["secret", "seen"])
def test_one_round_agrees_with_its_definition(coin):
    """One round of a Gaussian block: at the answered epsilon, delta by integration is delta; both directions are in it."""
    answer = block_epsilon(noise_multiplier=2.0, local_steps=4, client_rate=0.3, rounds=1, delta=1e-3, coin=coin)
    assert exact_round_delta(answer.upper, c=0.3, mu=1.0, coin=coin) == pytest.approx(1e-3, rel=1e-3)
    assert exact_round_delta(answer.upper + 1e-6, c=0.3, mu=1.0, coin=coin) <= 1e-3
    assert exact_round_delta(answer.lower, c=0.3, mu=1.0, coin=coin) >= 1e-3 * (1 - 1e-6)


@pytest.mark.parametrize("c", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("mu", [0.4, 3.0])
def test_a_mixture_has_the_curve_of_its_definition(c, mu):
    """In both directions, at losses of either sign: from above delta(epsilon) is the integral, from below a little less."""
    x, width = np.linspace(-16, 16 + mu, 400_001, retstep=True)
    absent, present = norm.pdf(x), norm.pdf(x, mu)
    mixture = (1 - c) * absent + c * present
    step = Subsampled(1 / mu, 1.0, 1, replace_one=False)
    epsilons = np.array([-2.0, -0.2, 0.0, 0.01, 0.2, 1.0, 2.5])

    def exact(first, second):
        return np.array([np.maximum(first - math.exp(each) * second, 0).sum() * width for each in epsilons])

    above = one_step(step, 1e-3, "remove", pessimistic=True)
    assert block._with_mixture(above, c).deltas(epsilons) == pytest.approx(exact(mixture, absent), abs=2e-6)
    assert block._against_mixture(above, c).deltas(epsilons) == pytest.approx(exact(absent, mixture), abs=2e-6)
    below, without = (one_step(step, 1e-3, "remove", pessimistic=False, under_second=each) for each in (False, True))
    lower = block._mixture_below(below, without, c).deltas(epsilons)
    assert np.all(lower <= exact(mixture, absent) + 1e-9)
    assert lower == pytest.approx(exact(mixture, absent), abs=2e-3)


def test_a_coin_in_clear_is_a_loss_of_nothing():
    """Beside the block stands a loss of 0, also where the block's own losses are all above or below it."""
    for lowest in (-5, 0, 3):
        losses = Losses(0.5, lowest, np.array([0.25, 0.65]), 0.1, pessimistic=True)
        mixed = block._beside_nothing(losses, 0.2)
        found = dict(zip(mixed.values(), mixed.masses, strict=True))
        assert found[0.0] == pytest.approx(0.8 + 0.2 * (0.25 if lowest == 0 else 0))
        assert found[0.5 * (lowest + 1)] == pytest.approx(0.2 * 0.65)
        assert mixed.infinity == pytest.approx(0.02)
        assert mixed.masses.sum() + mixed.infinity == pytest.approx(1)


def test_losses_beyond_600_are_unbounded_before_they_are_mixed():
    """What the mixture would have to exponentiate beyond float64 counts as infinite."""
    losses = Losses(100.0, 5, np.array([0.5, 0.2, 0.2, 0.05]), 0.05, pessimistic=True)
    kept = block._within(losses)
    assert list(kept.values()) == [500.0, 600.0]
    assert kept.infinity == pytest.approx(0.3)


def test_other_records_that_show_the_coin_break_the_secret_answer():
    """A client whose other records tell whether it takes part spends more than the secret coin's epsilon."""
    secret = block_epsilon(noise_multiplier=2.0, local_steps=4, client_rate=0.3, rounds=1, delta=1e-3, coin="secret")
    assert exact_round_delta(secret.upper, c=0.3, mu=1.0, coin="seen") > 2e-3


@pytest.mark.parametrize("order", [2, 5, 16])
@pytest.mark.parametrize("c", [0.01, 0.2])
def test_divergences_of_the_mixture_are_above_the_exact_ones(order, c):
    """By integration: the mixture against Q is exact, Q against it bounded, closely for a small coin, and so is one seen."""
    mu = 0.8
    question = block._Block(Subsampled(2 / mu, 1.0, 4, replace_one=False), c, 1, hidden=True)
    x, width = np.linspace(-16 - order, 16 + order, 400_001, retstep=True)
    absent, present = norm.logpdf(x), norm.logpdf(x, mu)
    mixture = np.logaddexp(math.log(1 - c) + absent, math.log(c) + present)

    def divergence(first, second):
        return math.log(np.exp(order * first + (1 - order) * second).sum() * width) / (order - 1)

    forward, backward = divergence(mixture, absent), divergence(absent, mixture)
    bound = block._against_mixture_divergence(order, c, order * mu**2 / 2, np.array([mu**2]))
    assert backward < bound <= c * divergence(absent, present) * (1 + 1e-9)
    assert c > 0.1 or bound < 1.5 * backward
    assert question._hidden_divergences()[RDP_ORDERS.index(order)] == pytest.approx(max(forward, bound), rel=1e-8)
    seen = block._Block(Subsampled(2 / mu, 1.0, 4, replace_one=False), c, 1, hidden=False)
    in_clear = math.log(1 - c + c * math.exp((order - 1) * divergence(present, absent))) / (order - 1)
    assert seen._seen_divergences()[RDP_ORDERS.index(order)] == pytest.approx(in_clear, rel=1e-6)


def test_replace_one_needs_a_coin_that_is_seen():
    """Behind a secret coin neither record is what a client at home looks like, so the relation is refused; seen it is dearer."""
    with pytest.raises(AccountingError, match="coin = 'seen'"):
        block_epsilon(**QUESTION, relation="replace-one")
    assert (
        block_epsilon(**QUESTION, relation="replace-one", coin="seen").lower
        > block_epsilon(**QUESTION, coin="seen").upper
    )


@pytest.mark.parametrize("name", ["noise_multiplier", "sample_rate", "local_steps", "client_rate", "rounds", "delta"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 0, -1, True, "1", None, 1 << 60])
def test_inputs_that_mean_nothing_are_refused(name, value):
    """NaN, infinity, zero, negative numbers, booleans, texts and absurd counts raise, and the error names the input."""
    if name == "noise_multiplier" and value == 1 << 60:
        value = -math.inf
    with pytest.raises(AccountingError, match=name):
        block_epsilon(**(QUESTION | {name: value}))


@pytest.mark.parametrize(("name", "value"), [("coin", "public"), ("relation", "swap"), ("coin", None)])
def test_words_that_mean_nothing_are_refused(name, value):
    """An unknown coin or relation raises, and the error names it."""
    with pytest.raises(AccountingError, match=name):
        block_epsilon(**(QUESTION | {name: value}))


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": 1e-3},
        {"local_steps": 10**6, "rounds": 10**6},
        {"delta": 1e-14},
        {"client_rate": 5e-324},
        {"client_rate": 1 - 2**-53},
        {"sample_rate": 1e-300},
        {"noise_multiplier": 1e40, "sample_rate": 1e-30},
    ],
)
@pytest.mark.parametrize("coin", ["secret", "seen"])
def test_questions_at_the_edges_are_bounded_without_a_distribution(change, coin):
    """Tiny noise, too many steps, a tiny delta, rates that rounding loses: Rényi or the unsampled form answers."""
    answer = block_epsilon(**(QUESTION | change), coin=coin)
    assert answer.routes.keys() == {"rdp", "unsampled"}
    assert answer.lower == 0 <= answer.upper < math.inf


def test_contradictions_raise(monkeypatch):
    """A lower bound above any route is an error, not an answer."""
    monkeypatch.setattr(block._Block, "pld", lambda *_, pessimistic: 5.0 if pessimistic else 6.0)
    with pytest.raises(AccountingError, match="above the upper bound"):
        block_epsilon(**QUESTION)


def test_more_rounds_steps_and_larger_rates_never_cost_less():
    """The bound grows with each of the four, and falls with the noise."""
    base = block_epsilon(**QUESTION).upper
    for change in ({"rounds": 12}, {"local_steps": 25}, {"client_rate": 0.25}, {"sample_rate": 0.12}, {"delta": 1e-6}):
        assert block_epsilon(**(QUESTION | change)).upper > base
    assert block_epsilon(**(QUESTION | {"noise_multiplier": 1.1})).upper < base


@pytest.mark.parametrize("coin", ["secret", "seen"])
def test_the_upper_bound_asks_both_directions(coin, monkeypatch):
    """From above a record that is added and one that is removed are both in it, though the latter has always been dearer."""
    asked = set()
    real = block.one_step

    def recording(step, grid, direction, **how):
        asked.add((direction, how["pessimistic"]))
        return real(step, grid, direction, **how)

    monkeypatch.setattr(block, "one_step", recording)
    block_epsilon(**QUESTION, coin=coin)
    assert asked == {("remove", True), ("add", True), ("remove", False)}
