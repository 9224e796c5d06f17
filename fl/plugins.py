"""Functions of one's own, by name: models, losses, metrics, data."""

import importlib
from collections.abc import Callable
from typing import Any

from fl.errors import ConfigError


def import_function(key: str, name: str) -> Callable[..., Any]:
    """The function that "package.module:function" names.

    Raises:
        ConfigError: there is none; the message names the key.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f'{key}: "{name}" cannot be imported: {error}') from error
    if not callable(found):
        raise ConfigError(f'{key}: "{name}" is not a function')
    return found  # type: ignore[no-any-return]
