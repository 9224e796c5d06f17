import copy
import json
import os
import traceback
from pathlib import Path

import numpy as np
import pytest

from secagg import errors
from secagg.crypto.sealing import SERVER_ID, SUITES, Purpose, box_info
from secagg.errors import InputError, SealError

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "crypto.json").read_text("utf-8"))
BINDING = bytes(range(32))
INFO = box_info(Purpose.SHARES, BINDING, 1, 2)


def key_of(suite, mlkem_seed=bytes(64), x25519_seed=bytes(range(32))):
    """The key pair of fixed seeds."""
    return SUITES[suite].key_pair(mlkem_seed if SUITES[suite].hybrid else None, x25519_seed)


def vector_parts(vector):
    """Suite, key, box and info of a recorded box."""
    suite = SUITES[vector["suite"]]
    mlkem_seed = bytes.fromhex(vector["mlkem_seed"]) if vector["mlkem_seed"] else None
    secret = suite.key_pair(mlkem_seed, bytes.fromhex(vector["x25519_seed"]))
    binding = bytes.fromhex(vector["binding"])
    info = box_info(Purpose(vector["purpose"]), binding, vector["sender"], vector["recipient"])
    return suite, secret, bytes.fromhex(vector["box"]), info


def test_recorded_boxes_open():
    """A box that was recorded from the library opens to its plaintext, with the recorded public key."""
    checked = 0
    for vector in VECTORS["box"]:
        suite, secret, box, info = vector_parts(vector)
        assert secret.public.hex() == vector["public"]
        assert suite.open(secret, box, info=info).hex() == vector["plaintext"]
        checked += 1
    assert checked == 2


def test_bad_boxes_raise_their_error():
    """Each recorded flaw (key, info, altered, cut, lengthened) keeps the box shut with its error."""
    checked = 0
    for vector in VECTORS["bad_box"]:
        suite, secret, box, info = vector_parts(vector)
        with pytest.raises(getattr(errors, vector["error"])):
            suite.open(secret, box, info=info)
        checked += 1
    assert checked == 20


def test_bad_public_keys_raise_their_error():
    """No box is made for a key that is no key, the all-zero X25519 key included."""
    checked = 0
    for vector in VECTORS["bad_public_key"]:
        with pytest.raises(getattr(errors, vector["error"])):
            SUITES[vector["suite"]].seal(bytes.fromhex(vector["public"]), b"", info=INFO)
        checked += 1
    assert checked == 9


def test_info_layout():
    """The info string is version, purpose, binding, sender, recipient in fixed width."""
    info = box_info(Purpose.MAC_KEY, BINDING, 2**63 + 5, SERVER_ID)
    assert info == b"secagg/1" + b"\x01" + BINDING + b"\x80" + bytes(6) + b"\x05" + b"\xff" * 8


@pytest.mark.parametrize(("sender", "recipient"), [(-1, 0), (0, 2**64), (2**64, 0)])
def test_info_refuses_ids_outside_u64(sender, recipient):
    """Ids without a u64 are refused, by name."""
    with pytest.raises(InputError, match=r"sender|recipient"):
        box_info(Purpose.SHARES, BINDING, sender, recipient)


def test_info_refuses_another_binding_length():
    """A binding is a digest."""
    with pytest.raises(InputError, match="32 bytes, not 31"):
        box_info(Purpose.SHARES, BINDING[:-1], 1, 2)


@pytest.mark.parametrize("suite", sorted(SUITES))
@pytest.mark.parametrize("length", [0, 1, 72, 5000])
def test_seal_and_open(suite, length):
    """A box gives its plaintext back and has the stated length; two boxes of one plaintext differ."""
    secret, plaintext = key_of(suite), os.urandom(length)
    boxes = [SUITES[suite].seal(secret.public, plaintext, info=INFO) for _ in range(2)]
    assert boxes[0] != boxes[1]
    assert {len(box) for box in boxes} == {length + SUITES[suite].box_overhead}
    assert [SUITES[suite].open(secret, box, info=INFO) for box in boxes] == [plaintext] * 2


@pytest.mark.parametrize("suite", sorted(SUITES))
def test_key_pairs_follow_their_seeds(suite):
    """The same seeds give the same public key of the stated length; another seed of either half gives another key."""
    keys = {key_of(suite).public, key_of(suite, x25519_seed=b"\x01" * 32).public}
    if SUITES[suite].hybrid:
        keys.add(key_of(suite, mlkem_seed=b"\x01" * 64).public)
    assert len(keys) == 2 + SUITES[suite].hybrid
    assert {len(key) for key in keys} == {SUITES[suite].public_key_length}
    assert key_of(suite).public in keys


def test_either_half_of_a_hybrid_key_alone_does_not_open():
    """A hybrid box needs both private halves."""
    box = SUITES["hybrid"].seal(key_of("hybrid").public, b"both", info=INFO)
    for secret in (key_of("hybrid", mlkem_seed=b"\x01" * 64), key_of("hybrid", x25519_seed=b"\x01" * 32)):
        with pytest.raises(SealError, match="does not open"):
            SUITES["hybrid"].open(secret, box, info=INFO)


@pytest.mark.parametrize(("suite", "other"), [("hybrid", "classical"), ("classical", "hybrid")])
def test_a_key_of_the_other_suite_does_not_open(suite, other):
    """Suites never mix."""
    box = SUITES[suite].seal(key_of(suite).public, bytes(2000), info=INFO)
    with pytest.raises(SealError, match=f"a {other} key does not open {suite}"):
        SUITES[suite].open(key_of(other), box, info=INFO)


@pytest.mark.parametrize(
    ("suite", "mlkem_seed", "x25519_seed"),
    [
        ("hybrid", None, bytes(32)),
        ("hybrid", bytes(63), bytes(32)),
        ("hybrid", bytes(64), bytes(31)),
        ("classical", None, bytes(33)),
        ("classical", bytes(64), bytes(32)),
    ],
)
def test_wrong_seeds_are_refused(suite, mlkem_seed, x25519_seed):
    """A seed that is missing, unused or of another length is refused."""
    with pytest.raises(InputError, match="seed"):
        SUITES[suite].key_pair(mlkem_seed, x25519_seed)


@pytest.mark.parametrize("suite", sorted(SUITES))
def test_secret_keys_never_print_or_copy(suite):
    """Neither repr, str nor an error shows a seed, and no copy or pickle is made."""
    seeds = [b"\xab" * 64, b"\xcd" * 32]
    secret = key_of(suite, *seeds)
    texts = [repr(secret), str(secret), f"{secret}", repr([secret])]
    try:
        SUITES[suite].open(secret, bytes(2000), info=INFO)
    except SealError:
        texts.append(traceback.format_exc())
    assert len(texts) == 5
    for text in texts:
        assert "abababab" not in text
        assert "cdcdcdcd" not in text
        assert r"\xab" not in text
        assert r"\xcd" not in text
    for take in (copy.copy, copy.deepcopy, lambda key: key.__reduce_ex__(4), lambda key: key.__getstate__()):
        with pytest.raises(TypeError, match="never pickled"):
            take(secret)
    assert not hasattr(secret, "__dict__")


LOW_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
]


@pytest.mark.parametrize("name", sorted(SUITES))
def test_a_key_is_refused_exactly_if_sealing_to_it_fails(name):
    """Points of low order, coefficients out of range, wrong lengths, random bytes and good keys: the check and a box agree."""
    suite = SUITES[name]
    rng = np.random.default_rng(4)
    good = suite.key_pair(rng.bytes(64) if suite.hybrid else None, rng.bytes(32)).public
    keys = [good, good[:-1], good + b"\0", b"", rng.bytes(len(good)), b"\xff" * len(good)]
    keys += [good[:-32] + point for point in LOW_ORDER] + [good[:-32] + rng.bytes(32) for _ in range(20)]
    keys += [good[:place] + b"\xff\xff" + good[place + 2 :] for place in range(0, len(good) - 32, 97)]

    def fails(attempt):
        try:
            attempt()
        except SealError:
            return True
        return False

    found = [fails(lambda key=key: suite.check_public_key(key)) for key in keys]
    assert found == [fails(lambda key=key: suite.seal(key, b"x", info=b"y")) for key in keys]
    assert sum(found) >= 10
    assert not found[0]
