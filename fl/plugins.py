"""Functions of one's own, by name: models, losses, metrics, data."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fl.errors import ConfigError, FlError


def import_function(key: str, name: str) -> Callable[..., Any]:
    """The function that "package.module:function" names.

    Raises:
        ConfigError: there is none, or its module cannot be run; the message names the key.
    """
    module, _, attribute = name.partition(":")
    with blame(key, name, "cannot be imported"):
        found = getattr(importlib.import_module(module), attribute)
    if not callable(found):
        raise ConfigError(f'{key}: "{name}" is not a function')
    return found  # type: ignore[no-any-return]


@contextmanager
def blame(key: str, name: str, what: str = "failed") -> Iterator[None]:
    """Run code that is somebody else's: whatever it raises is the fault of the configuration's key.

    Args:
        key: The configuration's, as "model.loss".
        name: The function that the key names.
        what: What could not be done with it.

    Raises:
        ConfigError: the code raised anything that this package does not; the message names key and function, and the error is
            its cause.
    """
    try:
        yield
    except FlError:
        raise
    except (Exception, SystemExit) as error:  # a module may also end its process when it is imported
        raise ConfigError(f'{key}: "{name}" {what}: {type(error).__name__}: {error}') from error
