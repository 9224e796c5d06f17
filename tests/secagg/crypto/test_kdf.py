import importlib.util
import json
from pathlib import Path

import pytest

from secagg.crypto import kdf
from secagg.crypto.kdf import Label
from secagg.errors import InputError

FOLDER = Path(__file__).parents[2] / "vectors"
VECTORS = json.loads((FOLDER / "crypto.json").read_text("utf-8"))
KEY = bytes(range(32))
SALT = bytes(32)


def items_of(listed):
    """The context of a vector: integers as they are, bytes from hex."""
    return [item if isinstance(item, int) else bytes.fromhex(item["hex"]) for item in listed]


def test_vector_file_is_what_its_generator_gives():
    """The committed vectors are exactly those of the independent generator, boxes as recorded."""
    spec = importlib.util.spec_from_file_location("generate_crypto", FOLDER / "generate_crypto.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert generator.build(VECTORS["box"]) == VECTORS
    assert generator.rendered(VECTORS) == (FOLDER / "crypto.json").read_text("utf-8")


def test_every_vector_is_counted():
    """A section added without a test, or an entry lost, changes these numbers."""
    found = {name: len(entries) for name, entries in VECTORS.items() if name != "provenance"}
    assert found == {
        "derive": 4,
        "digest": 4,
        "stream": 32,
        "gmac": 3,
        "share": 2,
        "pack": 55,
        "box": 2,
        "bad_box": 20,
        "bad_public_key": 9,
        "signature": 2,
        "bad_signature": 12,
        "bad_share": 3,
        "bad_shares": 7,
        "bad_packed": 6,
    }


def test_derive_vectors():
    """HKDF gives the known answers of RFC 5869 taken by hand."""
    checked = 0
    for vector in VECTORS["derive"]:
        output = bytes.fromhex(vector["output"])
        context, salt = items_of(vector["context"]), bytes.fromhex(vector["salt"])
        secret = bytes.fromhex(vector["secret"])
        assert kdf.derive(secret, Label[vector["label"]], *context, salt=salt, length=len(output)) == output
        checked += 1
    assert checked == 4


def test_digest_vectors():
    """Digests are SHA-256 of the encoding that the module describes."""
    checked = 0
    for vector in VECTORS["digest"]:
        assert kdf.digest(Label[vector["label"]], *items_of(vector["items"])).hex() == vector["output"]
        checked += 1
    assert checked == 4


def test_labels_differ_and_carry_the_version():
    """No two purposes share a label, and each begins with the protocol version."""
    assert len({label.value for label in Label}) == len(Label.__members__)
    assert all(label.value.startswith(b"secagg/1 ") for label in Label)


def test_framed_labels_are_prefix_free():
    """No framed label is the beginning of another one, so label ‖ message is read in one way."""
    frames = [kdf.framed(label) for label in Label]
    assert not [(a, b) for a in frames for b in frames if a != b and b.startswith(a)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((b"ab", b"c"), (b"a", b"bc")),
        ((b"ab",), (b"a", b"b")),
        ((b"",), ()),
        ((b"", b"a"), (b"a", b"")),
        ((1,), ((1).to_bytes(8, "big"),)),
        ((1, 2), (2, 1)),
        ((0,), (b"",)),
        ((b"\x00" * 9,), (0, b"")),
    ],
)
def test_encoding_is_one_to_one(one, other):
    """Lists of items that a plain concatenation would confuse give different keys and digests."""
    assert kdf.digest(Label.CONTEXT, *one) != kdf.digest(Label.CONTEXT, *other)
    assert kdf.derive(KEY, Label.CONTEXT, *one, salt=SALT) != kdf.derive(KEY, Label.CONTEXT, *other, salt=SALT)


def test_derive_depends_on_every_argument():
    """Another secret, label, context or salt gives another key."""
    keys = {
        kdf.derive(KEY, Label.PAIR_SEED, 1, salt=SALT),
        kdf.derive(KEY[::-1], Label.PAIR_SEED, 1, salt=SALT),
        kdf.derive(KEY, Label.PAIR_STREAM, 1, salt=SALT),
        kdf.derive(KEY, Label.PAIR_SEED, 2, salt=SALT),
        kdf.derive(KEY, Label.PAIR_SEED, 1, salt=KEY),
    }
    assert len(keys) == 5


def test_s14_ids_over_half_of_u64():
    """Every u64 is a valid context, also above 2**63."""
    assert kdf.digest(Label.ROSTER, 2**63) != kdf.digest(Label.ROSTER, 2**64 - 1)


@pytest.mark.parametrize("value", [-1, 2**64])
def test_integers_outside_u64_are_refused(value):
    """An integer that has no u64 is refused, with its label."""
    with pytest.raises(InputError, match="PAIR_SEED"):
        kdf.derive(KEY, Label.PAIR_SEED, value, salt=SALT)
    with pytest.raises(InputError, match="ROSTER"):
        kdf.digest(Label.ROSTER, value)


@pytest.mark.parametrize("length", [0, -1, 8161])
def test_lengths_beyond_hkdf_are_refused(length):
    """HKDF-SHA256 can't give these lengths."""
    with pytest.raises(InputError, match="8160"):
        kdf.derive(KEY, Label.PAIR_SEED, salt=SALT, length=length)


@pytest.mark.parametrize("source", [lambda n: bytes(n - 1), lambda n: bytes(n + 1), lambda _: b"", lambda n: "a" * n])
def test_draw_refuses_a_source_that_runs_short(source):
    """Entropy of another length, or that is not bytes, is refused."""
    with pytest.raises(InputError, match="32 bytes"):
        kdf.draw(source, 32)


def test_draw_gives_what_the_source_gives():
    """Entropy passes unchanged."""
    assert kdf.draw(lambda n: b"\x07" * n, 5) == b"\x07" * 5
