import inspect
import re

import msgspec
import pytest

from fl import sections
from fl.sections import Config, FedAvg, Section

SECTIONS = [each for each in vars(sections).values() if inspect.isclass(each) and issubclass(each, Section)]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_key_is_explained(section):
    """The docstring of a section, or of what it builds on, says what each of its keys means, and names no other."""
    said = {name for each in section.__mro__ for name in re.findall(r"^ {8}(\w+): ", each.__doc__ or "", re.MULTILINE)}
    own = {"name", "seed", "data", "model", "algorithm", "server", "secagg", "simulation", "checkpoint"}
    fields = {field.name for field in msgspec.structs.fields(section)}
    assert fields - said <= (own if section is Config else set())
    assert set(re.findall(r"^ {8}(\w+): ", section.__doc__ or "", re.MULTILINE)) <= fields


def test_a_section_is_strict_and_frozen():
    """An unknown key is refused where a section is read, and a section that was read does not change."""
    with pytest.raises(msgspec.ValidationError, match="unknown field `batch`"):
        msgspec.convert({"name": "fedavg", "batch": 3}, FedAvg)
    with pytest.raises(AttributeError):
        FedAvg().batch_size = 3
