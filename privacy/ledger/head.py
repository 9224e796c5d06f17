"""Signed heads of a ledger: what shows that the tail was cut or the chain forked, which a chain alone cannot.

A head says in its signer's name that the entry of this number has this hash, and so that everything before it is as it
is. The writer of a ledger signs the last entry after every append; other parties sign what they saw and agreed to. All
heads of a ledger lie on its one chain; two that do not expose a fork.

One head is a small JSON object that a party can keep anywhere. The heads file beside a ledger holds one for each party
by name, and says whose is the writer's.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, Self

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from privacy.errors import LedgerError
from privacy.ledger.chain import ChainError, is_count, is_hash, is_text
from privacy.ledger.storage import read_small
from privacy.reading import unique_keys

WRITER: Final = "writer"  # of a heads file that names nobody

_HEAD_FORMAT: Final = "privacy-ledger-head/1"
_HEADS_FORMAT: Final = "privacy-ledger-heads/1"
_MAX_NAME: Final = 200  # characters


class ForeignSigner(Protocol):
    """A key that is elsewhere, in a token or another program: what `secagg.identity` calls a signer fits."""

    @property
    def public_key(self) -> bytes:
        """Raw Ed25519 public key, 32 bytes."""

    def sign(self, message: bytes, /) -> bytes:
        """The Ed25519 signature of the message, 64 bytes."""


Signer = Ed25519PrivateKey | ForeignSigner


@dataclass(frozen=True)
class Head:
    """One entry, as one party signed it; the signature was checked.

    Attributes:
        seq: Number of the entry.
        hash: Its hash, hex.
        key: Ed25519 public key, hex, 32 bytes.
        signature: Of `message`, hex, 64 bytes.
    """

    seq: int
    hash: str
    key: str
    signature: str

    def message(self) -> bytes:
        """Return the bytes that are signed."""
        return _message(self.seq, self.hash, self.key)

    def to_fields(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "format": _HEAD_FORMAT,
            "hash": self.hash,
            "key": self.key,
            "seq": self.seq,
            "signature": self.signature,
        }

    def to_json(self) -> bytes:
        """Return the canonical bytes of a file of one head."""
        return rfc8785.dumps(self.to_fields()) + b"\n"

    @classmethod
    def from_fields(cls, values: object) -> Self:
        """Read a JSON object, and check its signature under the key that it names.

        Raises:
            ValueError: it is not a head.
            InvalidSignature: the signature is another's, or of something else.
        """
        if not isinstance(values, dict) or values.keys() != {"format", "hash", "key", "seq", "signature"}:
            raise ValueError("not a head")
        head = cls(values["seq"], values["hash"], values["key"], values["signature"])
        if values["format"] != _HEAD_FORMAT or not (is_count(head.seq) and is_hash(head.hash) and is_hash(head.key)):
            raise ValueError("not a head")
        if not isinstance(head.signature, str) or not (is_hash(head.signature[:64]) and is_hash(head.signature[64:])):
            raise ValueError("not a head: its signature is not 64 bytes of hex")
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(head.key)).verify(
            bytes.fromhex(head.signature), head.message()
        )
        return head


@dataclass(frozen=True)
class Heads:
    """The heads file of a ledger.

    Attributes:
        heads: By party.
        writer: The party that signs after every append.
    """

    heads: Mapping[str, Head]
    writer: str = WRITER

    def to_json(self) -> bytes:
        """Return the canonical bytes of the file."""
        fields = {party: head.to_fields() for party, head in self.heads.items()}
        return rfc8785.dumps({"format": _HEADS_FORMAT, "heads": fields, "writer": self.writer}) + b"\n"

    def plus(self, party: str, head: Head) -> "Heads":
        """Replace or add one party's head."""
        return Heads({**self.heads, party: head}, self.writer)


def head_path(ledger: Path) -> Path:
    """Return where the heads of a ledger lie: ``ledger.jsonl`` has ``ledger.head.json``."""
    return ledger.with_name(f"{ledger.stem}.head.json")


def is_party(name: object) -> bool:
    """Whether this can name a party: a text of 1 to 200 characters that can be printed on one line."""
    return is_text(name) and 0 < len(str(name)) <= _MAX_NAME and str(name).isprintable()


def public_hex(signer: Signer) -> str:
    """A signer's Ed25519 public key, hex."""
    key = signer.public_key().public_bytes_raw() if isinstance(signer, Ed25519PrivateKey) else signer.public_key
    return key.hex()


def sign_head(seq: int, line_hash: str, signer: Signer) -> Head:
    """Sign the entry of this number and hash.

    Raises:
        LedgerError: the signer gave a signature that is not by its own key.
    """
    key = public_hex(signer)
    head = Head(seq, line_hash, key, signer.sign(_message(seq, line_hash, key)).hex())
    if not isinstance(signer, Ed25519PrivateKey):
        try:
            Head.from_fields(head.to_fields())
        except (ValueError, InvalidSignature):
            raise LedgerError(f"the signer of the head gave no signature by its key {key[:64]}") from None
    return head


def parse_heads(data: bytes, source: Path | str) -> Heads:
    """Read a heads file, or a file of one head, which is its writer's.

    Raises:
        ChainError: it is neither, is not canonical, two parties have one key, or a signature is wrong; the source is
            named.
    """
    try:
        values = json.loads(data, object_pairs_hook=unique_keys)
        heads = Heads({WRITER: Head.from_fields(values)}) if _is_single(values) else _from_fields(values, source)
        if rfc8785.dumps(values) not in (data, data.removesuffix(b"\n")):
            raise ValueError("not canonical JSON")  # noqa: TRY301 - one place names the file
    except ValueError as error:
        raise ChainError(f"{source}: {error}") from error
    except RecursionError:
        raise ChainError(f"{source}: not a head: it is nested too deeply") from None
    except InvalidSignature:
        raise ChainError(f"{source}: the signature is not by the key that it names") from None
    return heads


def read_heads(path: Path) -> Heads | None:
    """Read a heads file, or a file of one head.

    Returns:
        The heads, or None where there is no file.

    Raises:
        ChainError: as for `parse_heads`.
        LedgerError: it cannot be read.
    """
    data = read_small(path)
    return None if data is None else parse_heads(data, path)


def check_head(head: Head, hashes: list[str], *, ledger: Path, source: str, behind: int) -> None:
    """Check that a signed head lies on a chain.

    Args:
        head: The head.
        hashes: Hash of every whole line.
        ledger: For the message.
        source: Whose head it is and where it stands, for the message.
        behind: How many entries may follow the head's.

    Raises:
        ChainError: the tail was cut, the chain forks from what was signed, or too many entries follow.
    """
    if head.seq >= len(hashes):
        raise ChainError(
            f"{ledger}: the tail was cut: {source} signs {head.seq + 1} entries, and {len(hashes)} are left"
        )
    if hashes[head.seq] != head.hash:
        raise ChainError(f"{ledger}, line {head.seq + 1}: a fork: {source} signs another entry here")
    if len(hashes) - 1 - head.seq > behind:
        raise ChainError(
            f"{ledger}: {len(hashes)} entries, and {source} signs {head.seq + 1} of them: the rest is not signed"
        )


def _is_single(values: object) -> bool:
    return isinstance(values, dict) and values.get("format") == _HEAD_FORMAT


def _from_fields(values: object, source: Path | str) -> Heads:
    if not isinstance(values, dict) or values.get("format") != _HEADS_FORMAT:
        raise ValueError("not a head")
    heads, writer = values.get("heads"), values.get("writer")
    if values.keys() != {"format", "heads", "writer"} or not isinstance(heads, dict):
        raise ValueError("not a heads file")
    if not isinstance(writer, str) or writer not in heads:
        raise ValueError("not a heads file: its writer signs nothing")
    by_key: dict[str, str] = {}
    result = {}
    for party, fields in heads.items():
        if not is_party(party):
            raise ValueError(f"{ascii(party)[:80]} is no name of a party")
        try:
            head = result[party] = Head.from_fields(fields)
        except InvalidSignature:
            raise ChainError(f"{source}: the signature of {party} is not by the key that it names") from None
        other = by_key.setdefault(head.key, party)
        if other != party:
            raise ValueError(f"{other} and {party} sign with one key")
    return Heads(result, writer)


def _message(seq: int, line_hash: str, key: str) -> bytes:
    return rfc8785.dumps({"format": _HEAD_FORMAT, "hash": line_hash, "key": key, "seq": seq})
