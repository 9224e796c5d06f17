"""Exchange 4: every client signs, once, whose vectors are in the sum; a quorum makes that set the only one.

The consistency check of [BIK+17] Fig. 4 round 3, with the quorum counted over everybody that advertised.
"""

import dataclasses

from secagg import messages
from secagg.crypto.kdf import Label
from secagg.crypto.sealing import SERVER_ID
from secagg.errors import BelowThresholdError, SecaggError, ServerFault
from secagg.protocols.pairwise.mask import AgreedSurvivors, MaskedSum
from secagg.protocols.pairwise.parties import Answers, Redacted, Rejected, Replies


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
    for signer, signature in answer.signatures:
        try:
            me.roster.verify(signer, Label.SIGNATURE_STATEMENT, agreed.statement, signature)
        except SecaggError:
            raise ServerFault(f"client {signer} did not sign the statement that client {me.id} signed") from None
    return agreed


@dataclasses.dataclass(frozen=True, repr=False)
class Confirmed(Redacted):
    """The server after exchange 4.

    Attributes:
        signatures: Every valid signature over S, by client.
    """

    masked: MaskedSum
    signatures: dict[int, bytes]


def glance(masked: MaskedSum, client: int, frame: bytes) -> messages.Confirm:
    """The message of a frame if it is the one that is waited for, its signature apart.

    Raises:
        DecodeError: Another exchange's, round's or sender's.
    """
    confirm = messages.decode(frame, messages.Confirm)
    messages.check_bound(confirm, binding=masked.view.transcript, sender=client)
    return confirm


def collect(masked: MaskedSum, replies: Replies) -> tuple[Confirmed, Answers, Rejected]:
    """Gathers the signatures over S and hands a quorum of them to everybody who signed.

    Raises:
        BelowThresholdError: Fewer than q survivors signed.
    """
    host, view = masked.host, masked.view
    signatures, rejected = dict[int, bytes](), Rejected()
    for client in sorted(replies):
        try:
            confirm = glance(masked, client, replies[client])
            host.roster.verify(client, Label.SIGNATURE_STATEMENT, masked.statement, confirm.signature)
        except SecaggError as error:
            rejected[client] = error
            continue
        signatures[client] = confirm.signature
    needed = host.params.quorum(len(view.advertisers))
    if len(signatures) < needed:
        raise BelowThresholdError("confirm", needed, tuple(signatures), "quorum", rejected)
    answer = messages.seal(
        messages.Quorum(
            binding=view.transcript, sender=SERVER_ID, signatures=tuple(sorted(signatures.items())[:needed])
        ),
        host.identity.sign,
    )
    return Confirmed(masked, signatures), dict.fromkeys(signatures, answer), rejected
