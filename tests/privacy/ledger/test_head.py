import json
import shutil

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.errors import LedgerError
from privacy.ledger.chain import ChainError
from privacy.ledger.head import Heads, check_head, head_path, is_party, read_heads, sign_head

SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
HEAD = sign_head(4, "ab" * 32, SIGNER)
HEADS = Heads({"server": HEAD, "north": sign_head(2, "cd" * 32, OTHER)}, "server")


def test_head_survives_its_file(tmp_path):
    """A file of one signed head is read as its writer's; no file is no head."""
    file = head_path(tmp_path / "ledger.jsonl")
    assert file.name == "ledger.head.json"
    assert read_heads(file) is None
    file.write_bytes(HEAD.to_json())
    heads = read_heads(file)
    assert heads.writer == "writer"
    assert heads.heads == {"writer": HEAD}
    assert (HEAD.seq, HEAD.hash, HEAD.key) == (4, "ab" * 32, SIGNER.public_key().public_bytes_raw().hex())


def test_heads_of_several_parties_survive_their_file(tmp_path):
    """Each party's own number, hash, key and signature are kept under its name, and whose is the writer's."""
    file = tmp_path / "x.head.json"
    file.write_bytes(HEADS.to_json())
    assert read_heads(file) == HEADS
    assert rfc8785.dumps(json.loads(file.read_bytes())) + b"\n" == file.read_bytes()


def test_every_party_signs_the_same_message():
    """Parties sign the same number and hash, each naming its own key, so that no signature can pass as another's."""
    one, other = json.loads(HEAD.message()), json.loads(sign_head(4, "ab" * 32, OTHER).message())
    assert one.pop("key") != other.pop("key")
    assert one == other == {"format": "privacy-ledger-head/1", "hash": "ab" * 32, "seq": 4}


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 3},
        {"hash": "cd" * 32},
        {"key": "00" * 32},
        {"key": OTHER.public_key().public_bytes_raw().hex()},
        {"signature": "00" * 64},
        {"signature": HEAD.signature.upper()},
        {"signature": "zz"},
        {"signature": 1},
        {"signature": None},
        {"format": "privacy-ledger-head/2"},
        {"format": []},
        {"seq": -1},
        {"seq": 4.0},
        {"seq": True},
        {"seq": 10**30},
        {"hash": "x"},
        {"extra": 1},
    ],
)
def test_changed_head_is_refused(tmp_path, change):
    """Any change to number, hash, key, signature or format is found, alone and among several, and the file named."""
    file = tmp_path / "x.head.json"
    changed = HEAD.to_fields() | change
    for text in (changed, json.loads(HEADS.to_json()) | {"heads": {"server": changed}}):
        file.write_text(json.dumps(text, sort_keys=True, separators=(",", ":")))
        with pytest.raises(ChainError, match=r"x\.head\.json"):
            read_heads(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"writer": "south"}, "writer signs nothing"),
        ({"writer": ["server"]}, "writer signs nothing"),
        ({"writer": None}, "writer signs nothing"),
        ({"heads": []}, "not a heads file"),
        ({"heads": {}}, "writer signs nothing"),
        ({"heads": {"server": 1}}, "not a head"),
        ({"heads": {"server": HEAD.to_fields(), "": HEAD.to_fields()}}, "no name of a party"),
        ({"heads": {"server": HEAD.to_fields(), "\x1b[2J": HEAD.to_fields()}}, "no name of a party"),
        ({"heads": {"server": HEAD.to_fields(), "\ud800": HEAD.to_fields()}}, "no name of a party"),
        ({"heads": {"server": HEAD.to_fields(), "x" * 201: HEAD.to_fields()}}, "no name of a party"),
        ({"heads": {"server": HEAD.to_fields(), "north": HEAD.to_fields()}}, "north and server sign with one key"),
        ({"extra": 1}, "not a heads file"),
    ],
)
def test_changed_heads_file_is_refused(tmp_path, change, message):
    """A heads file has one form: a writer who signs, printable names, one key a party."""
    file = tmp_path / "x.head.json"
    file.write_text(json.dumps(json.loads(HEADS.to_json()) | change, sort_keys=True, separators=(",", ":")))
    with pytest.raises(ChainError, match=rf"x\.head\.json: .*{message}"):
        read_heads(file)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "1", "{}", "null", '{"seq":1,"seq":2}', "[" * 200_000, "\ud800", "NaN", "9" * 5000, '{"format":[]}'],
)
def test_file_that_is_no_head_is_refused(tmp_path, text):
    """Text of another kind is a changed head, not a crash."""
    file = tmp_path / "x.head.json"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ChainError, match=r"x\.head\.json"):
        read_heads(file)


def test_heads_are_canonical(tmp_path):
    """The same values in other bytes are refused, so that a copy is a copy."""
    file = tmp_path / "x.head.json"
    for heads in (HEAD, HEADS):
        file.write_text(json.dumps(json.loads(heads.to_json()), indent=1))
        with pytest.raises(ChainError, match="not canonical"):
            read_heads(file)


def test_what_is_no_plain_small_file_is_refused(tmp_path):
    """A folder, a device and a file of megabytes are errors that name the path, without reading on."""
    big = tmp_path / "big"
    with big.open("wb") as stream:
        stream.truncate(1 << 40)
    link = tmp_path / "link"
    link.symlink_to("/dev/zero")
    for path in (tmp_path, big, link):
        with pytest.raises(LedgerError, match=str(path)):
            read_heads(path)


def test_dangling_link_is_no_missing_head(tmp_path):
    """A link to nothing stands in the way of the head: it is refused, not taken for an unsigned ledger."""
    link = tmp_path / "x.head.json"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(LedgerError, match=r"x\.head\.json: cannot be read"):
        read_heads(link)
    link.unlink()
    shutil.copy(__file__, link)
    with pytest.raises(ChainError):
        read_heads(link)


def test_names_of_parties_can_be_printed():
    """A name is a text of 1 to 200 printable characters."""
    assert is_party("Klinikum Süd / 北")
    assert not any(map(is_party, ["", "x" * 201, "a\nb", "\x1b[2J", "\ud800", 1, None]))


def test_head_must_lie_on_the_chain(tmp_path):
    """A head beyond the end says cut, one of another entry says fork, and too many unsigned entries are refused."""
    head = sign_head(1, "bb" * 32, SIGNER)
    where = {"ledger": tmp_path / "x.jsonl", "source": "x.head.json (north)"}
    check_head(head, ["aa" * 32, "bb" * 32], **where, behind=0)
    check_head(head, ["aa" * 32, "bb" * 32, "cc" * 32], **where, behind=1)
    for hashes, message in [
        (["aa" * 32], "tail was cut"),
        (["aa" * 32, "cc" * 32], r"line 2: a fork: x\.head\.json \(north\)"),
        (["aa" * 32, "bb" * 32, "cc" * 32], "not signed"),
    ]:
        with pytest.raises(ChainError, match=message):
            check_head(head, hashes, **where, behind=0)


class Token:
    """A key that is elsewhere."""

    def __init__(self, key, lie=False):
        self.public_key = key.public_key().public_bytes_raw()
        self.sign = (lambda message: key.sign(message + b"x")) if lie else key.sign


def test_keys_may_be_elsewhere():
    """A signer that is no private key of this process signs the same head; one that signs something else is refused."""
    assert sign_head(4, "ab" * 32, Token(SIGNER)) == HEAD
    with pytest.raises(LedgerError, match="no signature by its key"):
        sign_head(4, "ab" * 32, Token(SIGNER, lie=True))
