"""Every frame of the protocol: frozen, strictly decoded, bounded in size, bound to one round and signed.

A frame is `Signed(payload, signature)`, where the payload is the canonical encoding of one message and the signature is
its sender's over those bytes. Decoding checks, in this order: size, form, that encoding again gives the same bytes, kind,
version, binding (context in exchange 1, T1 from then on), sender, signature. Only the bulk of exchange 3 travels outside:
its header is a frame, its body follows as raw bytes that an authentication tag in the header covers.
"""

from collections.abc import Callable
from typing import Annotated, Literal, TypeVar

import msgspec

from secagg.crypto.kdf import Label
from secagg.crypto.sealing import SERVER_ID
from secagg.errors import DecodeError, ServerFault
from secagg.identity import Roster

Bytes32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
ShareBytes = Annotated[bytes, msgspec.Meta(min_length=36, max_length=36)]
SignatureBytes = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
Tag = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Id = Annotated[int, msgspec.Meta(ge=0)]  # u64; the codec cannot say the upper end, MessagePack does
Sign = Callable[[Label, bytes], bytes]

# No message of a complete graph with 200 clients comes near it; vectors travel outside the frames.
MAX_FRAME_LENGTH = 4 * 2**20


class Signed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A payload with its sender's Ed25519 signature."""

    payload: bytes
    signature: SignatureBytes


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """What every payload starts with.

    Attributes:
        version: Of the protocol.
        binding: The context in exchange 1, the transcript hash T1 from exchange 2 on.
        sender: A client id, or 2^64 - 1 for the server.
    """

    version: Literal[1] = 1
    binding: Bytes32
    sender: Id


class Advertise(Message, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True, tag="advertise"):
    """Exchange 1, client: its round keys, a commitment to its self seed, and a MAC key that only the server can open."""

    channel_key: bytes
    mask_key: bytes
    seed_commitment: Bytes32
    mac_box: bytes


class Advertised(Message, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True, tag="advertised"):
    """Exchange 1, server: U1, as the frames of the recipient's neighbours and the digests of everybody else."""

    frames: tuple[tuple[Id, bytes], ...]
    digests: tuple[tuple[Id, Bytes32], ...]


class ShareHeader(Message, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True, tag="share"):
    """Exchange 2, client: the signed Merkle root over its parts; one signature covers what each neighbour gets."""

    root: Bytes32


class PairBox(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A pair seed sealed to the other side's mask key, and the commitment that the server checks it against."""

    box: bytes
    commitment: Bytes32


class Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="part"):
    """What a dealer hands one neighbour: sealed shares, their commitments, and the pair seed where it is the chooser."""

    holder: Id
    share_box: bytes
    root_commitment: Bytes32
    self_commitment: Bytes32
    pair: PairBox | None


class OwnPart(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="own"):
    """Commitments to the two shares that a dealer keeps itself; the server alone sees this leaf."""

    holder: Id
    root_commitment: Bytes32
    self_commitment: Bytes32


class ShareFrame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="shares"):
    """Exchange 2, client: a signed `ShareHeader` and the leaves under its root, holders in cohort order."""

    header: bytes
    leaves: tuple[bytes, ...]


class Delivery(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One dealer's part for the recipient, with the dealer's signed header and the Merkle path to it."""

    dealer: Id
    header: bytes
    leaf: bytes
    path: tuple[Bytes32, ...]


class Shared(Message, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True, tag="shared"):
    """Exchange 2, server: U2, and the parts of the recipient's neighbours."""

    members: tuple[Id, ...]
    deliveries: tuple[Delivery, ...]


class MaskHeader(Message, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True, tag="mask"):
    """Exchange 3, client: whom it refused, and the tag and length of the body that follows."""

    body_length: Id
    refused: tuple[Id, ...]
    tag: Tag


class Survivors(Message, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True, tag="survivors"):
    """Exchange 3, server: U3, whose vectors are in the sum."""

    members: tuple[Id, ...]


class Statement(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="statement"):
    """What a client signs at most once a round: S = (T1, U2, U3). It never travels; everybody has the parts."""

    transcript: Bytes32
    sharers: tuple[Id, ...]
    survivors: tuple[Id, ...]


class Confirm(Message, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True, tag="confirm"):
    """Exchange 4, client: its signature over the statement, which is also the frame's only signature."""

    signature: SignatureBytes


class Quorum(Message, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True, tag="quorum"):
    """Exchange 4, server: enough signatures over one statement that no other can have as many."""

    signatures: tuple[tuple[Id, SignatureBytes], ...]


class SelfShare(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="self"):
    """A share of a survivor's self seed: it opens the owner's own mask, and nothing about its pair masks."""

    owner: Id
    share: ShareBytes

    def __repr__(self) -> str:
        return f"SelfShare(owner={self.owner}, share=<redacted>)"


class RootShare(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="root"):
    """A share of a dropped client's mask root, and the pair seed of the edge to it: they open its pair masks only."""

    owner: Id
    share: ShareBytes
    pair_seed: Bytes32

    def __repr__(self) -> str:
        return f"RootShare(owner={self.owner}, share=<redacted>, pair_seed=<redacted>)"


class Unmask(Message, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True, tag="unmask"):
    """Exchange 5, client: one answer for each neighbour and itself. An answer has room for one kind of share only."""

    answers: tuple[SelfShare | RootShare, ...]


StructT = TypeVar("StructT", bound=msgspec.Struct)
MessageT = TypeVar("MessageT", bound=Message)

_ENCODER = msgspec.msgpack.Encoder()
_DECODERS: dict[type[msgspec.Struct], msgspec.msgpack.Decoder[msgspec.Struct]] = {}


def encode(message: msgspec.Struct) -> bytes:
    """The canonical encoding (MessagePack, fields in order)."""
    return _ENCODER.encode(message)


def decode(data: bytes, kind: type[StructT]) -> StructT:
    """Strict decoding: known fields, exact lengths, nothing trailing, ids in u64, canonical form.

    Raises:
        DecodeError: Anything else.
    """
    if not isinstance(data, bytes) or not 0 < len(data) <= MAX_FRAME_LENGTH:
        size = len(data) if isinstance(data, bytes) else type(data).__name__
        raise DecodeError(f"{kind.__name__}: expected 1..{MAX_FRAME_LENGTH} bytes, got {size}")
    decoder = _DECODERS.setdefault(kind, msgspec.msgpack.Decoder(kind))
    try:
        message = decoder.decode(data)
    except (ValueError, RecursionError) as error:  # msgspec's errors, and text that is no UTF-8
        raise DecodeError(f"{kind.__name__}: {error}") from None
    if encode(message) != data:
        raise DecodeError(f"{kind.__name__}: not in canonical form")
    if not isinstance(message, kind):
        raise DecodeError(f"expected {kind.__name__}, got {type(message).__name__}")
    return message


def seal(message: Message, sign: Sign) -> bytes:
    """A message as a signed frame."""
    payload = encode(message)
    return encode(Signed(payload, sign(Label.SIGNATURE_FRAME, payload)))


def unseal(data: bytes, kind: type[MessageT], *, binding: bytes, sender: int, roster: Roster) -> MessageT:
    """The message of a signed frame, every check of this module's header done.

    Raises:
        DecodeError: Not a frame of this kind, round or sender.
        PeerFault: A client's signature does not verify.
        ServerFault: The server's signature does not verify.
    """
    signed, message = glance(data, kind, binding=binding, sender=sender)
    roster.verify(sender, Label.SIGNATURE_FRAME, signed.payload, signed.signature)
    return message


def glance(data: bytes, kind: type[MessageT], *, binding: bytes, sender: int) -> tuple[Signed, MessageT]:
    """What `unseal` checks but for the signature: whether a frame is the one that is waited for.

    Raises:
        DecodeError: Not a frame of this kind, round or sender.
    """
    signed = decode(data, Signed)
    message = decode(signed.payload, kind)
    check_bound(message, binding=binding, sender=sender)
    return signed, message


def check_bound(message: Message, *, binding: bytes, sender: int) -> None:
    """That a decoded message belongs to this round and comes from whom it should.

    Raises:
        DecodeError: Another round's, or another sender's.
    """
    if message.binding != binding:
        raise DecodeError(f"{type(message).__name__}: bound to another round, cohort or application context")
    if message.sender != sender:
        raise DecodeError(f"{type(message).__name__}: sender {message.sender} instead of {sender}")


def check_members(members: tuple[int, ...], *, within: tuple[int, ...], at_least: int, name: str, client: int) -> None:
    """That a set published by the server is sorted, known, large enough, and contains the client that reads it.

    Raises:
        ServerFault: It is not.
    """
    if list(members) != sorted(set(members)):
        raise ServerFault(f"{name} is not sorted, or names a client twice")
    if not set(members) <= set(within):
        raise ServerFault(f"{name} contains {sorted(set(members) - set(within))}, who were not there before")
    if client not in members:
        raise ServerFault(f"{name} leaves out client {client}, which answered")
    if len(members) < at_least:
        raise ServerFault(f"{name} has {len(members)} members, fewer than the agreed minimum {at_least}")


def unseal_server(data: bytes, kind: type[MessageT], *, binding: bytes, roster: Roster) -> MessageT:
    """A server's frame; whatever is wrong with it is the server's fault.

    Raises:
        ServerFault: It is not the frame that this client waits for.
    """
    try:
        return unseal(data, kind, binding=binding, sender=SERVER_ID, roster=roster)
    except DecodeError as error:
        raise ServerFault(str(error)) from None
