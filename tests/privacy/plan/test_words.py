import math

import pytest

from privacy.plan.words import explain


def test_a_person_at_several_sites_is_the_unit(heart):
    """With silos the page speaks of a person, of how often one counts, and of the norm of the whole."""
    text = explain(heart(silos=3))
    for part in ("one person", "at most 3 sites", "counts 3 times", "norm 3 together", "more than 3 sites"):
        assert part in text
    assert "one person" not in explain(heart())
    assert len(text.splitlines()) < 30


def test_a_client_is_a_site(heart):
    """The client unit says that taking part is public, and that patients at several sites are not covered."""
    text = explain(heart(unit="client", relation="zero-out", records_per_site=1))
    assert "one site" in text
    assert "who takes part is public" in text
    assert "a person with records at several sites" in text


def test_an_adaptive_clip_is_told(heart, adaptive):
    """Quantile, range, the bit and its noise stand there; the coordinates include the bit."""
    plan = heart(adaptive=adaptive)
    text = explain(plan)
    for part in (
        "at first",
        "a fraction of 0.5",
        "[0.01, 100]",
        f"{plan.bit} steps",
        "is 36, for 720",
        "41 coordinates",
    ):
        assert part in text
    assert len(text.splitlines()) < 30


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 2.0, 5.0, 12.3456789])
def test_bounds_in_words_are_rounded_up_and_budgets_not_at_all(heart, epsilon):
    """The odds and the epsilon that are printed are never below the bound; the budget is printed to its last digit."""
    plan = heart(epsilon=epsilon)
    text = explain(plan)
    upper = plan.accounted_epsilon().upper
    assert float(text.split("epsilon <= ")[1].split()[0]) >= upper
    assert float(text.split("by at most ")[1].split(",")[0]) >= math.exp(upper)
    assert float(text.split("budget of the run is ")[1].split(".\n")[0]) == epsilon
