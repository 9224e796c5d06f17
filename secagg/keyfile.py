"""Keys on disk: private ones as PKCS#8 [RFC5958] that nobody else can read, their public halves as JSON beside them.

A private file is a row of PEM blocks [RFC7468]: one Ed25519 key for a client or the consortium; for the server an Ed25519 key, an X25519
key and, in the hybrid suite, an ML-KEM-768 key. With a passphrase every block is encrypted: PBES2 [RFC8018] with scrypt [RFC7914] and
AES-256-CBC, which OpenSSL reads too. The file has mode 0600 from its first byte, and one with a wider mode is never read.
"""

import base64
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import padding
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from secagg.crypto.kdf import Entropy, draw
from secagg.crypto.sealing import MLKEM_SEED_LENGTH, SERVER_ID, SUITES, X25519_LENGTH
from secagg.errors import KeyFileError, ParameterError
from secagg.files import one_line, parse_json, read_file, write_file
from secagg.identity import KEY_LENGTH, Identity, ServerIdentity, SigningKey

StrPath = str | os.PathLike[str]

FORMAT: Final = "secagg-key/1"
_MAX_FILE = 2**16
_Private = Ed25519PrivateKey | X25519PrivateKey | MLKEM768PrivateKey

# 16 MiB and about 0.2 s a guess; more memory than 32 MiB would lock out OpenSSL's own tool.
_SCRYPT = {"n": 2**14, "r": 8, "p": 5}

Id = Annotated[str, msgspec.Meta(pattern=r"^(0|[1-9][0-9]{0,19})\Z")]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
KeyHex = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
SealingHex = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{2}){32,1216}\Z")]


class _Public(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind"):
    format: Literal["secagg-key/1"]
    name: Name

    def __post_init__(self) -> None:
        check_name(self.name)


class ClientKey(_Public, frozen=True, kw_only=True, tag="client"):
    """A client's public half.

    Attributes:
        format: "secagg-key/1".
        id: The client id (u64 below `SERVER_ID`) in decimal: a JSON number is exact only up to 2^53.
        name: What people call the site.
        public_key: Raw Ed25519 public key, 64 hex digits.
    """

    id: Id
    public_key: KeyHex

    def __post_init__(self) -> None:
        super().__post_init__()
        check_id(self.id)


class ServerKey(_Public, frozen=True, kw_only=True, tag="server"):
    """The server's public half, for one suite.

    Attributes:
        format: "secagg-key/1".
        name: What people call the server.
        suite: "hybrid" or "classical".
        verify_key: Raw Ed25519 public key, 64 hex digits.
        sealing_key: Raw HPKE public key of the suite, in hex.
    """

    suite: Literal["hybrid", "classical"]
    verify_key: KeyHex
    sealing_key: SealingHex


class ConsortiumKey(_Public, frozen=True, kw_only=True, tag="consortium"):
    """The public half of the key that signs rosters.

    Attributes:
        format: "secagg-key/1".
        name: What people call the consortium.
        public_key: Raw Ed25519 public key, 64 hex digits: what every site pins.
    """

    public_key: KeyHex


PublicKey = ClientKey | ServerKey | ConsortiumKey


def check_id(text: str) -> int:
    """The client id that a decimal string is.

    Raises:
        ParameterError: It is not below `SERVER_ID`.
    """
    if int(text) >= SERVER_ID:
        raise ParameterError(f"a client id is in [0, 2**64 - 1), not {text}")
    return int(text)


def check_name(name: str) -> None:
    """Return if a name can be shown on a terminal as it is.

    Raises:
        ParameterError: It is empty, longer than 100 characters, has characters that don't print, or space at an end.
    """
    if not 1 <= len(name) <= 100 or not name.isprintable() or name != name.strip():
        raise ParameterError(
            f"a name has 1 to 100 characters that print, and no space at its ends, unlike {name[:120]!r}"
        )


# Making keys.


def create_client(
    path: StrPath,
    id: int,  # noqa: A002 - the field that it becomes
    name: str,
    *,
    passphrase: bytes | None = None,
    overwrite: bool = False,
    entropy: Entropy = os.urandom,
) -> ClientKey:
    """A fresh client key in two files: `path`, and its public half at `public_path(path)`.

    Args:
        path: The private file; its folder must exist.
        id: The client id.
        name: What people call the site.
        passphrase: Encrypts the private file. None: it is not encrypted.
        overwrite: Whether files of these names may be replaced.
        entropy: Where the key comes from.

    Returns:
        The public half.

    Raises:
        ParameterError: The id or the name is none.
        KeyFileError: A file exists or cannot be written, or the passphrase is empty; names the file.

    Guarantees:
        The private file never exists with a mode wider than 0600, and never in part.
    """
    key = Ed25519PrivateKey.from_private_bytes(draw(entropy, KEY_LENGTH))
    public = ClientKey(
        format=FORMAT, id=str(Identity(id, key).id), name=name, public_key=SigningKey(key).public_key.hex()
    )
    _write_pair(Path(path), (key,), public, passphrase, overwrite=overwrite)
    return public


def create_consortium(
    path: StrPath,
    name: str,
    *,
    passphrase: bytes | None = None,
    overwrite: bool = False,
    entropy: Entropy = os.urandom,
) -> ConsortiumKey:
    """A fresh key that signs rosters, in two files; everything else as in `create_client`."""
    key = Ed25519PrivateKey.from_private_bytes(draw(entropy, KEY_LENGTH))
    public = ConsortiumKey(format=FORMAT, name=name, public_key=SigningKey(key).public_key.hex())
    _write_pair(Path(path), (key,), public, passphrase, overwrite=overwrite)
    return public


def create_server(
    path: StrPath,
    suite: Literal["hybrid", "classical"],
    name: str,
    *,
    passphrase: bytes | None = None,
    overwrite: bool = False,
    entropy: Entropy = os.urandom,
) -> ServerKey:
    """The server's fresh keys for one suite, in two files; everything else as in `create_client`.

    Raises:
        ParameterError: There is no such suite, or the name is none.
        KeyFileError: As in `create_client`.
    """
    if suite not in SUITES:
        raise ParameterError(f"suite must be one of {sorted(SUITES)}, not {suite!r}")
    keys: list[_Private] = [
        Ed25519PrivateKey.from_private_bytes(draw(entropy, KEY_LENGTH)),
        X25519PrivateKey.from_private_bytes(draw(entropy, X25519_LENGTH)),
    ]
    if SUITES[suite].hybrid:
        keys.append(MLKEM768PrivateKey.from_seed_bytes(draw(entropy, MLKEM_SEED_LENGTH)))
    server = _server(keys)
    public = ServerKey(
        format=FORMAT,
        name=name,
        suite=suite,
        verify_key=server.verify_key.hex(),
        sealing_key=server.sealing_key.hex(),
    )
    _write_pair(Path(path), keys, public, passphrase, overwrite=overwrite)
    return public


def public_path(path: StrPath) -> Path:
    """Where the public half of a private file is: `site.pem` and `site.pub.json`."""
    return Path(path).with_name(Path(path).name.removesuffix(".pem") + ".pub.json")


def _write_pair(
    path: Path, keys: Sequence[_Private], public: PublicKey, passphrase: bytes | None, *, overwrite: bool
) -> None:
    if passphrase == b"":
        raise KeyFileError(f"{path}: an empty passphrase protects nothing")
    pem = b"".join(_pem(key, passphrase) for key in keys)
    text = msgspec.json.format(msgspec.json.encode(public), indent=2) + b"\n"
    if not overwrite and os.path.lexists(public_path(path)):
        raise KeyFileError(f"{public_path(path)}: exists already")
    write_file(path, pem, kind=KeyFileError, mode=0o600, overwrite=overwrite)
    write_file(public_path(path), text, kind=KeyFileError, mode=0o644, overwrite=overwrite)


# Loading keys.


def load_client(path: StrPath, id: int, *, passphrase: bytes | None = None) -> Identity:  # noqa: A002 - the field that it becomes
    """The identity of a client from its private file.

    Args:
        path: The private file.
        id: The client id; a session checks it, with the key, against the roster.
        passphrase: What the file is encrypted with; None if it is not.

    Raises:
        ParameterError: The id is not that of a client.
        KeyFileError: The file cannot be read, is readable by others, belongs to somebody else, is a link, needs another
            passphrase or none, or has other keys; names the file, never its content.
    """
    return Identity.from_signer(id, load_signer(path, passphrase=passphrase))


def load_signer(path: StrPath, *, passphrase: bytes | None = None) -> SigningKey:
    """The one Ed25519 key of a client's or the consortium's private file.

    Raises:
        KeyFileError: As in `load_client`.
    """
    keys = _load(Path(path), passphrase)
    if len(keys) != 1 or not isinstance(keys[0], Ed25519PrivateKey):
        raise KeyFileError(f"{path}: has {_shown(keys)}; a client's or the consortium's file has one Ed25519 key")
    return SigningKey(keys[0])


def load_server(path: StrPath, *, passphrase: bytes | None = None) -> ServerIdentity:
    """The server's identity from its private file; the suite shows in which keys there are.

    Raises:
        KeyFileError: As in `load_client`.
    """
    keys = _load(Path(path), passphrase)
    for kinds in ((Ed25519PrivateKey, X25519PrivateKey), (Ed25519PrivateKey, X25519PrivateKey, MLKEM768PrivateKey)):
        if len(keys) == len(kinds) and all(map(isinstance, keys, kinds)):
            return _server(keys)
    raise KeyFileError(
        f"{path}: has {_shown(keys)}; a server's file has an Ed25519 key, an X25519 key and, if hybrid, an ML-KEM-768 key"
    )


def load_public(path: StrPath) -> PublicKey:
    """The public half that `create_client` and the like wrote.

    Raises:
        KeyFileError: The file cannot be read, or is not exactly that; names the file and the field.
    """
    try:
        public: PublicKey = msgspec.convert(parse_json(read_file(Path(path), _MAX_FILE, kind=KeyFileError)), PublicKey)
    except (ValueError, ParameterError) as error:
        raise KeyFileError(f"{path}: not the public half of a key: {one_line(error)}") from None
    return public


def _server(keys: Sequence[PrivateKeyTypes]) -> ServerIdentity:
    seeds = {type_: key.private_bytes_raw() for key in keys for type_ in _RAW if isinstance(key, type_)}
    suite = SUITES["hybrid" if MLKEM768PrivateKey in seeds else "classical"]
    secret = suite.key_pair(seeds.get(MLKEM768PrivateKey), seeds[X25519PrivateKey])
    return ServerIdentity.from_signer(
        SigningKey(Ed25519PrivateKey.from_private_bytes(seeds[Ed25519PrivateKey])), secret
    )


def _shown(keys: Sequence[PrivateKeyTypes]) -> str:
    return ", ".join(type(key).__name__ for key in keys)


_BLOCK = re.compile(rb"\s*(-----BEGIN (ENCRYPTED |)PRIVATE KEY-----[A-Za-z0-9+/=\s]*-----END \2PRIVATE KEY-----)\s*")


def is_encrypted(path: StrPath) -> bool:
    """Whether a private file needs a passphrase.

    Raises:
        KeyFileError: It cannot be read or trusted, as in `load_client`, or is not such a file.
    """
    return any(encrypted for _, encrypted in _blocks(Path(path)))


def _blocks(path: Path) -> list[tuple[bytes, bool]]:
    """(PEM block, whether it is encrypted), for each key in a private file."""
    data = read_file(path, _MAX_FILE, kind=KeyFileError, private=True)
    blocks: list[tuple[bytes, bool]] = []
    end = 0
    while end < len(data):
        match = _BLOCK.match(data, end)
        if match is None:
            break
        blocks.append((match[1], bool(match[2])))
        end = match.end()
    if end < len(data) or not 1 <= len(blocks) <= 3:
        raise KeyFileError(f"{path}: not a file of one to three PKCS#8 private keys in PEM")
    return blocks


def _load(path: Path, passphrase: bytes | None) -> list[PrivateKeyTypes]:
    blocks = _blocks(path)
    if passphrase is None and any(encrypted for _, encrypted in blocks):
        raise KeyFileError(f"{path}: is encrypted, and no passphrase was given")
    if passphrase is not None and not all(encrypted for _, encrypted in blocks):
        raise KeyFileError(f"{path}: is not encrypted, but a passphrase was given")
    keys = []
    for block, encrypted in blocks:
        try:
            keys.append(load_pem_private_key(block, passphrase))
        except (ValueError, TypeError, UnsupportedAlgorithm):  # their texts are not ours to vouch for
            flaw = "wrong passphrase, or damaged" if encrypted else "damaged, or not a key that this installation knows"
            raise KeyFileError(f"{path}: a private key does not open: {flaw}") from None
    return keys


# PKCS#8. The library's own encryption has 2048 rounds of PBKDF2, too few for what a person can remember.


def _pem(key: _Private, passphrase: bytes | None) -> bytes:
    if passphrase is None:
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    der = _encrypted(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()), passphrase)
    lines = base64.b64encode(der)
    body = b"\n".join(lines[at : at + 64] for at in range(0, len(lines), 64))
    return b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n" + body + b"\n-----END ENCRYPTED PRIVATE KEY-----\n"


def _encrypted(der: bytes, passphrase: bytes) -> bytes:
    """EncryptedPrivateKeyInfo of [RFC5958] section 3 with PBES2 of [RFC8018] appendix A.4 and scrypt of [RFC7914] section 7."""
    salt, iv = draw(os.urandom, 16), draw(os.urandom, 16)
    pad = padding.PKCS7(128).padder()
    encryptor = Cipher(algorithms.AES(Scrypt(salt, 32, **_SCRYPT).derive(passphrase)), modes.CBC(iv)).encryptor()
    ciphertext = encryptor.update(pad.update(der) + pad.finalize()) + encryptor.finalize()
    cost = (_tlv(2, value.to_bytes(value.bit_length() // 8 + 1, "big")) for value in _SCRYPT.values())
    kdf = _tlv(_SEQUENCE, _OID_SCRYPT, _tlv(_SEQUENCE, _tlv(_OCTETS, salt), *cost))
    cipher = _tlv(_SEQUENCE, _OID_AES_256_CBC, _tlv(_OCTETS, iv))
    algorithm = _tlv(_SEQUENCE, _OID_PBES2, _tlv(_SEQUENCE, kdf, cipher))
    return _tlv(_SEQUENCE, algorithm, _tlv(_OCTETS, ciphertext))


def _tlv(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    size = len(body).to_bytes(2, "big").lstrip(b"\x00") or b"\x00"
    return bytes([tag]) + (size if len(body) < 128 else bytes([0x80 | len(size)]) + size) + body


_OCTETS, _SEQUENCE = 0x04, 0x30
_OID_PBES2 = bytes.fromhex("06092a864886f70d01050d")
_OID_SCRYPT = bytes.fromhex("06092b06010401da47040b")
_OID_AES_256_CBC = bytes.fromhex("060960864801650304012a")
_RAW = (Ed25519PrivateKey, X25519PrivateKey, MLKEM768PrivateKey)
