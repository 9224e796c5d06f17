import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.ledger.chain import ChainError
from privacy.ledger.head import check_head, head_path, read_head, sign_head

SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def test_head_survives_its_file(tmp_path):
    """A signed head is read back with the key that signed it; no file is no head."""
    file = head_path(tmp_path / "ledger.jsonl")
    assert file.name == "ledger.head.json"
    assert read_head(file) is None
    file.write_bytes(sign_head(4, "ab" * 32, SIGNER))
    head = read_head(file)
    assert (head.seq, head.hash, head.key) == (4, "ab" * 32, SIGNER.public_key().public_bytes_raw().hex())


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 3},
        {"hash": "cd" * 32},
        {"key": "00" * 32},
        {"signature": "00" * 64},
        {"signature": "zz"},
        {"signature": 1},
        {"format": "privacy-ledger-head/2"},
        {"seq": -1},
        {"hash": "x"},
        {"extra": 1},
    ],
)
def test_changed_head_is_refused(tmp_path, change):
    """Any change to number, hash, key, signature or format is found, and the file named."""
    file = tmp_path / "x.head.json"
    file.write_text(json.dumps(json.loads(sign_head(4, "ab" * 32, SIGNER)) | change))
    with pytest.raises(ChainError, match=r"x\.head\.json"):
        read_head(file)


@pytest.mark.parametrize("text", ["", "[]", "1", "{}", '{"seq":1,"seq":2}', "[" * 200_000])
def test_file_that_is_no_head_is_refused(tmp_path, text):
    """Text of another kind is a changed head, not a crash."""
    file = tmp_path / "x.head.json"
    file.write_text(text)
    with pytest.raises(ChainError, match=r"x\.head\.json"):
        read_head(file)


def test_head_must_lie_on_the_chain(tmp_path):
    """A head beyond the end says cut, one of another entry says fork, and too many unsigned entries are refused."""
    file = tmp_path / "x.head.json"
    file.write_bytes(sign_head(1, "bb" * 32, SIGNER))
    head = read_head(file)
    where = {"ledger": tmp_path / "x.jsonl", "head_file": file}
    check_head(head, ["aa" * 32, "bb" * 32], **where, behind=0)
    check_head(head, ["aa" * 32, "bb" * 32, "cc" * 32], **where, behind=1)
    for hashes, message in [
        (["aa" * 32], "tail was cut"),
        (["aa" * 32, "cc" * 32], "line 2: a fork"),
        (["aa" * 32, "bb" * 32, "cc" * 32], "not signed"),
    ]:
        with pytest.raises(ChainError, match=message):
            check_head(head, hashes, **where, behind=0)
