import math

import pytest

from privacy.errors import PlanError
from privacy.reading import check_count, check_keys, check_real, read_object, unique_keys


@pytest.mark.parametrize("value", [True, 1.0, "1", None, 0, -1, 1 << 53])
def test_a_count_is_an_integer_in_range(value):
    """Booleans, floats, texts and integers out of range are no counts, and the name is told; the ends are."""
    with pytest.raises(PlanError, match="rounds"):
        check_count("rounds", value, 1)
    check_count("rounds", 1, 1)
    check_count("rounds", (1 << 53) - 1, 1)


@pytest.mark.parametrize("value", [True, "1", None, 0, -1.0, math.nan, math.inf, 10**400])
def test_a_real_is_finite_and_positive(value):
    """NaN, infinity, zero, booleans and integers beyond every float are refused by name; an integer becomes a float."""
    with pytest.raises(PlanError, match="clip"):
        check_real("clip", value)
    assert type(check_real("clip", 2)) is float


def test_a_key_given_twice_is_named():
    """JSON objects may repeat a key; these may not."""
    assert unique_keys([("a", 1), ("b", 2)]) == {"a": 1, "b": 2}
    with pytest.raises(ValueError, match="'b' is given twice"):
        unique_keys([("a", 1), ("b", 2), ("b", 2)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        (b"\xff", "not JSON"),
        ("[]", "not an object"),
        ('{"format":"privacy-plan/2"}', "privacy-plan/1"),
        ('{"format":"privacy-plan/1","clip":Infinity}', "Infinity"),
        ('{"format":"privacy-plan/1","adaptive":{"quantile":1,"quantile":1}}', "'quantile' is given twice"),
        ("[" * 200_000, "nested too deeply"),
    ],
)
def test_only_the_object_of_a_plan_is_read(text, message):
    """Text that is no JSON, no object, of another format, or with a key twice at any depth is refused."""
    with pytest.raises(PlanError, match=message):
        read_object(text)
    assert read_object('{"format":"privacy-plan/1","clip":1}') == {"clip": 1}


def test_keys_are_known_and_there():
    """Unknown and missing keys are named, with their prefix; optional ones may be missing."""
    check_keys({"a"}, {"a", "b"}, optional={"b"})
    with pytest.raises(PlanError, match=r"unknown keys in the plan: of\.c$"):
        check_keys({"a", "b", "c"}, {"a", "b"}, prefix="of.")
    with pytest.raises(PlanError, match=r"missing keys in the plan: b$"):
        check_keys({"a"}, {"a", "b"})


@pytest.mark.parametrize(
    "text",
    [
        '{"format":"privacy-plan/1","' + "k" * 1_000_000 + '":1,"' + "k" * 1_000_000 + '":1}',
        '{"format":"privacy-plan/1",' + ",".join(f'"k{i}":1' for i in range(200_000)) + ',"k199999":2}',
    ],
)
def test_a_hostile_plan_costs_and_says_little(text):
    """A key of a million characters, or two hundred thousand keys, end in a short error, in linear time."""
    with pytest.raises(PlanError, match="is given twice") as error:
        read_object(text)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("name", ["x" * 10_000, "\x1b[31m", "\ud800", "é"])
def test_names_and_values_of_strangers_are_shown_short_and_plain(name):
    """Keys are cut, and what a terminal would obey or could not print is escaped; values are cut too."""
    with pytest.raises(PlanError) as error:
        check_keys([name, *map(str, range(1000))], ["a"])
    assert str(error.value).isascii()
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500
    with pytest.raises(PlanError) as error:
        check_count("rounds", name * 10_000, 1)
    assert len(str(error.value)) < 200


def test_keys_given_twice_are_found_in_linear_time():
    """A megabyte of keys whose last is doubled is told at once: the keys are looked at once each."""
    pairs = [(str(number), 0) for number in range(200_000)] + [("199999", 1)]
    with pytest.raises(ValueError, match="'199999' is given twice"):
        unique_keys(pairs)
    assert unique_keys([("a", 1), ("b", 2)]) == {"a": 1, "b": 2}
