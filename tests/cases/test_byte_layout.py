"""The masked vector of a whole round, computed a second time from docs/protocol.md with nothing but SHA-256, AES and integers."""

import hmac
import itertools
import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from secagg import Block, ring
from secagg.crypto import kdf, prg
from secagg.testing import simulate_round

SCALAR, BYTES, SHORTS, WORDS = (
    Block("scalar", 1, 64, 10**15),
    Block("a", 9, 6, 5),
    Block("b", 17, 13, 300),
    Block("c", 33, 22, 10**5),
)
DTYPES = ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i2", ">i4", ">i8", ">u4", "<i4", "long", "intc", "longlong")


def hkdf(secret, label, items, salt):
    """HKDF-SHA256 [RFC5869], one block; the info is the framed label and the framed items."""
    name = b"secagg/1 " + label
    info = bytes([len(name)]) + name + b"".join(b"\x00" + item.to_bytes(8, "big") for item in items)
    return hmac.digest(hmac.digest(salt, secret, "sha256"), info + b"\x01", "sha256")


def stream(key, length, word, first=0):
    """Words [first, first + length) of a keystream: encrypted counters, cut into little-endian words of so many bytes."""
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - the counters are distinct
    start, end = first * word // 16, -(-(first + length) * word // 16)
    data = b"".join(encryptor.update(i.to_bytes(16, "big")) for i in range(start, end))
    places = range(first * word - start * 16, first * word - start * 16 + length * word, word)
    return [int.from_bytes(data[place : place + word], "little") for place in places]


def word_of(block):
    """Bytes of the word that holds a block's entries."""
    return next(size for size in (1, 2, 4, 8) if block.bits <= 8 * size)


def packed(values, block):
    """Lanes of consecutive entries, side by side in columns; the columns' words in rows."""
    width, word = 8 * word_of(block), word_of(block)
    columns = -(-len(values) // width)
    lanes = [(values + [0] * width)[lane * columns : (lane + 1) * columns] for lane in range(width)]
    lanes = [lane + [0] * (columns - len(lane)) for lane in lanes]
    sums = [sum(lanes[j][c] << (j * block.bits) for j in range(width)) for c in range(columns)]
    if block.bits == width:
        return b"".join(value.to_bytes(word, "little") for value in values)
    return b"".join(
        ((total >> (row * width)) % 2**width).to_bytes(word, "little") for row in range(block.bits) for total in sums
    )


def body_of(client, params, inputs, secrets, transcript):
    """What a client's mask frame must end with; `secrets` has (mask root, self seed) of everybody."""
    place = {i: position for position, i in enumerate(params.cohort)}
    streams = [(secrets[client][1], b"self stream", 1)]
    for peer in set(params.cohort) - {client}:
        low, high = sorted((client, peer), key=place.get)
        chooser, other = (low, high) if (place[low] + place[high]) % 2 else (high, low)
        seed = hkdf(secrets[chooser][0], b"pair seed", (chooser, other), transcript)
        streams.append((seed, b"pair stream", 1 if client == low else -1))
    parts = []
    for index, block in enumerate(params.blocks):
        values = [int(x) for x in inputs[client][block.name]]
        for seed, label, sign in streams:
            key = hkdf(seed, label, (index,), transcript)
            values = [
                x + sign * mask for x, mask in zip(values, stream(key, block.length, word_of(block)), strict=True)
            ]
        parts.append(packed([x % 2**block.bits for x in values], block))
    return b"".join(parts)


@pytest.mark.case("S13", "S23")
@pytest.mark.parametrize(
    "blocks", list(itertools.permutations((SCALAR, BYTES, SHORTS, WORDS))), ids=lambda b: "".join(x.name[0] for x in b)
)
def test_a_masked_vector_to_the_last_byte(params_of, inputs_of, by_hand, blocks):
    """Whatever order the blocks stand in, each client's upload is what the protocol's page gives, on any platform, byte by byte."""
    cohort = (3, 7, 2**63, 2**64 - 2)
    params = params_of(cohort, blocks)
    inputs = inputs_of(params)
    drawn = {i: [] for i in cohort}

    def recorded(client):
        def entropy(size):
            drawn[client].append(os.urandom(size))
            return drawn[client][-1]

        return entropy

    rd = by_hand(params, inputs, {i: {"entropy": recorded(i)} for i in cohort})
    rd.run(until="mask")
    secrets = {i: (drawn[i][0], drawn[i][2]) for i in cohort}
    frames = rd.ask()
    for client, frame in frames.items():
        body = body_of(client, params, inputs, secrets, rd.clients[client].transcript)
        assert frame[-len(body) :] == body


@pytest.mark.case("S13")
@pytest.mark.parametrize("first", range(0, len(DTYPES), 4))
def test_clients_of_unlike_platforms(params_of, first):
    """Clients whose arrays have other integers, or the other byte order, still cancel each other's masks."""
    values = {i: np.arange(9, dtype=dtype) % 6 for i, dtype in enumerate(DTYPES[first : first + 4])}
    params = params_of(len(values), (Block("update", 9, 13, 300), SCALAR))
    inputs = {i: {"update": x, "scalar": x[5:6]} for i, x in values.items()}
    outcome = simulate_round(params, inputs, drops={1: "mask"})
    assert outcome.sums["update"].dtype == outcome.sums["scalar"].dtype == np.int64
    assert outcome.sums["update"].tolist() == [3 * (i % 6) for i in range(9)]
    assert outcome.sums["scalar"].tolist() == [15]


@pytest.mark.case("S13")
@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (6, "81bf30df10f3050000000000"),
        (8, "01ff02fe03fd04fc05"),
        (13, "01e0ff0b00ff3f00fa3f01e0ff05000000000000000000000000"),
        (16, "0100ffff0200feff0300fdff0400fcff0500"),
        (32, "01000000ffffffff02000000feffffff03000000fdffffff04000000fcffffff05000000"),
    ],
)
def test_known_answers_of_packing(bits, expected):
    """1, -1, 2, -2, … have one packed form: these bytes, whether the array is little-endian or big-endian."""
    values = np.array([1, -1, 2, -2, 3, -3, 4, -4, 5])
    for dtype in ("<i8", ">i8", "<i4", ">i2"):
        assert bytes(ring.pack(ring.encode(values.astype(dtype), bits), bits)).hex() == expected


@pytest.mark.case("S23")
@pytest.mark.parametrize(
    ("label", "index", "expected"),
    [
        (kdf.Label.SELF_STREAM, 0, "8fb48f578588aa40"),
        (kdf.Label.SELF_STREAM, 1, "7fc53a3ad90378ae"),
        (kdf.Label.SELF_STREAM, 2, "946535d17e26a277"),
        (kdf.Label.SELF_STREAM, 255, "229761de9ea4d06c"),
        (kdf.Label.PAIR_STREAM, 0, "877c181c427c8878"),
        (kdf.Label.PAIR_STREAM, 1, "5aa9fface5b5d059"),
        (kdf.Label.PAIR_STREAM, 2, "e5c155709fc8e185"),
        (kdf.Label.PAIR_STREAM, 255, "f356eb47907606da"),
    ],
)
def test_known_answers_of_the_stream(label, index, expected):
    """Each block has a key and a stream of its own, so that no order of drawing can matter: these words, in every width.

    The answers are those of `hkdf` and `stream` above.
    """
    key = kdf.derive(b"\x01" * 32, label, index, salt=b"\x02" * 32)
    for size in (1, 2, 4, 8):
        words = prg.stream(key, 8 // size, f"u{size}")
        assert b"".join(int(word).to_bytes(size, "little") for word in words).hex() == expected


@pytest.mark.case("S13", "S22")
@pytest.mark.parametrize("word", [1, 2, 4, 8])
def test_a_long_stream_repeats_nothing(word):
    """Over chunk ends, and where two threads share the work, every word is the one of its place: a stream that began anew would cancel too."""
    key, length = bytes(range(32)), 10 * 2**20 // word + 3
    words = prg.stream(key, length, f"u{word}")
    chunk = prg.CHUNK_BYTES // word
    for place in {0, *range(chunk, length, chunk), length // 2, length // 2 + 8, length - 7}:
        first = max(place - 6, 0)
        assert words[first : first + 13].tolist() == stream(key, min(13, length - first), word, first)


@pytest.mark.case("S23")
@pytest.mark.parametrize("phase", ["share", "mask", "confirm", "unmask"])
@pytest.mark.parametrize("place", range(4))
def test_a_scalar_wherever_it_stands(params_of, inputs_of, total, phase, place):
    """Masks are drawn again when they are taken off: the scalar comes out right before, between and behind long blocks."""
    blocks = [BYTES, SHORTS, WORDS]
    blocks.insert(place, SCALAR)
    params = params_of(6, blocks, dropouts=2)
    inputs = inputs_of(params)
    outcome = simulate_round(params, inputs, drops={0: phase, 3: "unmask"})
    survivors = [i for i in range(6) if i or phase in ("confirm", "unmask")]
    assert {name: x.tolist() for name, x in outcome.sums.items()} == total(inputs, survivors)
