"""Exchange 4: every client signs, once, whose vectors are in the sum; a quorum makes that set the only one.

The consistency check of [BIK+17] Fig. 4 round 3, with the quorum counted over everybody that advertised.
"""

import dataclasses

from secagg import messages
from secagg.crypto.kdf import Label
from secagg.crypto.sealing import SERVER_ID
from secagg.errors import BelowThresholdError, SecaggError, ServerFault
from secagg.identity import Claim
from secagg.protocols.pairwise.mask import AgreedSurvivors, MaskedSum
from secagg.protocols.pairwise.parties import Answers, Redacted, Rejected


@dataclasses.dataclass(frozen=True, repr=False)
class AwaitingQuorum(Redacted):
    """A client that has signed its statement and waits for the others' signatures over the same one."""

    agreed: AgreedSurvivors


def send(agreed: AgreedSurvivors) -> tuple[AwaitingQuorum, bytes]:
    """Signs S."""
    me = agreed.me
    signature = me.identity.sign(Label.SIGNATURE_STATEMENT, agreed.statement)
    frame = messages.encode(messages.Confirm(binding=agreed.view.transcript, sender=me.id, signature=signature))
    return AwaitingQuorum(agreed), frame


def accept(state: AwaitingQuorum, frame: bytes) -> AgreedSurvivors:
    """Checks that enough members of U3 signed what this client signed.

    Raises:
        ServerFault: Fewer than q valid signatures over S by distinct members of U3.
    """
    agreed = state.agreed
    me, view = agreed.me, agreed.view
    answer = messages.unseal_server(frame, messages.Quorum, binding=view.transcript, roster=me.roster)
    signers = [signer for signer, _ in answer.signatures]
    if signers != sorted(set(signers)) or not set(signers) <= set(agreed.survivors):
        raise ServerFault("the quorum names a client twice, or one that is not in U3")
    needed = me.params.quorum(len(view.advertisers))
    if len(signers) < needed:
        raise ServerFault(f"the quorum has {len(signers)} signatures, {needed} are needed")
    claims = [
        messages.Unverified(bytes, Claim(signer, Label.SIGNATURE_STATEMENT, agreed.statement, signature))
        for signer, signature in answer.signatures
    ]
    found = messages.verify_each(claims, me.roster)
    for signer, error in zip(signers, found, strict=True):
        if isinstance(error, SecaggError):
            raise ServerFault(f"client {signer} did not sign the statement that client {me.id} signed")
    return agreed


@dataclasses.dataclass(frozen=True, repr=False)
class Confirmed(Redacted):
    """The server after exchange 4.

    Attributes:
        signatures: Every valid signature over S, by client.
    """

    masked: MaskedSum
    signatures: dict[int, bytes]


class CollectingSignatures(Redacted):
    """The server during exchange 4."""

    def __init__(self, masked: MaskedSum) -> None:
        self._masked = masked
        self._statement = masked.statement
        self._signatures: dict[int, bytes] = {}

    def read(self, client: int, frame: bytes) -> messages.Unverified[bytes]:
        """A survivor's signature over S.

        Raises:
            DecodeError: It is not that client's for this round.
        """
        confirm = messages.decode(frame, messages.Confirm)
        messages.check_bound(confirm, binding=self._masked.view.transcript, sender=client)
        claim = Claim(client, Label.SIGNATURE_STATEMENT, self._statement, confirm.signature)
        return messages.Unverified(lambda: confirm.signature, claim)

    def take(self, client: int, _frame: bytes, signature: bytes) -> None:
        """Keeps it."""
        self._signatures[client] = signature

    def close(self, rejected: Rejected) -> tuple[Confirmed, Answers]:
        """Hands a quorum of signatures to everybody who signed.

        Args:
            rejected: Why clients were missing by then, for an error.

        Raises:
            BelowThresholdError: Fewer than q survivors signed.
        """
        host, view, signatures = self._masked.host, self._masked.view, dict(sorted(self._signatures.items()))
        needed = host.params.quorum(len(view.advertisers))
        if len(signatures) < needed:
            raise BelowThresholdError("confirm", needed, tuple(signatures), "quorum", rejected)
        answer = messages.seal(
            messages.Quorum(binding=view.transcript, sender=SERVER_ID, signatures=tuple(signatures.items())[:needed]),
            host.identity.sign,
        )
        return Confirmed(self._masked, signatures), dict.fromkeys(signatures, answer)
