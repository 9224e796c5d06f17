"""One exception tree, by who is at fault."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType


def shown(clients: Iterable[int]) -> str:
    """Client ids for an error message: sorted, and at most ten of them."""
    ids = sorted(clients)
    return str(ids) if len(ids) <= 10 else f"{str(ids[:10])[:-1]}, and {len(ids) - 10} more]"


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


class GuardError(LocalError):
    """A step that this client has taken before, or a store of such steps that cannot be trusted or written."""


class SpoolError(LocalError):
    """A masked vector that could not be kept or read back; the message has the folder, the client and the reason."""


class StoppedError(LocalError):
    """An error on the server's own side that ended a round; `__cause__` is that error.

    Attributes:
        rejected: Why clients were missing by then, by client id: what was found about them is not lost with the round.
    """

    def __init__(self, message: str, rejected: Mapping[int, SecaggError] = MappingProxyType({})) -> None:
        super().__init__(message)
        self.rejected = dict(rejected)


class SignerError(LocalError):
    """A key outside this process that failed, or gave something that is not its own signature."""


class KeyFileError(LocalError):
    """A key on disk that cannot be read, trusted or written; the message has the file, never its content."""


class RosterError(LocalError):
    """A roster that is malformed, not signed as it must be, or older than one seen before; or a change that it does not allow."""


class SelfTestError(LocalError):
    """A primitive of this installation does not give its known answer."""


class DecodeError(SecaggError):
    """Bytes that are not the frame or field that they must be."""


class SignatureError(DecodeError):
    """A signature that is not that of the named client; nobody is to blame, since anybody could have sent it."""


class SealError(SecaggError):
    """A sealed box that cannot be made for a key, or does not open."""


class ShareError(SecaggError):
    """Shares that do not come from a 32-byte secret."""


class ServerFault(SecaggError):  # noqa: N818 - a fault is a finding about a party, not a failure of ours
    """The server broke the protocol."""


class PolicyError(ServerFault):
    """A round that the server proposed and this client's policy does not allow.

    Attributes:
        rule: The name of the policy's field that forbids it.
    """

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(f"policy {rule}: {message}")
        self.rule = rule


class PeerFault(SecaggError):  # noqa: N818 - a fault is a finding about a party, not a failure of ours
    """A client broke the protocol.

    Attributes:
        party: The client id (u64).
        evidence: What shows it, by name, as it was received; `secagg.protocols.pairwise.evidence` says what it proves. It may have shares
            of secrets that the round opens anyway, and so never prints.
        rejected: Where it ended the round: why other clients were missing by then, by client id.
    """

    def __init__(self, party: int, message: str, evidence: Mapping[str, bytes] = MappingProxyType({})) -> None:
        super().__init__(f"client {party}: {message}")
        self.party = party
        self.evidence = dict(evidence)
        self.rejected: dict[int, SecaggError] = {}


class DeclinedError(SecaggError):
    """A client said that it takes no further part.

    Attributes:
        party: The client id (u64).
        phase: The exchange that it does not answer.
        rule: Its policy's rule, or the kind of error that stopped it.
    """

    def __init__(self, party: int, phase: str, rule: str, reason: str) -> None:
        super().__init__(f"client {party} declined in phase {phase} ({rule}): {reason}")
        self.party = party
        self.phase = phase
        self.rule = rule


class UnexpectedFrameError(SecaggError):
    """A frame of a closed phase, a second one of the same sender, or one of somebody who is not awaited; it changes nothing.

    Attributes:
        party: Under whose name it came.
        phase: The exchange in which it came.
    """

    def __init__(self, party: int, phase: str, reason: str) -> None:
        super().__init__(f"a frame of client {party} in phase {phase}: {reason}")
        self.party = party
        self.phase = phase


class DisputeError(SecaggError):
    """Clients contradict each other, and nothing proves which one is wrong.

    Attributes:
        parties: The client ids on both sides, the one that was dropped first.
        evidence: The refusals, by name, as they were received.
    """

    def __init__(
        self, parties: tuple[int, ...], message: str, evidence: Mapping[str, bytes] = MappingProxyType({})
    ) -> None:
        super().__init__(f"clients {list(parties)}: {message}")
        self.parties = parties
        self.evidence = dict(evidence)


class EvidenceError(SecaggError):
    """Evidence that does not prove, to somebody who was not there, what it is said to prove; the message has the reason."""


class RoundError(SecaggError):
    """The round cannot end with a sum, and nobody is to blame for that alone.

    Attributes:
        rejected: Why clients were missing by then, by client id, where something came from them: some may be to blame for that.
    """

    def __init__(self, message: str, rejected: Mapping[int, SecaggError] = MappingProxyType({})) -> None:
        super().__init__(message)
        self.rejected = dict(rejected)


class BelowThresholdError(RoundError):
    """Too few clients are left.

    Attributes:
        phase: The exchange in which they went missing.
        needed: How many the round needs there.
        alive: The client ids that answered.
    """

    def __init__(
        self,
        phase: str,
        needed: int,
        alive: tuple[int, ...],
        reason: str,
        rejected: Mapping[int, SecaggError] = MappingProxyType({}),
    ) -> None:
        said = [f"; client {client} was not taken: {error}" for client, error in sorted(rejected.items())]
        more = f"; and {len(said) - 10} more were not" if len(said) > 10 else ""
        super().__init__(
            f"{phase}: {len(alive)} of at least {needed} clients are left ({reason}); alive: {shown(alive)}"
            f"{''.join(said[:10])}{more}",
            rejected,
        )
        self.phase = phase
        self.needed = needed
        self.alive = alive
