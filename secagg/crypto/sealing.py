"""Sealed boxes: HPKE in base mode [RFC9180], hybrid post-quantum by default.

The hybrid suite combines ML-KEM-768 [FIPS203] with X25519 [RFC7748] in one KEM: a box stays shut as long as either holds. Every box is bound by
its info string to the protocol version, a purpose, the round, its sender and its recipient, so that a copied box does not open.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from secagg.crypto.kdf import VERSION, u64
from secagg.errors import InputError, SealError

SERVER_ID = 2**64 - 1
"""The server's place among the u64 ids; no client has it."""

MLKEM_SEED_LENGTH = 64
MLKEM_PUBLIC_LENGTH = 1184
MLKEM_CIPHERTEXT_LENGTH = 1088
X25519_LENGTH = 32
TAG_LENGTH = 16

_PublicKey = X25519PublicKey | hpke.MLKEM768X25519PublicKey
_PrivateKey = X25519PrivateKey | hpke.MLKEM768X25519PrivateKey


class Purpose(IntEnum):
    """What a box carries; one byte of its info string."""

    MAC_KEY = 1
    SHARES = 2
    PAIR_SEED = 3


def box_info(purpose: Purpose, binding: bytes, sender: int, recipient: int) -> bytes:
    """The info string of one box: version ‖ u8 purpose ‖ binding ‖ u64be sender ‖ u64be recipient, 57 bytes.

    Args:
        purpose: What the box carries.
        binding: T1, or the round's context for boxes made before T1 exists (32 bytes).
        sender: Client id.
        recipient: Client id, or `SERVER_ID`.

    Raises:
        InputError: A length or an id of our caller is wrong.
    """
    if len(binding) != 32:
        raise InputError(f"a box is bound to 32 bytes, not {len(binding)}")
    return b"".join(
        (VERSION, Purpose(purpose).to_bytes(1, "big"), binding, u64(sender, "sender"), u64(recipient, "recipient"))
    )


class SecretKey:
    """The private half of a key pair of one suite. It never prints, pickles or copies.

    Attributes:
        suite: The suite's name.
        public: The public key, raw bytes.
    """

    __slots__ = ("_private", "public", "suite")

    def __init__(self, suite: str, private: _PrivateKey, public: bytes) -> None:
        self.suite = suite
        self.public = public
        self._private = private

    def __repr__(self) -> str:
        return f"SecretKey({self.suite}, public={self.public[:4].hex()}…, private=<redacted>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret key is never pickled or copied")

    def __getstate__(self) -> NoReturn:
        raise TypeError("a secret key is never pickled or copied")


@dataclass(frozen=True)
class Suite:
    """One choice of KEM; KDF and AEAD are HKDF-SHA256 and AES-256-GCM in both.

    Attributes:
        name: "hybrid" or "classical".
        hybrid: Whether keys have an ML-KEM half; raw public keys are then ML-KEM (1184) ‖ X25519 (32), else X25519 alone.
        public_key_length: Bytes of a raw public key.
        box_overhead: Bytes of a box beyond its plaintext.
    """

    name: str
    hybrid: bool
    public_key_length: int
    box_overhead: int

    def key_pair(self, seed_mlkem: bytes | None, seed_x25519: bytes) -> SecretKey:
        """The key pair of two seeds, always the same for the same seeds.

        Args:
            seed_mlkem: The FIPS 203 seed d ‖ z (64 bytes); None in the classical suite.
            seed_x25519: The X25519 scalar (32 bytes), clamped when used.

        Raises:
            InputError: A seed of our caller has the wrong length, or is missing, or is one too many.
        """
        if len(seed_x25519) != X25519_LENGTH:
            raise InputError(f"an X25519 seed has 32 bytes, not {len(seed_x25519)}")
        x25519 = X25519PrivateKey.from_private_bytes(seed_x25519)
        public_x25519 = x25519.public_key().public_bytes_raw()
        if not self.hybrid:
            if seed_mlkem is not None:
                raise InputError(f"the {self.name} suite has no ML-KEM key: its seed must be None")
            return SecretKey(self.name, x25519, public_x25519)
        if seed_mlkem is None or len(seed_mlkem) != MLKEM_SEED_LENGTH:
            raise InputError(f"the {self.name} suite needs an ML-KEM seed of 64 bytes")
        mlkem = MLKEM768PrivateKey.from_seed_bytes(seed_mlkem)
        public = mlkem.public_key().public_bytes_raw() + public_x25519
        return SecretKey(self.name, hpke.MLKEM768X25519PrivateKey(mlkem, x25519), public)

    def seal(self, public_key: bytes, plaintext: bytes, *, info: bytes) -> bytes:
        """A box that only the holder of the key opens, and only under the same info.

        Args:
            public_key: Raw bytes, `public_key_length` of them.
            plaintext: Any length.
            info: From `box_info`.

        Returns:
            The encapsulated key and the ciphertext, `len(plaintext) + box_overhead` bytes; fresh randomness every time.

        Raises:
            SealError: The key is not one of this suite, or no box can be made for it (an all-zero X25519 key, say).
        """
        try:
            return _HPKE[self.name].encrypt(plaintext, self._load(public_key), info)
        except ValueError as error:
            raise SealError(f"no {self.name} box can be made for this public key") from error

    def check_public_key(self, public_key: bytes) -> None:
        """Return if boxes can be made for a key; it costs a third of trying.

        Sealing fails for a key that does not load, and for an X25519 point of low order, whose exchange gives zero whatever the
        other scalar is; nothing else about a key can make it fail.

        Raises:
            SealError: `seal` would fail for this key.
        """
        try:
            self._load(public_key)
            _ANY_SCALAR.exchange(X25519PublicKey.from_public_bytes(public_key[-X25519_LENGTH:]))
        except ValueError as error:
            raise SealError(f"no {self.name} box can be made for this public key") from error

    def open(self, secret: SecretKey, box: bytes, *, info: bytes) -> bytes:
        """The plaintext of a box.

        Args:
            secret: The recipient's key.
            box: What `seal` gave.
            info: From `box_info`, with the same values as at the sealing.

        Raises:
            SealError: It does not open: another key, another info, another suite, altered, or cut short.

        Guarantees:
            A box opens under the key and the info that it was sealed for, and under no other.
        """
        if secret.suite != self.name:
            raise SealError(f"a {secret.suite} key does not open {self.name} boxes")
        if len(box) < self.box_overhead:
            raise SealError(f"a {self.name} box has at least {self.box_overhead} bytes, not {len(box)}")
        try:
            return _HPKE[self.name].decrypt(box, secret._private, info)  # noqa: SLF001 - the key is opaque to everyone else
        except (InvalidTag, ValueError) as error:
            raise SealError(f"a {self.name} box does not open") from error

    def _load(self, public_key: bytes) -> _PublicKey:
        if len(public_key) != self.public_key_length:
            raise SealError(f"a {self.name} public key has {self.public_key_length} bytes, not {len(public_key)}")
        x25519 = X25519PublicKey.from_public_bytes(public_key[-X25519_LENGTH:])
        if not self.hybrid:
            return x25519
        return hpke.MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(public_key[:MLKEM_PUBLIC_LENGTH]), x25519
        )


SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            name="hybrid",
            hybrid=True,
            public_key_length=MLKEM_PUBLIC_LENGTH + X25519_LENGTH,
            box_overhead=MLKEM_CIPHERTEXT_LENGTH + X25519_LENGTH + TAG_LENGTH,
        ),
        Suite(name="classical", hybrid=False, public_key_length=X25519_LENGTH, box_overhead=X25519_LENGTH + TAG_LENGTH),
    )
}

_ANY_SCALAR = X25519PrivateKey.from_private_bytes(bytes(X25519_LENGTH))

_HPKE = {
    "hybrid": hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM),
    "classical": hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM),
}
