"""What the round needs from whatever carries its frames."""

from collections.abc import Iterable, Mapping
from typing import Protocol


class Engine(Protocol):
    """Carries opaque frames between the server and its peers, one exchange at a time.

    An engine promises nothing about who delivers what: the protocol checks every frame end to end.
    """

    @property
    def peers(self) -> tuple[int, ...]:
        """The client ids that can be reached."""
        ...

    @property
    def client_seconds(self) -> Mapping[str, Mapping[int, float]]:
        """`{phase: {client: seconds}}` that clients spent computing, as far as the engine knows (else empty)."""
        ...

    def exchange(
        self, phase: str, frames: Mapping[int, bytes], *, deadline_s: float | None
    ) -> Iterable[tuple[int, bytes]]:
        """Delivers a frame to each addressed peer and gives the answers one by one, as they arrive.

        Args:
            phase: advertise, share, mask, confirm or unmask.
            frames: By client id; each is made when it is looked up, so look it up once, when it is sent. In the phase
                `advertise` it is the canonical encoding of the round's parameters.
            deadline_s: Seconds to wait for answers. None: until each peer has answered or failed.

        Returns:
            (client id, answer) of whoever answered in time. The server takes small ones some at a time, vectors by two.
        """
        ...

    def close(self) -> None:
        """Lets go of connections and buffers."""
        ...
