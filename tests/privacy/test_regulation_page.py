"""docs/regulation.md speaks of fields that exist, and of every field that a ledger keeps."""

import dataclasses
import re
from pathlib import Path

from privacy.cli import cli
from privacy.ledger.chain import Entry
from privacy.plan import Plan

PAGE = (Path(__file__).parents[2] / "docs" / "regulation.md").read_text(encoding="utf-8")
NAMES = {"Plan": Plan, "Entry": Entry}


def test_every_field_that_the_page_names_exists():
    """A field that was renamed or removed cannot go on answering a regulator's question."""
    named = re.findall(r"`(Plan|Entry)\.(\w+)`", PAGE)
    assert len(named) > 30
    for owner, name in named:
        fields = {each.name for each in dataclasses.fields(NAMES[owner])}
        assert name in fields or isinstance(getattr(NAMES[owner], name, None), property), f"{owner}.{name}"


def test_the_page_has_every_field_of_a_ledger():
    """What a ledger keeps is told completely: a new field has to be judged before it is written."""
    section = PAGE.split("## What a ledger keeps")[1].split("\n## ")[0]
    assert set(re.findall(r"`Entry\.(\w+)`", section)) == {each.name for each in dataclasses.fields(Entry)}


def test_commands_and_pages_that_are_named_exist():
    """The commands and documents that the page sends a reader to are there."""
    for command in re.findall(r"`privacy ([a-z]+)", PAGE):
        assert command in cli.commands
    for path in re.findall(r"docs/[\w./-]+\.(?:md|json)", PAGE):
        assert (Path(__file__).parents[2] / path).exists(), path
