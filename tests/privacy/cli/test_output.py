import json
import math

import pytest

from privacy.accounting import EpsilonBound
from privacy.cli.output import at_most, print_json, routes


@pytest.mark.parametrize(
    ("upper", "words"), [(1.23456741, "epsilon <= 1.23457"), (1.2345631, "epsilon <= 1.23457"), (math.inf, "no bound")]
)
def test_a_bound_is_rounded_up(upper, words):
    """What is printed is never below what was proved; no bound is said to be none."""
    assert words in at_most(EpsilonBound(upper=upper, lower=0.0, routes={"closed_form": upper}))


def test_routes_come_smallest_first():
    """Every route is named, with the lower bound after them."""
    text = routes(EpsilonBound(upper=1.0, lower=0.12345678, routes={"rdp": 2.0, "closed_form": 1.0}))
    assert text.index("closed_form") < text.index("rdp") < text.index("lower bound: 0.123456")
    assert text.endswith("0.123456")


def test_what_is_not_finite_is_null(capsys):
    """JSON has no infinity and no NaN, at any depth."""
    print_json({"a": math.inf, "b": [math.nan, 1.5, {"c": -math.inf}], "d": (True, None)})
    out = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert out == {"a": None, "b": [None, 1.5, {"c": None}], "d": [True, None]}
