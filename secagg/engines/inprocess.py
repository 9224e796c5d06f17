"""All parties in one process: the default of simulations and tests, with the real frames."""

import time
from collections.abc import Callable, Iterator, Mapping

from secagg.errors import SecaggError

Handler = Callable[[str, bytes], bytes | None]
Tap = Callable[[str, int, bytes], None]


class InProcessEngine:
    """Calls one handler a client, in ascending order of id.

    A handler that returns None, or raises a `SecaggError`, is silent; the error is kept in `failures`. Other exceptions
    are bugs and pass through.

    Args:
        handlers: `{client id: handler(phase, frame) -> answer or None}`.
        tap: Called with (phase, sender, frame) for every frame that reaches the server.

    Attributes:
        failures: `{client id: error}` of handlers that stopped with one.
    """

    def __init__(self, handlers: Mapping[int, Handler], tap: Tap | None = None) -> None:
        self._handlers = dict(handlers)
        self._tap = tap
        self._seconds: dict[str, dict[int, float]] = {}
        self.failures: dict[int, SecaggError] = {}

    @property
    def peers(self) -> tuple[int, ...]:
        """The client ids that have a handler."""
        return tuple(sorted(self._handlers))

    @property
    def client_seconds(self) -> Mapping[str, Mapping[int, float]]:
        """Seconds spent in each handler, by phase and client."""
        return self._seconds

    def exchange(
        self, phase: str, frames: Mapping[int, bytes], *, deadline_s: float | None
    ) -> Iterator[tuple[int, bytes]]:
        """Runs the handlers of the addressed peers.

        Args:
            phase: The exchange.
            frames: By client id.
            deadline_s: An answer that took longer is late, and so absent. None: no deadline.
        """
        for client in sorted(frames):
            handler = self._handlers.get(client)
            if handler is None:
                continue
            frame = frames[client]
            start = time.perf_counter()
            try:
                answer = handler(phase, frame)
            except SecaggError as error:
                self.failures[client] = error
                answer = None
            seconds = time.perf_counter() - start
            self._seconds.setdefault(phase, {})[client] = seconds
            if answer is None or (deadline_s is not None and seconds > deadline_s):
                continue
            if self._tap is not None:
                self._tap(phase, client, answer)
            yield client, answer

    def close(self) -> None:
        """Forgets the handlers."""
        self._handlers.clear()
