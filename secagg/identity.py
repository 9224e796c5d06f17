"""Who is who: Ed25519 identities [RFC8032], the server's keys, and the roster that everybody pins.

No mask, share or channel key derives from an identity: whoever steals one later can sign, but opens no past round.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, NoReturn, Protocol, Self, final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from secagg.crypto.kdf import Entropy, Label, digest, draw, framed
from secagg.crypto.sealing import MLKEM_SEED_LENGTH, SERVER_ID, SUITES, X25519_LENGTH, SecretKey
from secagg.errors import DecodeError, ParameterError, SecaggError, ServerFault, SignatureError, SignerError

KEY_LENGTH = 32
SIGNATURE_LENGTH = 64


class Signer(Protocol):
    """One Ed25519 key, wherever it is: in a token, an HSM, another process."""

    @property
    def public_key(self) -> bytes:
        """Raw Ed25519 public key (32 bytes)."""
        ...

    def sign(self, message: bytes, /) -> bytes:
        """The Ed25519 signature (64 bytes) over exactly this message."""
        ...


class _NeverCopied:
    """What holds a private key; it never pickles or copies."""

    __slots__ = ()

    def __reduce__(self) -> NoReturn:
        raise TypeError("an identity is never pickled or copied")

    def __getstate__(self) -> NoReturn:
        raise TypeError("an identity is never pickled or copied")


@final
class SigningKey(_NeverCopied):
    """A `Signer` whose key is in this process's memory.

    Attributes:
        public_key: Raw Ed25519 public key (32 bytes).
    """

    __slots__ = ("_key", "public_key")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key = key.public_key().public_bytes_raw()

    def sign(self, message: bytes, /) -> bytes:
        """The Ed25519 signature over exactly this message (64 bytes)."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"SigningKey(public_key={self.public_key.hex()}, private=<redacted>)"


@final
class CheckedSigner:
    """A `Signer` of somebody else, believed only as far as its signatures verify.

    Attributes:
        public_key: Raw Ed25519 public key (32 bytes), read once.

    Raises:
        SignerError: The public key cannot be had, or is not 32 bytes.
    """

    __slots__ = ("_signer", "_verifier", "public_key")

    def __init__(self, signer: Signer) -> None:
        try:
            public_key = signer.public_key
        except Exception as error:
            raise SignerError(f"the signer gave no public key: {type(error).__name__}") from error
        if not isinstance(public_key, bytes) or len(public_key) != KEY_LENGTH:
            raise SignerError(f"the signer's public key is not {KEY_LENGTH} bytes")
        self._signer = signer
        self.public_key = public_key
        self._verifier = Ed25519PublicKey.from_public_bytes(public_key)

    def sign(self, message: bytes, /) -> bytes:
        """The signer's signature over exactly this message (64 bytes).

        Raises:
            SignerError: The signer failed, or gave something else.

        Guarantees:
            What it returns verifies under `public_key`.
        """
        try:
            signature = self._signer.sign(message)
        except Exception as error:
            raise SignerError(f"the signer failed: {type(error).__name__}") from error
        if not isinstance(signature, bytes) or len(signature) != SIGNATURE_LENGTH:
            raise SignerError(f"the signer's signature is not {SIGNATURE_LENGTH} bytes")
        try:
            self._verifier.verify(signature, message)
        except InvalidSignature:
            raise SignerError("the signer's signature does not verify under its own public key") from None
        return signature


def checked(key: Ed25519PrivateKey | Signer) -> SigningKey | CheckedSigner:
    """A signer to rely on: our own key as it is, since to verify what it signs would only cost; anybody else's checked.

    Raises:
        SignerError: A foreign signer's public key cannot be had, or is not 32 bytes.
    """
    if isinstance(key, Ed25519PrivateKey):
        return SigningKey(key)
    return key if isinstance(key, SigningKey | CheckedSigner) else CheckedSigner(key)


class _Party(_NeverCopied):
    """A party that signs."""

    __slots__ = ("_signer", "id")

    def __init__(self, party_id: int, key: Ed25519PrivateKey | Signer) -> None:
        self.id = party_id
        self._signer = checked(key)

    def sign(self, label: Label, message: bytes) -> bytes:
        """The Ed25519 signature over the framed label ‖ message (64 bytes).

        Raises:
            SignerError: The key is not in this process, and its signer failed or signed wrongly.

        Guarantees:
            A signature made under one label is none under another.
        """
        return self._signer.sign(framed(label) + message)


class Identity(_Party):
    """A client's long-lived signing identity.

    Attributes:
        id: The client id, a u64 below `SERVER_ID`.
        public_key: Raw Ed25519 public key (32 bytes), for the roster.
    """

    __slots__ = ("public_key",)

    def __init__(self, party_id: int, key: Ed25519PrivateKey | Signer) -> None:
        _check_client(party_id)
        super().__init__(party_id, key)
        self.public_key = self._signer.public_key

    @classmethod
    def from_signer(cls, id: int, signer: Signer) -> Self:  # noqa: A002 - the attribute that it becomes
        """An identity whose key stays where it is.

        Raises:
            ParameterError: The id is not that of a client.
            SignerError: The signer's public key cannot be had, or is not 32 bytes.
        """
        return cls(id, signer)

    @classmethod
    def generate(cls, id: int, entropy: Entropy = os.urandom) -> Self:  # noqa: A002 - the attribute that it becomes
        """A fresh identity from 32 bytes of entropy.

        Raises:
            ParameterError: The id is not that of a client.
            InputError: The entropy source ran short.
        """
        return cls(id, Ed25519PrivateKey.from_private_bytes(draw(entropy, KEY_LENGTH)))

    def __repr__(self) -> str:
        return f"Identity(id={self.id}, public_key={self.public_key.hex()}, private=<redacted>)"


class ServerIdentity(_Party):
    """The server's signing key and the key that one-time MAC keys are sealed to.

    Attributes:
        id: `SERVER_ID`.
        suite: Name of the suite of the sealing key.
        verify_key: Raw Ed25519 public key (32 bytes).
        sealing_key: Raw HPKE public key of the suite.
    """

    __slots__ = ("_secret", "sealing_key", "suite", "verify_key")

    def __init__(self, key: Ed25519PrivateKey | Signer, secret: SecretKey) -> None:
        super().__init__(SERVER_ID, key)
        self._secret = secret
        self.suite = secret.suite
        self.verify_key = self._signer.public_key
        self.sealing_key = secret.public

    @classmethod
    def from_signer(cls, signer: Signer, secret: SecretKey) -> Self:
        """The server with a signing key that stays where it is; the sealing key is in this process.

        Raises:
            SignerError: The signer's public key cannot be had, or is not 32 bytes.
        """
        return cls(signer, secret)

    @classmethod
    def generate(cls, suite: str = "hybrid", entropy: Entropy = os.urandom) -> Self:
        """Fresh keys: 32 bytes of entropy for the signing key, then the seeds of the sealing key.

        Raises:
            ParameterError: There is no such suite.
            InputError: The entropy source ran short.
        """
        if suite not in SUITES:
            raise ParameterError(f"suite must be one of {sorted(SUITES)}, not {suite!r}")
        key = Ed25519PrivateKey.from_private_bytes(draw(entropy, KEY_LENGTH))
        seed_mlkem = draw(entropy, MLKEM_SEED_LENGTH) if SUITES[suite].hybrid else None
        return cls(key, SUITES[suite].key_pair(seed_mlkem, draw(entropy, X25519_LENGTH)))

    def open(self, box: bytes, *, info: bytes) -> bytes:
        """The plaintext of a box that was sealed to `sealing_key`.

        Raises:
            SealError: It does not open.
        """
        return SUITES[self.suite].open(self._secret, box, info=info)

    def __repr__(self) -> str:
        return f"ServerIdentity({self.suite}, verify_key={self.verify_key.hex()}, private=<redacted>)"


class Claim(NamedTuple):
    """What a party is said to have signed, not verified yet.

    Attributes:
        party_id: Client id, or `SERVER_ID`.
        label: What was signed.
        message: The bytes as received.
        signature: 64 bytes.
    """

    party_id: int
    label: Label
    message: bytes
    signature: bytes


@dataclass(frozen=True)
class Roster:
    """The public keys of everybody, handed over out of band and pinned.

    Attributes:
        clients: Client id → raw Ed25519 public key (32 bytes). Kept sorted and read-only; the caller's mapping is copied.
        server_verify_key: The server's raw Ed25519 public key (32 bytes).
        server_sealing_key: The server's raw HPKE public key, of either suite.

    Raises:
        ParameterError: An id is not a client's, a key has the wrong length, or two parties have the same key.
    """

    clients: Mapping[int, bytes]
    server_verify_key: bytes
    server_sealing_key: bytes
    _keys: Mapping[int, Ed25519PublicKey] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        parties = {**dict(sorted(self.clients.items())), SERVER_ID: self.server_verify_key}
        owners: dict[bytes, int] = {}
        for party, key in parties.items():
            if party != SERVER_ID or SERVER_ID in self.clients:
                _check_client(party)
            if len(key) != KEY_LENGTH:
                raise ParameterError(f"roster: the key of {_name(party)} has {len(key)} bytes, not {KEY_LENGTH}")
            if key in owners:
                raise ParameterError(f"roster: {_name(owners[key])} and {_name(party)} have the same key")
            owners[key] = party
        if len(self.server_sealing_key) not in {suite.public_key_length for suite in SUITES.values()}:
            raise ParameterError(f"roster: no suite has a sealing key of {len(self.server_sealing_key)} bytes")
        object.__setattr__(self, "clients", MappingProxyType({p: k for p, k in parties.items() if p != SERVER_ID}))
        object.__setattr__(self, "_keys", {p: Ed25519PublicKey.from_public_bytes(k) for p, k in parties.items()})

    def verify(self, party_id: int, label: Label, message: bytes, signature: bytes) -> None:
        """Return if `signature` is that party's over the framed label ‖ message.

        Args:
            party_id: Client id, or `SERVER_ID`.
            label: What was signed.
            message: The bytes as received.
            signature: 64 bytes.

        Raises:
            SignatureError: The signature is not that client's. Anybody can send rubbish under any name: nobody is blamed.
            ServerFault: The signature is not the server's.
            DecodeError: The id is not on the roster.

        Guarantees:
            Returns only for the signature of this party over this message under this label.
        """
        error = self.error(Claim(party_id, label, message, signature))
        if error is not None:
            raise error

    def error(self, claim: Claim) -> SecaggError | None:
        """What `verify` would raise for a claim; None where this party signed this message under this label."""
        key = self._keys.get(claim.party_id)
        if key is None:
            return DecodeError(f"party {claim.party_id} is not on the roster")
        try:
            key.verify(claim.signature, framed(claim.label) + claim.message)
        except InvalidSignature:
            reason = f"wrong signature ({claim.label.name})"
            if claim.party_id == SERVER_ID:
                return ServerFault(reason)
            return SignatureError(f"client {claim.party_id}: {reason}")
        return None

    def fingerprint(self) -> str:
        """SHA-256 over all keys in order of id, 64 hex digits: what people compare by telephone."""
        pairs = [item for pair in self.clients.items() for item in pair]
        return digest(Label.ROSTER, self.server_verify_key, self.server_sealing_key, *pairs).hex()


def _check_client(party_id: int) -> None:
    if not 0 <= party_id < SERVER_ID:
        raise ParameterError(f"a client id is in [0, 2**64 - 1), not {party_id}")


def _name(party_id: int) -> str:
    return "the server" if party_id == SERVER_ID else f"client {party_id}"
