"""Every label, every derivation, every hash with a purpose: one place derives.

A label is the protocol version and one purpose, so that no two uses of a key or of a hash ever meet. The items that follow it
are encoded one to one: an integer as `00 ‖ u64be`, a byte string as `01 ‖ u32be length ‖ bytes`. Two different lists of items
therefore never give the same input, whatever their lengths.
"""

import hashlib
from collections.abc import Callable
from enum import Enum

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from secagg.errors import InputError

VERSION = b"secagg/1"

Entropy = Callable[[int], bytes]
"""Takes a number of bytes, gives that many secret random bytes."""


class Label(Enum):
    """The purpose of a derivation, a hash or a signature; the value is its bytes."""

    CONTEXT = VERSION + b" context"
    TRANSCRIPT = VERSION + b" transcript"
    ADVERTISEMENT = VERSION + b" advertisement"
    SEED_COMMITMENT = VERSION + b" self seed commitment"
    MASK_KEY_MLKEM = VERSION + b" mask key ML-KEM-768"
    MASK_KEY_X25519 = VERSION + b" mask key X25519"
    PAIR_SEED = VERSION + b" pair seed"
    PAIR_COMMITMENT = VERSION + b" pair seed commitment"
    SHARE_COMMITMENT = VERSION + b" share commitment"
    SELF_STREAM = VERSION + b" self stream"
    PAIR_STREAM = VERSION + b" pair stream"
    CHANNEL_KEY_MLKEM = VERSION + b" channel key ML-KEM-768"
    CHANNEL_KEY_X25519 = VERSION + b" channel key X25519"
    GRAPH = VERSION + b" graph"
    STATEMENT = VERSION + b" statement"
    SIGNATURE_FRAME = VERSION + b" frame signature"
    SIGNATURE_STATEMENT = VERSION + b" statement signature"
    ROSTER = VERSION + b" roster"
    ROSTER_FILE = VERSION + b" roster file"
    SIGNATURE_ROSTER = VERSION + b" roster signature"
    TEST_ENTROPY = VERSION + b" test entropy"


# Reading Enum.value costs as much as the framing; there are hundreds of derivations in a round.
_FRAMED = {label: len(label.value).to_bytes(1, "big") + label.value for label in Label}


def framed(label: Label) -> bytes:
    """The label with its length in front (u8 ‖ value): no label's framing is a prefix of another's."""
    return _FRAMED[label]


def derive(secret: bytes, label: Label, *context: bytes | int, salt: bytes, length: int = 32) -> bytes:
    """A key or a seed for one purpose: HKDF-SHA256 [RFC5869].

    Args:
        secret: The input key material, uniformly random.
        label: What the result is for.
        *context: What else it is bound to; integers are u64.
        salt: The transcript digest T1, or the round's context before there is one (32 bytes).
        length: How many bytes, at most 8160.

    Returns:
        `length` bytes.

    Raises:
        InputError: Our caller gave an integer outside u64, or a length that HKDF can't give.

    Guarantees:
        Different (label, context) give independent bytes: the encoding is one to one.
    """
    if not 1 <= length <= 255 * 32:
        raise InputError(f"{label.name}: HKDF-SHA256 gives 1 to 8160 bytes, not {length}")
    return HKDF(hashes.SHA256(), length, salt, _encode(label, context)).derive(secret)


def digest(label: Label, *items: bytes | int) -> bytes:
    """SHA-256 over the label and the items, one to one as in `derive`.

    Returns:
        32 bytes.

    Raises:
        InputError: Our caller gave an integer outside u64.
    """
    return hashlib.sha256(_encode(label, items)).digest()


def draw(entropy: Entropy, length: int) -> bytes:
    """Exactly `length` fresh bytes; a source that runs short is refused, never padded.

    Raises:
        InputError: The entropy source gave another number of bytes, or something that is not bytes.
    """
    fresh = entropy(length)
    if not isinstance(fresh, bytes) or len(fresh) != length:
        raise InputError(f"the entropy source did not give the {length} bytes that it was asked for")
    return fresh


def u64(value: int, name: str) -> bytes:
    """`value` as eight bytes, big-endian.

    Raises:
        InputError: It is outside u64; the message has `name`.
    """
    if not 0 <= value < 2**64:
        raise InputError(f"{name} must be in [0, 2**64), not {value}")
    return value.to_bytes(8, "big")


def _encode(label: Label, items: tuple[bytes | int, ...]) -> bytes:
    parts = [_FRAMED[label]]
    for item in items:
        if isinstance(item, int):
            try:
                parts.append(b"\x00" + item.to_bytes(8, "big"))
            except OverflowError:
                raise InputError(f"an integer under {label.name} must be in [0, 2**64), not {item}") from None
        else:
            parts.append(b"\x01" + len(item).to_bytes(4, "big") + item)
    return b"".join(parts)
