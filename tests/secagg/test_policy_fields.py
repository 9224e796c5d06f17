import math

import numpy as np
import pytest

from secagg import Block, ClientPolicy
from secagg.errors import ParameterError

BLOCKS = (Block("update", 5, 20, 1000),)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_cohort": 2}, "min_cohort must be an integer of at least 3"),
        ({"min_cohort": True}, "min_cohort"),
        ({"min_threshold": 1}, "min_threshold must be an integer of at least 2"),
        ({"min_known_peers": -1}, "min_known_peers"),
        ({"max_rounds": 1.5}, "max_rounds"),
        ({"max_rounds": -1}, "max_rounds must be an integer of at least 0"),
        ({"min_survivors": -1}, "min_survivors"),
        ({"min_colluders": -1}, "min_colluders"),
        ({"suites": ()}, "suites: a set of some of"),
        ({"suites": "hybrid"}, "suites: a set of some of"),
        ({"suites": {"rot13"}}, "suites: a set of some of"),
        ({"adversaries": {"kind"}}, "adversaries: a set of some of"),
        ({"max_rate": (0, 1.0)}, "max_rate: rounds"),
        ({"max_rate": (1, math.nan)}, "max_rate: seconds"),
        ({"max_rate": (1, -1.0)}, "max_rate: seconds"),
        ({"max_rate": (1, 0)}, "max_rate: seconds"),
        ({"max_rate": (1, math.inf)}, "max_rate: seconds"),
        ({"max_rate": (1, True)}, "max_rate: seconds"),
        ({"blocks": (*BLOCKS, *BLOCKS)}, "blocks: a sequence of blocks with different names"),
    ],
)
def test_a_limit_that_means_nothing_is_refused(fields, message):
    """A policy is checked when it is made; the error names the limit."""
    with pytest.raises(ParameterError, match=message):
        ClientPolicy(**fields)


COUNTS = ("min_cohort", "min_known_peers", "min_threshold", "min_survivors", "min_colluders", "max_rounds")
NO_COUNT = (-1, 5.0, True, False, math.nan, math.inf, "5", b"5", [5], {5}, np.int64(5))
NO_SET = (5, None, "", "lying", b"lying", bytearray(b"lying"), {"lying": 1}, iter(["lying"]), np.array(["lying"]))
WRONG = [
    *((name, value) for name in COUNTS for value in NO_COUNT),
    *((name, None) for name in ("min_cohort", "min_threshold", "min_colluders")),
    *((name, value) for name in ("suites", "adversaries") for value in (*NO_SET, {1}, {None}, [["lying"]], {"Hybrid"})),
    *(("suites", value) for value in ("classical", "hybrid", {"hybrid", "rot13"}, {"lying"})),
    *(("adversaries", value) for value in ({"hybrid"}, {"lying", "dead"})),
    *(("allow_sparse", value) for value in ("no", "", 0, 1, None, [], 0.0, np.True_)),
    *(
        ("known_peers", value)
        for value in ({"1"}, {1.0}, {True}, {-1}, {2**64 - 1}, {math.nan}, {None}, [[1]], [1, "2"])
    ),
    *(("known_peers", value) for value in (1, "1", "", b"\x01", bytearray(1), memoryview(b"a"), {1: "a"}, iter([1]))),
    *(
        ("blocks", value)
        for value in ((), [], ("update",), "update", "", b"", 5, BLOCKS[0], set(BLOCKS), {"a": BLOCKS[0]})
    ),
    *(("blocks", value) for value in (iter(BLOCKS), (None,), (*BLOCKS, "count"), (("update", 5, 20, 1000),))),
    *(
        ("max_rate", value)
        for value in (5, 5.0, "5/s", "55", b"55", (), (5,), (5, 1.0, 1.0), {5, 1.0}, {5: 1.0, 6: 2.0}, True)
    ),
    *(("max_rate", (value, 1.0)) for value in (*NO_COUNT, 0, None)),
    *(
        ("max_rate", (1, value))
        for value in (-1, -1.0, 0, 0.0, True, "1", None, math.nan, math.inf, -math.inf, 10**400, 1j)
    ),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=[f"{name}-{number}" for number, (name, _) in enumerate(WRONG)])
def test_a_value_of_another_kind_is_refused_by_name_and_value(name, value):
    """Nothing but the documented form passes, whatever it would turn into or let through; the error has the field and the value."""
    with pytest.raises(ParameterError, match=rf"\Apolicy {name}\b") as caught:
        ClientPolicy(**{name: value})
    members = list(value) if isinstance(value, (set, list, tuple)) else []
    assert any(repr(part) in str(caught.value) for part in (value, *members))


def test_what_is_as_good_as_documented_is_taken():
    """Any collection in place of a set, a list in place of a tuple, whole seconds: the policy is the same as in the documented form."""
    made = ClientPolicy(
        suites=dict.fromkeys(["hybrid"]).keys(),
        adversaries=("lying",),
        known_peers=range(3),
        blocks=list(BLOCKS),
        max_rate=[2, 60],
        max_rounds=0,
        min_known_peers=0,
    )
    same = ClientPolicy(
        known_peers=frozenset({0, 1, 2}), blocks=BLOCKS, max_rate=(2, 60.0), max_rounds=0, min_known_peers=0
    )
    assert made == same
    assert hash(made) == hash(same)
    assert ClientPolicy(known_peers={0, 2**64 - 2}).known_peers == {0, 2**64 - 2}
    assert ClientPolicy(known_peers=()).known_peers == frozenset()
