"""Every key in brackets in the code and the docs stands in papers.md, and nothing stands there unused."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
KEY = re.compile(r"\[([A-Z][A-Za-z+-]*[0-9]{2}[0-9A-Za-z-]*|RFC[0-9]+|UCI-HEART)\]")


def used():
    """Keys by the files that cite them."""
    files = [
        p
        for package in ("secagg", "privacy", "fl", "docs")
        for p in (ROOT / package).rglob("*")
        if p.suffix in (".py", ".md")
    ]
    return {key: path for path in files for key in KEY.findall(path.read_text(encoding="utf-8"))}


def defined():
    """Keys that papers.md explains."""
    return set(re.findall(r"^- \*\*\[([^\]]+)\]\*\*", (ROOT / "papers.md").read_text(encoding="utf-8"), re.MULTILINE))


def test_every_cited_key_is_explained():
    """A key that papers.md does not have is an unresolved reference."""
    assert {key: str(path) for key, path in used().items() if key not in defined()} == {}


def test_the_cited_keys_are_found():
    """The pattern finds the citations that everything rests on, so an empty result cannot pass."""
    assert {"BIK+17", "CKS20", "RFC9180", "FIPS203", "SP800-38D", "MMR+17"} <= set(used())
