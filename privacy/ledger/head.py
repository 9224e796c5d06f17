"""The signed head of a ledger: what shows that the tail was cut, which a chain alone cannot.

It lies beside the ledger: the number and hash of the last entry, the writer's Ed25519 key and signature. Heads of one
ledger that several parties signed must all lie on one chain; two that do not expose a fork.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from privacy.errors import LedgerError
from privacy.ledger.chain import ChainError, is_count, is_hash
from privacy.plan import unique_keys

_HEAD_FORMAT: Final = "privacy-ledger-head/1"


@dataclass(frozen=True)
class Head:
    """The last entry, as its writer signed it.

    Attributes:
        seq: Number of the entry.
        hash: Its hash, hex.
        key: Ed25519 public key, hex, 32 bytes.
    """

    seq: int
    hash: str
    key: str

    def message(self) -> bytes:
        """Return the bytes that are signed."""
        return rfc8785.dumps({"format": _HEAD_FORMAT, "hash": self.hash, "key": self.key, "seq": self.seq})


def head_path(ledger: Path) -> Path:
    """Return where the head of a ledger lies: ``ledger.jsonl`` has ``ledger.head.json``."""
    return ledger.with_name(f"{ledger.stem}.head.json")


def sign_head(seq: int, line_hash: str, signer: Ed25519PrivateKey) -> bytes:
    """Return the bytes of a head file."""
    head = Head(seq, line_hash, signer.public_key().public_bytes_raw().hex())
    signature = signer.sign(head.message()).hex()
    return rfc8785.dumps(json.loads(head.message()) | {"signature": signature}) + b"\n"


def read_head(path: Path) -> Head | None:
    """Read a head and check its signature under the key that it names.

    Returns:
        The head, or None where there is no file.

    Raises:
        ChainError: it is not a head, or its signature is wrong; the file is named.
        LedgerError: it cannot be read.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LedgerError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        values = json.loads(text, object_pairs_hook=unique_keys)
        if values.keys() != {"format", "hash", "key", "seq", "signature"} or values["format"] != _HEAD_FORMAT:
            raise ValueError("not a head")  # noqa: TRY301 - one place names the file
        if not (is_count(values["seq"]) and is_hash(values["hash"]) and is_hash(values["key"])):
            raise ValueError("not a head")  # noqa: TRY301 - likewise
        head = Head(values["seq"], values["hash"], values["key"])
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(head.key))
        key.verify(bytes.fromhex(values["signature"]), head.message())
    except (ValueError, TypeError, AttributeError) as error:
        raise ChainError(f"{path}: {error}") from error
    except RecursionError:
        raise ChainError(f"{path}: not a head: it is nested too deeply") from None
    except InvalidSignature as error:
        raise ChainError(f"{path}: the signature is not by the key that it names") from error
    return head


def check_head(head: Head, hashes: list[str], *, ledger: Path, head_file: Path, behind: int) -> None:
    """Check that a signed head lies on a chain.

    Args:
        head: The head.
        hashes: Hash of every whole line.
        ledger: For the message.
        head_file: For the message.
        behind: How many entries may follow the head's.

    Raises:
        ChainError: the tail was cut, the chain forks from what was signed, or too many entries follow.
    """
    if head.seq >= len(hashes):
        raise ChainError(
            f"{ledger}: the tail was cut: {head_file} signs {head.seq + 1} entries, and {len(hashes)} are left"
        )
    if hashes[head.seq] != head.hash:
        raise ChainError(f"{ledger}, line {head.seq + 1}: a fork: {head_file} signs another entry here")
    if len(hashes) - 1 - head.seq > behind:
        raise ChainError(
            f"{ledger}: {len(hashes)} entries, and {head_file} signs {head.seq + 1} of them: the rest is not signed"
        )
