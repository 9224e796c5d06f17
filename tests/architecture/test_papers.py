"""Every key in brackets in the code and the docs stands in papers.md, and nothing stands there unused."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
BRACKET = re.compile(r"(?<!\w)\[([A-Z][^\[\]\n]*)\]")
KEY = re.compile(r"\b(?:[A-Z][A-Za-z]+\+?[0-9]{2}|RFC[0-9]+|FIPS[0-9]+|SP800-[0-9]+[A-Z]|UCI-HEART)(?![0-9A-Za-z])")


def used():
    """Keys by the files that cite them."""
    files = [
        p
        for package in ("secagg", "privacy", "fl", "docs")
        for p in (ROOT / package).rglob("*")
        if p.suffix in (".py", ".md")
    ]
    return {
        key: path
        for path in files
        for text in BRACKET.findall(path.read_text(encoding="utf-8"))
        for key in KEY.findall(text)
    }


def defined():
    """Keys that papers.md explains."""
    return set(re.findall(r"^- \*\*\[([^\]]+)\]\*\*", (ROOT / "papers.md").read_text(encoding="utf-8"), re.MULTILINE))


def test_every_cited_key_is_explained():
    """A key that papers.md does not have is an unresolved reference."""
    assert {key: str(path) for key, path in used().items() if key not in defined()} == {}


def test_the_cited_keys_are_found():
    """The pattern finds the citations that everything rests on, so an empty result cannot pass."""
    assert {"BIK+17", "CKS20", "RFC9180", "FIPS203", "SP800-38D", "MMR+17"} <= set(used())
