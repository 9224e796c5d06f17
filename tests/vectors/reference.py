"""What the other generators build frames with: MessagePack, labels, signatures, Merkle trees and boxes, each from its definition."""

import hashlib
import json

import generate_crypto as crypto
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey


def u64(value):
    """Eight bytes, big-endian."""
    return value.to_bytes(8, "big")


def packed(value):
    """The shortest MessagePack form of what frames are made of."""
    if value is None:
        return b"\xc0"
    if isinstance(value, int):
        return _packed_int(value)
    if isinstance(value, str):
        data = value.encode()
        head = bytes([0xA0 + len(data)]) if len(data) < 32 else _sized((0xD9, 0xDA, 0xDB), len(data))
        return head + data
    if isinstance(value, bytes):
        return _sized((0xC4, 0xC5, 0xC6), len(value)) + value
    head = bytes([0x90 + len(value)]) if len(value) < 16 else _sized((None, 0xDC, 0xDD), len(value))
    return head + b"".join(packed(item) for item in value)


def _packed_int(value):
    if value < 0:
        return value.to_bytes(1, "big", signed=True)  # the flaws need no more than one byte of it
    if value < 128:
        return bytes([value])
    for code, size in ((0xCC, 1), (0xCD, 2), (0xCE, 4), (0xCF, 8)):
        if value < 256**size:
            return bytes([code]) + value.to_bytes(size, "big")
    raise ValueError(value)


def _sized(codes, length):
    for code, size in zip(codes, (1, 2, 4), strict=True):
        if code is not None and length < 256**size:
            return bytes([code]) + length.to_bytes(size, "big")
    raise ValueError(length)


def digest(label, *items):
    """SHA-256 over a label and items."""
    return hashlib.sha256(crypto.encoded(label, items)).digest()


def derive(secret, label, *items, salt, length=32):
    """HKDF over a label and items."""
    return crypto.hkdf(secret, crypto.encoded(label, items), salt, length)


def sign(seed, label, message):
    """Ed25519 over a label and a message."""
    return Ed25519PrivateKey.from_private_bytes(seed).sign(crypto.encoded(label, []) + message)


def signed(seed, payload, label=b"frame signature"):
    """A frame: the payload and its sender's signature."""
    return packed([payload, sign(seed, label, payload)])


def public_of(seed):
    """The Ed25519 public key of a seed."""
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def merkle_root(leaves):
    """RFC 9162, section 2.1.1, as it is written there: a recursive split at the largest power of two."""
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    half = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + merkle_root(leaves[:half]) + merkle_root(leaves[half:])).digest()


def merkle_path(index, leaves):
    """RFC 9162, section 2.1.3.1: the siblings from the leaf up."""
    if len(leaves) == 1:
        return b""
    half = 1 << (len(leaves) - 1).bit_length() - 1
    if index < half:
        return merkle_path(index, leaves[:half]) + merkle_root(leaves[half:])
    return merkle_path(index - half, leaves[half:]) + merkle_root(leaves[:half])


def share_bytes(limbs):
    """Nine limbs as little-endian words."""
    return b"".join(limb.to_bytes(4, "little") for limb in limbs)


class Boxes:
    """Sealed boxes: those that were recorded, and new ones where there is none."""

    def __init__(self, recorded):
        self._known = {tuple(entry[name] for name in ("public", "info", "plaintext")): entry for entry in recorded}
        self.used = []

    def seal(self, suite, public, plaintext, info):
        """A box, the same one every time."""
        name = (public.hex(), info.hex(), plaintext.hex())
        entry = self._known.get(name)
        if entry is None:
            entry = dict(zip(("public", "info", "plaintext"), name, strict=True))
            entry["box"] = _sealed(suite, public, plaintext, info).hex()
            self._known[name] = entry
        if entry not in self.used:
            self.used.append(entry)
        return bytes.fromhex(entry["box"])


def _sealed(suite, public, plaintext, info):
    key = X25519PublicKey.from_public_bytes(public[-32:])
    kem = hpke.KEM.X25519
    if suite == "hybrid":
        key = hpke.MLKEM768X25519PublicKey(MLKEM768PublicKey.from_public_bytes(public[:1184]), key)
        kem = hpke.KEM.MLKEM768_X25519
    return hpke.Suite(kem, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM).encrypt(plaintext, key, info)


def info_of(purpose, binding, sender, recipient):
    """The info string of a box."""
    return b"secagg/1" + bytes([purpose]) + binding + u64(sender) + u64(recipient)


def mask_frame(head, body, padding=None):
    """A header and a body that starts at a multiple of 16."""
    front = len(head).to_bytes(4, "big") + head
    return front + (bytes(-len(front) % 16) if padding is None else padding) + body


def recorded_boxes(path):
    """The boxes that a file has kept."""
    return json.loads(path.read_text("utf-8"))["boxes"] if path.exists() else []
