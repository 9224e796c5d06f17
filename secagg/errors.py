"""One exception tree, by who is at fault."""

from collections.abc import Mapping
from types import MappingProxyType


class SecaggError(Exception):
    """Anything that ends a step of the protocol."""


class LocalError(SecaggError):
    """Our own caller is at fault; nothing left this machine."""


class ParameterError(LocalError):
    """Round parameters that are invalid or infeasible; the message has the numbers."""


class InputError(LocalError):
    """An input that does not fit its block; the message names the block."""


class StateError(LocalError):
    """A session used out of order, twice, or after it failed."""


class SelfTestError(LocalError):
    """A primitive of this installation does not give its known answer."""


class DecodeError(SecaggError):
    """Bytes that are not the frame or field that they must be."""


class SealError(SecaggError):
    """A sealed box that cannot be made for a key, or does not open."""


class ShareError(SecaggError):
    """Shares that do not come from a 32-byte secret."""


class ServerFault(SecaggError):  # noqa: N818 - a fault is a finding about a party, not a failure of ours
    """The server broke the protocol."""


class PeerFault(SecaggError):  # noqa: N818 - a fault is a finding about a party, not a failure of ours
    """A client broke the protocol.

    Attributes:
        party: The client id (u64).
    """

    def __init__(self, party: int, message: str) -> None:
        super().__init__(f"client {party}: {message}")
        self.party = party


class DisputeError(SecaggError):
    """Clients contradict each other, and nothing proves which one is wrong.

    Attributes:
        parties: The client ids on both sides.
    """

    def __init__(self, parties: tuple[int, ...], message: str) -> None:
        super().__init__(f"clients {list(parties)}: {message}")
        self.parties = parties


class RoundError(SecaggError):
    """The round cannot end with a sum, and nobody is to blame."""


class BelowThresholdError(RoundError):
    """Too few clients are left.

    Attributes:
        phase: The exchange in which they went missing.
        needed: How many the round needs there.
        alive: The client ids that answered.
        rejected: Why an answer was not taken in this phase, by client id, where one came.
    """

    def __init__(
        self,
        phase: str,
        needed: int,
        alive: tuple[int, ...],
        reason: str,
        rejected: Mapping[int, SecaggError] = MappingProxyType({}),
    ) -> None:
        reasons = "".join(f"; client {client} was not taken: {error}" for client, error in sorted(rejected.items()))
        super().__init__(
            f"{phase}: {len(alive)} of at least {needed} clients are left ({reason}); alive: {list(alive)}{reasons}"
        )
        self.phase = phase
        self.needed = needed
        self.alive = alive
        self.rejected = dict(rejected)
