import numpy as np
import pytest

from fl.algorithms import Mean, SiteUpdate, plain_mean
from privacy.errors import InputError


def test_the_mean_is_weighted_by_records():
    """A site counts as often as it has records; where all count alike, one without records still does not."""
    updates = {
        "a": SiteUpdate(np.array([1.0, 0.0]), 3, 2.0),
        "b": SiteUpdate(np.array([5.0, 4.0]), 1, 6.0),
        "c": SiteUpdate(np.array([9.0, 9.0]), 0, 0.0),
    }
    mean, excluded = plain_mean(updates)
    assert (mean.gradient.tolist(), mean.weight, mean.loss, excluded) == ([-2, -1], 4, 3.0, ())
    uniform, _ = plain_mean(updates, uniform=True, upload="gradient")
    assert (uniform.gradient.tolist(), uniform.weight, uniform.loss) == ([3, 2], 2, 4.0)
    parameters, _ = plain_mean(updates, upload="parameters")
    assert (parameters.gradient, parameters.parameters.tolist()) == (None, [2, 1])


def test_no_data_has_no_mean():
    """S7: when all counts are zero, or nobody is there, there is no mean and no division by zero."""
    assert plain_mean({"a": SiteUpdate(np.zeros(4), 0, 0.0)}) == (Mean(None, weight=0), ())
    assert plain_mean({}) == (Mean(None, weight=0), ())
    assert plain_mean({"a": SiteUpdate(np.zeros(4), 0, 0.0)}, strategy="median") == (Mean(None, weight=0), ())


@pytest.mark.parametrize("strategy", ["mean", "median", "trimmed_mean"])
def test_what_is_not_finite_is_left_out_by_name(strategy):
    """F1: a site whose update, loss or further vector is not finite is excluded by name, even at weight 0."""
    good = SiteUpdate(np.ones(2), 3, 1.0, {"control": np.ones(2)})
    bad = {
        "nan": SiteUpdate(np.array([1.0, np.nan]), 0, 1.0, {"control": np.ones(2)}),
        "infinite": SiteUpdate(np.array([1.0, -np.inf]), 2, 1.0, {"control": np.ones(2)}),
        "loss": SiteUpdate(np.ones(2), 2, np.nan, {"control": np.ones(2)}),
        "beside": SiteUpdate(np.ones(2), 2, 1.0, {"control": np.array([np.inf, 0])}),
    }
    mean, excluded = plain_mean({"north": good, **bad}, strategy=strategy)
    assert excluded == tuple(bad)
    assert mean.gradient.tolist() == [-1, -1]


@pytest.mark.parametrize("strategy", ["mean", "median"])
def test_a_negative_weight_is_refused(strategy):
    """F2: a negative weight is refused by the site's name, whatever the strategy."""
    good, bad = SiteUpdate(np.ones(2), 3, 1.0), SiteUpdate(np.ones(2), -1, 1.0)
    with pytest.raises(InputError, match="site south: weight -1 is negative"):
        plain_mean({"north": good, "south": bad}, strategy=strategy)


@pytest.mark.parametrize("shape", [(1,), (), (2, 1), (3,)])
@pytest.mark.parametrize("beside", [False, True])
def test_nothing_is_stretched(shape, beside):
    """F3, S8: a vector that NumPy could broadcast to the others' is refused by the site's name and both shapes."""
    odd = (np.ones(2), {"control": np.ones(shape)}) if beside else (np.ones(shape), {"control": np.ones(2)})
    updates = {
        "north": SiteUpdate(np.ones(2), 3, 1.0, {"control": np.ones(2)}),
        "south": SiteUpdate(odd[0], 3, 1.0, odd[1]),
    }
    with pytest.raises(InputError) as caught:
        plain_mean(updates)
    assert str(caught.value) == f"site south: a change of shape {shape} among changes of shape (2,)"


def sites(values):
    """One update of one entry per value, of very different weights."""
    return {str(index): SiteUpdate(np.array([value]), 1 + 50 * index, 0.0) for index, value in enumerate(values)}


@pytest.mark.parametrize(
    ("strategy", "values", "expected"),
    [
        ("median", [1.0, 2.0, 1e9], 2.0),
        ("median", [1.0, 2.0, 4.0, 1e9], 3.0),
        ("trimmed_mean", [7.0], 7.0),
        ("trimmed_mean", [1.0, 5.0], 3.0),
        ("trimmed_mean", [-1e9, 2.0, 1e9], 2.0),
        ("trimmed_mean", [-1e9, 2.0, 4.0, 1e9], 3.0),
        ("trimmed_mean", [-1e9, *range(8), 1e9], 3.5),
        ("trimmed_mean", [-1e9, -1e8, *range(7), 1e8, 1e9], 3.0),
    ],
)
def test_robust_strategies_ignore_outliers(strategy, values, expected):
    """One wild site among three or more does not move a median or a trimmed mean, and every site counts as one."""
    mean, _ = plain_mean(sites(values), upload="gradient", strategy=strategy)
    assert mean.gradient.tolist() == [expected]
    assert mean.weight == len(values)


def test_strategies_work_entry_by_entry():
    """Each entry has its own order, and a site without records has no say."""
    updates = {
        "a": SiteUpdate(np.array([1.0, 9.0]), 1, 0.0),
        "b": SiteUpdate(np.array([2.0, 1.0]), 1, 0.0),
        "c": SiteUpdate(np.array([9.0, 2.0]), 1, 0.0),
        "d": SiteUpdate(np.array([0.0, 0.0]), 0, 0.0),
    }
    for strategy in ("median", "trimmed_mean"):
        mean, _ = plain_mean(updates, upload="gradient", strategy=strategy)
        assert mean.gradient.tolist() == [2, 2]
