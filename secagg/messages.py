"""Every frame of the protocol: frozen, strictly decoded, bounded in size, bound to one round and signed.

A frame is `Signed(payload, signature)`, where the payload is the canonical encoding of one message and the signature is
its sender's over those bytes. Decoding checks, in this order: size, form, that encoding again gives the same bytes, kind,
version, binding (context in exchange 1, T1 from then on), sender, signature. Only the bulk of exchange 3 travels outside:
its header is a frame, its body follows as raw bytes that an authentication tag in the header covers.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Annotated, Generic, Literal, TypeVar

import msgspec

from secagg.cores import spread
from secagg.crypto.kdf import Label
from secagg.crypto.sealing import SERVER_ID
from secagg.crypto.shamir import SHARE_LENGTH
from secagg.errors import DecodeError, SecaggError, ServerFault, shown
from secagg.graph import Graph
from secagg.identity import Claim, Roster

Bytes32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
ShareBytes = Annotated[bytes, msgspec.Meta(min_length=36, max_length=36)]
SignatureBytes = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
Tag = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Id = Annotated[int, msgspec.Meta(ge=0)]  # u64; the codec cannot say the upper end, MessagePack does
Sign = Callable[[Label, bytes], bytes]

# No message of a complete graph with 200 clients or of a sparse one with 10 000 comes near it; vectors travel outside.
MAX_FRAME_LENGTH = 4 * 2**20


class Signed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
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
    """Exchange 1, server: T1, which fixes U1 and every advertisement; one signature for everybody."""

    transcript: Bytes32


class AdvertisedFrame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="advertisements"):
    """Exchange 1, server: a signed `Advertised`, what T1 is computed from, and the neighbours' own signed frames.

    Attributes:
        header: The signed `Advertised`.
        digests: For each member of U1, in order of id, u64be id ‖ digest of its frame: 40 bytes each.
        frames: The advertisements of the recipient's neighbours, in order of id.
    """

    header: bytes
    digests: bytes
    frames: tuple[bytes, ...]


class ShareHeader(Message, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True, tag="share"):
    """Exchange 2, client: the signed Merkle root over its parts; one signature covers what each neighbour gets."""

    root: Bytes32


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Part:
    """What a dealer hands one neighbour, a leaf of its Merkle tree. Fixed layout, fields in this order, nothing between.

    Attributes:
        share_box: The holder's two shares, root then self, sealed to its channel key: 72 bytes and the suite's overhead.
        root_commitment: To the share of the mask root, 32 bytes.
        self_commitment: To the share of the self seed, 32 bytes.
        pair_box: Where the dealer is the chooser of the edge, the pair seed sealed to the holder's mask key: 32 bytes and
            the suite's overhead. Else None, and not in the encoding.
        pair_commitment: To the pair seed, 32 bytes; None along with the box.
    """

    share_box: bytes
    root_commitment: bytes
    self_commitment: bytes
    pair_box: bytes | None
    pair_commitment: bytes | None

    def encode(self) -> bytes:
        """The leaf."""
        fields = (self.share_box, self.root_commitment, self.self_commitment, self.pair_box, self.pair_commitment)
        return b"".join(field for field in fields if field is not None)

    @staticmethod
    def length(overhead: int, *, pair: bool) -> int:
        """Bytes of a leaf, with or without a pair seed.

        Args:
            overhead: The suite's bytes of a box beyond its plaintext.
            pair: Whether the dealer is the chooser.
        """
        return 2 * SHARE_LENGTH + overhead + 64 + (32 + overhead + 32 if pair else 0)

    @classmethod
    def decode(cls, leaf: bytes, overhead: int, *, pair: bool) -> "Part":
        """The part of a leaf.

        Raises:
            DecodeError: It has another length.
        """
        if len(leaf) != cls.length(overhead, pair=pair):
            raise DecodeError(f"Part: {len(leaf)} bytes instead of {cls.length(overhead, pair=pair)}")
        end = 2 * SHARE_LENGTH + overhead
        return cls(
            leaf[:end],
            leaf[end : end + 32],
            leaf[end + 32 : end + 64],
            leaf[end + 64 : -32] if pair else None,
            leaf[-32:] if pair else None,
        )


# The leaf of a dealer for itself, which the server alone sees: its commitments to its own root share and self share.
OWN_PART_LENGTH = 64


def leaf_lengths(graph: Graph, dealer: int, overhead: int) -> list[int]:
    """Bytes of a dealer's leaves, in order of holder.

    Args:
        graph: The round's edges.
        dealer: Whose leaves.
        overhead: The suite's bytes of a box beyond its plaintext.
    """
    lengths = [Part.length(overhead, pair=pair) for pair in (False, True)]
    found = [lengths[chooses] for chooses in graph.choices(dealer)]
    found.insert(graph.holders(dealer).index(dealer), OWN_PART_LENGTH)
    return found


def body_start(header_end: int) -> int:
    """Where the body of a mask frame begins: at the first multiple of 16 bytes, so that the server adds it where it lies."""
    return header_end + -header_end % 16


class ShareFrame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="shares"):
    """Exchange 2, client: a signed `ShareHeader` and the leaves under its root, holders in cohort order."""

    header: bytes
    leaves: tuple[bytes, ...]


class Shared(Message, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True, tag="shared"):
    """Exchange 2, server: U2; one signature for everybody, since each part below it has its dealer's."""

    members: tuple[Id, ...]


class Delivery(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """One dealer's part for the recipient, with the dealer's signed header and the Merkle path to it."""

    header: bytes
    leaf: bytes
    path: bytes


class SharedFrame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="parts"):
    """Exchange 2, server: a signed `Shared` and the parts of the recipient's neighbours in U2, in order of id."""

    header: bytes
    deliveries: tuple[Delivery, ...]


class MaskHeader(Message, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True, tag="mask"):
    """Exchange 3, client: whom it refused, and the tag and length of the body that follows."""

    body_length: Id
    refused: tuple[Id, ...]
    tag: Tag


class Survivors(Message, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True, tag="survivors"):
    """Exchange 3, server: U3, whose vectors are in the sum."""

    members: tuple[Id, ...]


class Confirm(Message, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True, tag="confirm"):
    """Exchange 4, client: its signature over the statement, which is also the frame's only signature."""

    signature: SignatureBytes


class Quorum(Message, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True, tag="quorum"):
    """Exchange 4, server: enough signatures over one statement that no other can have as many."""

    signatures: tuple[tuple[Id, SignatureBytes], ...]


class SelfShare(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False, tag="self"):
    """A share of a survivor's self seed: it opens the owner's own mask, and nothing about its pair masks."""

    owner: Id
    share: ShareBytes

    def __repr__(self) -> str:
        return f"SelfShare(owner={self.owner}, share=<redacted>)"


class RootShare(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False, tag="root"):
    """A share of a dropped client's mask root, and the pair seed of the edge to it: they open its pair masks only."""

    owner: Id
    share: ShareBytes
    pair_seed: Bytes32

    def __repr__(self) -> str:
        return f"RootShare(owner={self.owner}, share=<redacted>, pair_seed=<redacted>)"


class Unmask(Message, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True, tag="unmask"):
    """Exchange 5, client: one answer for each neighbour and itself. An answer has room for one kind of share only."""

    answers: tuple[SelfShare | RootShare, ...]


class Decline(Message, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True, tag="decline"):
    """Any exchange, client, in place of its frame: it takes no further part, and why. Bound to the context.

    Attributes:
        phase: The exchange that it does not answer.
        rule: One word for machines: the policy's rule, or the kind of error.
        reason: One sentence for people, without anything about its data.
    """

    phase: Annotated[str, msgspec.Meta(max_length=16)]
    rule: Annotated[str, msgspec.Meta(max_length=64)]
    reason: Annotated[str, msgspec.Meta(max_length=512)]


StructT = TypeVar("StructT", bound=msgspec.Struct)
MessageT = TypeVar("MessageT", bound=Message)
ContentT = TypeVar("ContentT")
OtherT = TypeVar("OtherT")

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
        DecodeError: Not a frame of this kind, round or sender, or (`SignatureError`) not signed by that client.
        ServerFault: The server's signature does not verify.
    """
    (message,) = verify_each([unverified(data, kind, binding=binding, sender=sender)], roster)
    if isinstance(message, SecaggError):
        raise message
    return message


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Unverified(Generic[ContentT]):
    """What a party is said to have signed; `verify_each` alone gives out what is in it.

    Attributes:
        claim: What says that it is that party's.
    """

    _content: Callable[[], ContentT]
    claim: Claim

    def then(self, work: Callable[[ContentT], OtherT]) -> "Unverified[OtherT]":
        """The same with something made of its content, once the claim is in order: on the core that has verified it.

        Args:
            work: May raise a `SecaggError`.
        """
        content = self._content
        return Unverified(lambda: work(content()), self.claim)

    def _verified(self, roster: Roster) -> ContentT | SecaggError:
        error = roster.error(self.claim)
        if error is not None:
            return error
        try:
            return self._content()
        except SecaggError as wrong:
            return wrong


def unverified(data: bytes, kind: type[MessageT], *, binding: bytes, sender: int) -> Unverified[MessageT]:
    """A signed frame with every check of this module's header done but that of the signature.

    Raises:
        DecodeError: Not a frame of this kind, round or sender.
    """
    signed = decode(data, Signed)
    message = decode(signed.payload, kind)
    check_bound(message, binding=binding, sender=sender)
    return Unverified(lambda: message, Claim(sender, Label.SIGNATURE_FRAME, signed.payload, signed.signature))


def verify_each(claimed: Sequence[Unverified[ContentT]], roster: Roster) -> list[ContentT | SecaggError]:
    """The content of each whose signature verifies, and in the place of any other what was wrong; on all cores.

    Guarantees:
        Nothing of a message is given out whose signature is not that of its party.
    """
    return spread(lambda each: each._verified(roster), claimed)  # noqa: SLF001 - of this module


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
    if any(a >= b for a, b in itertools.pairwise(members)):
        raise ServerFault(f"{name} is not sorted, or names a client twice")
    unknown = set(members).difference(within)
    if unknown:
        raise ServerFault(f"{name} contains {shown(unknown)}, who were not there before")
    if client not in members:
        raise ServerFault(f"{name} leaves out client {client}, which answered")
    if len(members) < at_least:
        raise ServerFault(f"{name} has {len(members)} members, fewer than the agreed minimum {at_least}")


def decode_server(data: bytes, kind: type[StructT]) -> StructT:
    """`decode` for what the server sends; whatever is wrong with it is the server's fault.

    Raises:
        ServerFault: It is not of this kind and form.
    """
    try:
        return decode(data, kind)
    except DecodeError as error:
        raise ServerFault(str(error)) from None


def unseal_server(data: bytes, kind: type[MessageT], *, binding: bytes, roster: Roster) -> MessageT:
    """A server's frame; whatever is wrong with it is the server's fault.

    Raises:
        ServerFault: It is not the frame that this client waits for.
    """
    try:
        return unseal(data, kind, binding=binding, sender=SERVER_ID, roster=roster)
    except DecodeError as error:
        raise ServerFault(str(error)) from None
