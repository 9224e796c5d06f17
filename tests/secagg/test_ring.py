import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secagg import errors, ring
from secagg.errors import DecodeError, InputError

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "crypto.json").read_text("utf-8"))
ALL_BITS = range(2, 65)


def words_of(values, bits):
    """Python integers as words."""
    return np.array(values, ring.word_dtype(bits))


def random_words(length, bits, seed=0):
    """Uniform entries of the ring."""
    words = np.frombuffer(np.random.default_rng(seed).bytes(8 * length), np.uint64).astype(ring.word_dtype(bits))
    ring.reduce_in_place(words, bits)
    return words


def test_pack_vectors():
    """The packed form equals one big integer for each column, in Python's way, and comes back."""
    checked = 0
    for vector in VECTORS["pack"]:
        bits, words, packed = vector["bits"], words_of(vector["words"], vector["bits"]), bytes.fromhex(vector["packed"])
        assert ring.pack(words, bits) == packed
        assert ring.packed_length(words.size, bits) == len(packed)
        back = ring.unpack(packed, words.size, bits)
        assert back.dtype == ring.word_dtype(bits)
        assert np.array_equal(back, words)
        checked += 1
    assert checked == 55


def test_bad_packed_vectors():
    """A packed form of another size, or with a padding bit set, raises its error."""
    checked = 0
    for vector in VECTORS["bad_packed"]:
        with pytest.raises(getattr(errors, vector["error"])):
            ring.unpack(bytes.fromhex(vector["packed"]), vector["length"], vector["bits"])
        checked += 1
    assert checked == 6


@pytest.mark.parametrize(
    ("bits", "size"), [(2, 1), (7, 1), (8, 1), (9, 2), (16, 2), (17, 4), (22, 4), (32, 4), (33, 8), (63, 8), (64, 8)]
)
def test_word_dtype(bits, size):
    """The word is the smallest that holds b bits."""
    assert ring.word_dtype(bits) == np.dtype(f"u{size}")


@pytest.mark.parametrize("bits", [-1, 0, 1, 65])
def test_other_bits_are_refused(bits):
    """A ring has 2 to 64 bits, in every function."""
    for call in (
        lambda: ring.word_dtype(bits),
        lambda: ring.packed_length(3, bits),
        lambda: ring.encode(np.zeros(1, np.int64), bits),
        lambda: ring.pack(np.zeros(1, np.uint8), bits),
        lambda: ring.unpack(b"", 0, bits),
        lambda: ring.decode(np.zeros(1, np.uint8), bits),
    ):
        with pytest.raises(InputError, match=f"2 to 64 bits, not {bits}"):
            call()


@pytest.mark.parametrize("bits", ALL_BITS)
def test_encode_and_decode_the_whole_range(bits):
    """The ends of the range, zero and both ones come back from every ring, as words below 2**b."""
    top = 2 ** (bits - 1)
    values = np.array(sorted({-top, 1 - top, -1, 0, 1, top - 1}), np.int64)
    words = ring.encode(values, bits)
    assert words.dtype == ring.word_dtype(bits)
    assert words.tolist() == [value % 2**bits for value in values.tolist()]
    decoded = ring.decode(words, bits)
    assert decoded.dtype == np.int64
    assert np.array_equal(decoded, values)


@pytest.mark.parametrize("bits", [2, 22, 31, 32, 33, 63])
def test_encode_refuses_one_too_many(bits):
    """The first value on either side that does not fit is refused, with the numbers."""
    for value in (2 ** (bits - 1), -(2 ** (bits - 1)) - 1):
        with pytest.raises(InputError, match=f"{value}.* do not fit in {bits} bits"):
            ring.encode(np.array([0, value], np.int64), bits)


def test_encode_looks_at_the_original_dtype():
    """A uint64 above the signed range is refused before any cast could wrap it."""
    with pytest.raises(InputError, match=f"to {2**64 - 1} do not fit"):
        ring.encode(np.array([2**64 - 1], np.uint64), 64)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64])
def test_s13_every_integer_dtype_encodes_alike(dtype):
    """The result depends on the values, not on the platform's default integer."""
    assert ring.encode(np.array([0, 1, 100], dtype), 22).tolist() == [0, 1, 100]


@pytest.mark.parametrize(
    "x",
    [
        np.zeros(2),
        np.array([np.nan]),
        np.zeros(2, bool),
        np.zeros((2, 1), np.int64),
        np.array(5),
        np.array(["1"]),
        np.array([1, None]),
        [1, 2],
    ],
)
def test_s8_s12_only_vectors_of_integers(x):
    """Floats, booleans, other shapes and lists never enter a ring."""
    with pytest.raises(InputError, match="vectors of integers"):
        ring.encode(x, 22)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_decode_ignores_what_is_above_b(bits):
    """A running sum whose words overflowed b bits decodes as its residue."""
    words = random_words(100, bits)
    dirty = words + ring.word_dtype(bits).type(2**bits % 2 ** (8 * words.itemsize))
    assert np.array_equal(ring.decode(dirty, bits), ring.decode(words, bits))


@pytest.mark.parametrize("bits", ALL_BITS)
def test_sums_are_exact_modulo_2_to_the_b(bits):
    """Adding and taking away in place is arithmetic of Python integers modulo 2**b."""
    for length in (1, 50, 63, 64, 65, 300):
        one, two = random_words(length, bits, 1), random_words(length, bits, 2)
        acc, packed = one.copy(), ring.pack(two, bits)
        ring.check_packed(packed, length, bits)
        ring.combine_packed(acc, packed, bits)
        ring.reduce_in_place(acc, bits)
        assert acc.tolist() == [(a + b) % 2**bits for a, b in zip(one.tolist(), two.tolist(), strict=True)]
        for _ in range(2):
            ring.combine_packed(acc, packed, bits, subtract=True)
        ring.reduce_in_place(acc, bits)
        assert acc.tolist() == [(a - b) % 2**bits for a, b in zip(one.tolist(), two.tolist(), strict=True)]


@pytest.mark.parametrize("bits", [20, 31, 32])
def test_long_vectors_are_combined_piece_by_piece(bits):
    """More columns than one piece holds, and a last piece that is short."""
    length = 32 * ring._BLOCK + 12_345
    two = random_words(length, bits, 2)
    acc = np.zeros(length, np.uint32)
    ring.combine_packed(acc, ring.pack(two, bits), bits)
    assert np.array_equal(acc, two)


def test_s8_nothing_is_broadcast():
    """Vectors of another length, shape or kind are refused, and so are packed forms of another length."""
    words = np.ones(50, np.uint32)
    for other in (np.ones(1, int), np.ones((1, 50), int), np.ones(50, float), np.int64(1)):
        with pytest.raises(InputError, match="integers of shape"):
            ring.encode_into(other, -1, 1, words)
    with pytest.raises(DecodeError, match="take 200 bytes, not 4"):
        ring.check_packed(bytes(4), 50, 32)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.uint64])
def test_encoding_in_place_checks_every_piece(dtype):
    """The bounds hold on the original values, wherever in a long vector one leaves them; within, it is `encode`."""
    x = np.random.default_rng(3).integers(0, 100, ring._BLOCK + 7).astype(dtype)
    words = np.empty(x.size, np.uint32)
    ring.encode_into(x, 0, 100, words)
    assert np.array_equal(words, ring.encode(x, 32))
    for place in (0, ring._BLOCK, x.size - 1):
        bad = x.copy()
        bad[place] = 101
        with pytest.raises(InputError, match=r"101 are outside 0\.\.100"):
            ring.encode_into(bad, 0, 100, words)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_s18_s22_packing_is_exact_at_every_length(bits):
    """Largest values alternate with zeros, then all largest, then random, for lengths around every multiple of the lanes."""
    lanes = 8 * ring.word_dtype(bits).itemsize
    for length in sorted({0, 1, 2, 3, lanes - 1, lanes, lanes + 1, 2 * lanes - 1, 2 * lanes + 1, 5 * lanes + 3}):
        top = np.full(length, 2**bits - 1, ring.word_dtype(bits))
        striped = top.copy()
        striped[::2] = 0
        for words in (top, striped, random_words(length, bits)):
            packed = ring.pack(words, bits)
            assert len(packed) == ring.packed_length(length, bits)
            assert np.array_equal(ring.unpack(packed, length, bits), words)


@pytest.mark.parametrize("bits", [5, 9, 22, 31, 33])
def test_s22_packing_is_exact_around_the_column_block(bits, monkeypatch):
    """With blocks of four columns every position of a block's edge is met; the bytes do not depend on the block."""
    lanes = 8 * ring.word_dtype(bits).itemsize
    for length in range(3 * lanes, 13 * lanes, 7):
        words = random_words(length, bits, length)
        whole = ring.pack(words, bits)
        with monkeypatch.context() as patch:
            patch.setattr(ring, "_BLOCK", 4)
            assert ring.pack(words, bits) == whole
            assert np.array_equal(ring.unpack(whole, length, bits), words)


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_s22_real_block_boundary(extra):
    """The same at the block that is really used."""
    length = 32 * ring._BLOCK + extra
    words = random_words(length, 22)
    assert np.array_equal(ring.unpack(ring.pack(words, 22), length, 22), words)


@given(bits=st.integers(2, 64), data=st.data())
def test_packing_round_trip(bits, data):
    """Any vector comes back, and its packed form is the only one: any other byte string gives another vector or an error."""
    values = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=140))
    words = words_of(values, bits)
    packed = ring.pack(words, bits)
    assert ring.unpack(packed, len(values), bits).tolist() == values
    if packed:
        place = data.draw(st.integers(0, 8 * len(packed) - 1))
        packed[place // 8] ^= 1 << place % 8
        try:
            assert ring.unpack(packed, len(values), bits).tolist() != values
        except DecodeError as error:
            assert "padding" in str(error)  # noqa: PT017 - either outcome is right


def test_upload_size_of_a_million_entries():
    """A million 22-bit entries take 2.75 MB, not four."""
    assert ring.packed_length(10**6, 22) == 2_750_000


def test_pack_refuses_words_above_b():
    """A word that would spill into its neighbour is refused, wherever it stands."""
    for place in (0, 17, 99):
        words = np.zeros(100, np.uint32)
        words[place] = 2**22
        with pytest.raises(InputError, match="more than 22 bits"):
            ring.pack(words, 22)


@pytest.mark.parametrize("words", [np.zeros(3, np.uint64), np.zeros(3, np.int32), np.zeros((3, 1), np.uint32)])
def test_words_of_another_ring_are_refused(words):
    """Another dtype or shape is refused by everything that takes words."""
    for call in (ring.pack, ring.decode, ring.reduce_in_place):
        with pytest.raises(InputError, match="22 bits need a vector of uint32"):
            call(words, 22)


@pytest.mark.parametrize("bits", [22, 32])
def test_packing_into_a_buffer(bits):
    """A caller's buffer, aligned or not, with old bytes in it, gets the same bytes, and the words come back into a caller's array."""
    words = random_words(101, bits)
    packed = ring.pack(words, bits)
    for offset in (0, 1, 3):
        frame = bytearray(b"\xee" * (len(packed) + 7))
        body = memoryview(frame)[offset : offset + len(packed)]
        assert ring.pack(words, bits, out=body) is body
        assert body == packed
        assert set(frame[:offset] + frame[offset + len(packed) :]) == {0xEE}
        target = np.full(101, 2**32 - 1, np.uint32)
        assert ring.unpack(body, 101, bits, out=target) is target
        assert np.array_equal(target, words)


def test_buffers_that_do_not_fit_are_refused():
    """A buffer of another size, a read-only one, or an array of another kind is refused."""
    words = random_words(33, 22)
    packed = bytes(ring.pack(words, 22))
    for out in (bytearray(len(packed) - 1), bytearray(len(packed) + 1), memoryview(packed)):
        with pytest.raises(InputError, match=f"writable buffer of {len(packed)} bytes"):
            ring.pack(words, 22, out=out)
    for target in (np.zeros(32, np.uint32), np.zeros(33, np.uint64), np.zeros((33, 1), np.uint32)):
        with pytest.raises(InputError, match="33 entries of 22 bits go into"):
            ring.unpack(packed, 33, 22, out=target)


@pytest.mark.parametrize("bits", [2, 8, 9, 20, 32, 33, 64])
@pytest.mark.parametrize("length", [0, 1, 2, 1000, ring._BLOCK, ring._BLOCK + 1, 2 * ring._BLOCK + 77])
def test_decoding_in_place_is_decoding(bits, length):
    """The integers come to stand where the words stood, the same as in fresh memory."""
    words = ring.room_to_decode(length, bits)
    assert not words.any()
    words[:] = random_words(length, bits, 3)
    expected = ring.decode(words.copy(), bits)
    found = ring.decode_in_place(words, bits)
    assert found.dtype == np.int64
    assert np.array_equal(found, expected)
    assert not length or np.shares_memory(found, words)


def test_decoding_in_place_needs_its_room():
    """Words of another origin would overwrite what lies behind them."""
    for words in (np.zeros(4, np.uint32), np.zeros(8, np.uint32)[:4], np.zeros(8, np.int64).view(np.uint32)[:4]):
        with pytest.raises(InputError, match="made with room for integers"):
            ring.decode_in_place(words, 32)
