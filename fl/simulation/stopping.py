"""Ctrl-C and SIGTERM while a run trains: the first lets the round in hand end, the second drops it."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from fl.errors import RunStopped

_LOG = logging.getLogger(__name__)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """Whether somebody wants a run to stop.

    Attributes:
        wanted: Since a signal came.
    """

    def __init__(self) -> None:
        self.wanted = False

    def check(self) -> None:
        """Between two rounds.

        Raises:
            RunStopped: a signal came.
        """
        if self.wanted:
            raise RunStopped("stopped after the round in hand")

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self.wanted:
            raise RunStopped("stopped, and the round in hand was dropped")
        self.wanted = True
        _LOG.warning("stopping after the round in hand; once more drops it")


@contextmanager
def stopping() -> Iterator[Stopping]:
    """Take the signals over for as long as rounds run.

    Only a process's main thread gets signals: elsewhere nothing changes.

    Guarantees:
        The handlers from before are back afterwards.
    """
    stop = Stopping()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop._on_signal) for number in _SIGNALS}  # noqa: SLF001 - its own module
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
