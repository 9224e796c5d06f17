"""Reads the JSON of a plan, and checks single values: a plan is hostile input."""

import json
import sys
from collections.abc import Iterable
from reprlib import repr as short
from typing import Any, Final

from privacy.errors import PlanError

FORMAT: Final = "privacy-plan/1"


def check_count(name: str, value: object, least: int) -> None:
    """Return if a value is an integer from ``least`` that every JSON reader keeps exact.

    Raises:
        PlanError: it is not; the name is in the message.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 1 << 53:
        raise PlanError(f"{name} = {short(value)} is not an integer of at least {least}")


def check_real(name: str, value: object) -> float:
    """Return a finite positive number as a float.

    Raises:
        PlanError: it is not one; the name is in the message.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
        raise PlanError(f"{name} = {short(value)} is not a finite positive number")
    return float(value)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object, refusing a key that is given twice: json's ``object_pairs_hook``.

    Guarantees:
        Linear in the keys, however they repeat.
    """
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        named = ascii(twice)
        raise ValueError(f"key {named if len(named) <= 80 else named[:80] + '...'} is given twice")
    return result


def check_keys(keys: Iterable[str], known: Iterable[str], *, optional: Iterable[str] = (), prefix: str = "") -> None:
    """Return if these are the keys of an object.

    Args:
        keys: Those that are there.
        known: Those that may be.
        optional: Those of them that may be missing.
        prefix: Of their names in the message.

    Raises:
        PlanError: one is unknown or missing; it is named, but not at any length a stranger likes.
    """
    there, may = set(keys), set(known)
    for what, wrong in (("unknown", there - may), ("missing", may - set(optional) - there)):
        if wrong:
            named = sorted(prefix + (key if key.isascii() and key.isidentifier() else ascii(key))[:40] for key in wrong)
            text = ", ".join(named[:8])[:400] + (f" and {len(named) - 8} more" if len(named) > 8 else "")
            raise PlanError(f"{what} keys in the plan: {text}")


def read_object(text: str | bytes) -> dict[str, Any]:
    """Read the JSON object of a plan, without its format.

    Raises:
        PlanError: not JSON, a key given twice, not an object, or another format.
    """
    try:
        data = json.loads(text, object_pairs_hook=unique_keys, parse_constant=_refuse_constant)
    except ValueError as error:
        raise PlanError(f"the plan is not JSON: {error}") from error
    except RecursionError:
        raise PlanError("the plan is not JSON of a plan: it is nested too deeply") from None
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise PlanError(f'the plan is not an object with "format": "{FORMAT}"')
    return data


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
