"""The published schema of a plan, docs/schemas/plan-1.json, against what plans write and what readers refuse."""

import copy
import json
import math
from dataclasses import fields
from pathlib import Path

import pytest

from privacy.adaptive import AdaptiveClip
from privacy.errors import PlanError
from privacy.plan import Plan

SCHEMA = json.loads((Path(__file__).parents[3] / "docs" / "schemas" / "plan-1.json").read_text(encoding="utf-8"))
OPTIONAL = {"silos", "adaptive", "sample_rate"}
ANNOTATIONS = {"$schema", "$id", "title", "description"}
TYPES = {
    "object": lambda value: isinstance(value, dict),
    "integer": lambda value: type(value) is int or (type(value) is float and value.is_integer()),
    "number": lambda value: type(value) in (int, float),
}


def same(one, other):
    """JSON equality: 1 is 1.0, and neither is true."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def known_properties(value, rule, _schema):
    """Each property that is there and has a rule keeps to it."""
    return not isinstance(value, dict) or all(valid(value[key], each) for key, each in rule.items() if key in value)


def no_others(value, rule, schema):
    """`additionalProperties` is false wherever it stands: no key without a rule."""
    return rule is False and (not isinstance(value, dict) or value.keys() <= schema["properties"].keys())


KEYWORDS = {
    "type": lambda value, rule, _: TYPES[rule](value),
    "const": lambda value, rule, _: same(value, rule),
    "enum": lambda value, rule, _: any(same(value, each) for each in rule),
    "minimum": lambda value, rule, _: not TYPES["number"](value) or value >= rule,
    "maximum": lambda value, rule, _: not TYPES["number"](value) or value <= rule,
    "exclusiveMinimum": lambda value, rule, _: not TYPES["number"](value) or value > rule,
    "exclusiveMaximum": lambda value, rule, _: not TYPES["number"](value) or value < rule,
    "required": lambda value, rule, _: not isinstance(value, dict) or set(rule) <= value.keys(),
    "properties": known_properties,
    "additionalProperties": no_others,
    "if": lambda value, rule, schema: valid(value, schema["then"] if valid(value, rule) else schema["else"]),
    "then": lambda *_: True,
    "else": lambda *_: True,
}


def valid(value, schema):
    """Validation by the keywords of draft 2020-12 that the schema uses; any other keyword is an error."""
    if isinstance(schema, bool):
        return schema
    # A list first, so that every keyword is looked up even after one has said no.
    kept = [KEYWORDS[name](value, rule, schema) for name, rule in schema.items() if name not in ANNOTATIONS]
    return all(kept)


@pytest.fixture
def written(heart, adaptive):
    """Plans as their JSON says them: plain, with every optional key, and of clients."""
    made = (
        heart(),
        heart(relation="replace-one", silos=2, adaptive=adaptive, epsilon=4.0),
        heart(unit="client", relation="zero-out", records_per_site=1),
        heart(epsilon=None, noise_multiplier=21.0),
        heart(sample_rate=0.1, adaptive=adaptive),
    )
    return [json.loads(plan.to_json()) for plan in made]


def refused(data):
    """Whether the reader refuses a plan."""
    try:
        Plan.from_json(json.dumps(data))
    except PlanError:
        return True
    return False


def test_every_plan_that_is_written_is_valid(written):
    """Plain plans, silos, adaptive clips and clients pass the schema as they are written."""
    for data in written:
        assert valid(data, SCHEMA)
        assert not refused(data)


def test_the_schema_names_every_field():
    """A field that the code gains or loses without the schema is found."""
    names = {each.name for each in fields(Plan) if each.init} | {"format"}
    assert SCHEMA["properties"].keys() == names
    assert set(SCHEMA["required"]) == names - OPTIONAL
    inner = SCHEMA["properties"]["adaptive"]
    assert inner["properties"].keys() == set(inner["required"]) == {each.name for each in fields(AdaptiveClip)}


@pytest.mark.parametrize("key", sorted(SCHEMA["properties"]))
def test_wrong_values_are_refused_by_schema_and_reader(written, key):
    """Each key, with values of another type or out of range, and left out: both refuse, whatever else is right."""
    full = written[1]
    for value in ("1", True, None, [], {}, -1, 0.5 - 2, 10**400):
        changed = full | {key: value}
        assert not valid(changed, SCHEMA), (key, value)
        assert refused(changed), (key, value)
    left = {name: value for name, value in full.items() if name != key}
    assert valid(left, SCHEMA) == (key in OPTIONAL) != refused(left)


@pytest.mark.parametrize("key", sorted(SCHEMA["properties"]["adaptive"]["properties"]))
def test_wrong_values_inside_are_refused_by_schema_and_reader(written, key):
    """The same for each key of the adaptive clip."""
    full = written[1]
    for value in ("1", True, None, [], 0, -1, 10**400):
        changed = copy.deepcopy(full)
        changed["adaptive"][key] = value
        assert not valid(changed, SCHEMA), (key, value)
        assert refused(changed), (key, value)
    del changed["adaptive"][key]
    assert not valid(changed, SCHEMA)
    assert refused(changed)


@pytest.mark.parametrize(
    ("at", "change"),
    [
        (0, {"client_rate": 0.1}),
        (0, {"sample_rate": 1}),
        (1, {"sample_rate": 0.1}),
        (2, {"sample_rate": 0.1}),
        (4, {"sample_rate": 1e-10}),
        (4, {"sample_rate": 2}),
        (4, {"relation": "replace-one"}),
        (4, {"silos": 2}),
        (0, {"sensitivity": 1}),
        (0, {"silos": 1}),
        (0, {"adaptive": None}),
        (0, {"relation": "zero-out"}),
        (0, {"delta": 1}),
        (0, {"bits": 65}),
        (2, {"relation": "add-remove"}),
        (2, {"records_per_site": 2}),
        (2, {"silos": 2}),
        (1, {"format": "privacy-plan/2"}),
    ],
)
def test_what_does_not_go_together_is_refused_by_schema_and_reader(written, at, change):
    """P16, P23: unknown keys, relations of the other unit, silos of clients, defaults written out, coins that count nothing."""
    changed = written[at] | change
    assert not valid(changed, SCHEMA)
    assert refused(changed)


def test_the_check_of_this_test_can_fail():
    """Unknown keywords raise, so that no rule of the schema is passed over; equality tells 1 from true."""
    with pytest.raises(KeyError, match="pattern"):
        valid("a", {"pattern": "a"})
    assert not valid(True, {"const": 1})
    assert not valid(math.pi, {"type": "integer"})
    assert valid(4.0, {"type": "integer"})
