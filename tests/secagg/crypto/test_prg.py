import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from secagg.crypto import prg
from secagg.crypto.kdf import Label, digest
from secagg.errors import InputError, SelfTestError

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "crypto.json").read_text("utf-8"))
DTYPES = [np.uint8, np.uint16, np.uint32, np.uint64]
KEYS = [bytes([value]) * 32 for value in range(5)]


def counter_bytes(key, length):
    """The keystream by another road: AES-ECB of big-endian counters."""
    counters = b"".join(count.to_bytes(16, "big") for count in range(-(-length // 16)))
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(counters)[:length]  # noqa: S305 - the block cipher itself


def lengths(dtype):
    """Lengths around every boundary of a chunk."""
    chunk = prg.CHUNK_BYTES // np.dtype(dtype).itemsize
    return [0, 1, 2, 3, 15, 17, chunk - 1, chunk, chunk + 1, 2 * chunk - 1, 2 * chunk, 2 * chunk + 1]


@pytest.fixture
def fresh_self_test():
    """The self-test not yet run in this process, before and after."""
    prg.self_test.cache_clear()
    yield
    prg.self_test.cache_clear()


def test_s22_s23_stream_vectors():
    """The stream layout is the recorded one for every word, at every boundary of a chunk."""
    checked = 0
    for vector in VECTORS["stream"]:
        words = prg.stream(bytes.fromhex(vector["key"]), vector["length"], vector["dtype"])
        assert words.dtype == vector["dtype"]
        assert words.shape == (vector["length"],)
        assert words[-3:].tolist() == vector["last_words"]
        little = words.astype(words.dtype.newbyteorder("<")).tobytes()
        assert hashlib.sha256(little).hexdigest() == vector["sha256_little_endian"]
        checked += 1
    assert checked == 32


def test_gmac_vectors():
    """Tags are those of GHASH bit by bit; the first is test case 13 of the GCM submission."""
    checked = 0
    for vector in VECTORS["gmac"]:
        assert prg.gmac(bytes.fromhex(vector["key"]), bytes.fromhex(vector["body"])).hex() == vector["tag"]
        checked += 1
    assert checked == 3
    assert VECTORS["gmac"][0]["tag"] == "530f8afbc74536b9a963b4f1c4cb738b"


def test_gmac_takes_any_buffer_and_sees_every_bit():
    """Bytes, bytearray and memoryview give one tag; a flipped bit or a byte more gives another."""
    body = bytearray(range(200))
    tag = prg.gmac(KEYS[1], bytes(body))
    assert prg.gmac(KEYS[1], body) == prg.gmac(KEYS[1], memoryview(body)) == tag
    assert prg.gmac(KEYS[1], bytes(body) + b"\x00") != tag
    assert prg.gmac(KEYS[2], body) != tag
    body[-1] ^= 1
    assert prg.gmac(KEYS[1], body) != tag


@pytest.mark.parametrize("dtype", DTYPES)
def test_s22_adding_is_exact_for_every_length(dtype):
    """Adding equals adding the counter-mode words in Python's way, wrap-around included; taking it away restores the vector."""
    top = np.iinfo(dtype).max
    for length in lengths(dtype):
        known = np.frombuffer(
            counter_bytes(KEYS[1], length * np.dtype(dtype).itemsize), np.dtype(dtype).newbyteorder("<")
        )
        acc = np.full(length, top - 1, dtype)
        prg.add_stream(acc, KEYS[1])
        assert np.array_equal(acc, known - dtype(2))
        prg.add_stream(acc, KEYS[1], subtract=True)
        assert np.array_equal(acc, np.full(length, top - 1, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_streams_at_once_equal_one_by_one(dtype):
    """One pass over the vector gives what separate passes give, whatever the order of the keys."""
    for length in lengths(dtype):
        one_by_one = np.zeros(length, dtype)
        signed = [(key, place % 2 == 1) for place, key in enumerate(KEYS)]
        for key, subtract in signed:
            prg.add_stream(one_by_one, key, subtract=subtract)
        at_once = np.zeros(length, dtype)
        prg.add_streams(at_once, reversed(signed))
        assert np.array_equal(at_once, one_by_one)
        prg.add_streams(at_once, ((key, not subtract) for key, subtract in signed))
        assert not at_once.any()


def test_a_longer_stream_begins_with_the_shorter_one():
    """The length asked for never changes a word."""
    long = prg.stream(KEYS[0], 2 * prg.CHUNK_BYTES // 4 + 5, np.uint32)
    for length in lengths(np.uint32):
        assert np.array_equal(prg.stream(KEYS[0], length, np.uint32), long[:length])


def test_s13_words_are_little_endian_bytes():
    """Wider words are the same bytes read little-endian, on every platform."""
    narrow = prg.stream(KEYS[0], 16, np.uint8).tolist()
    for size in (2, 4, 8):
        words = prg.stream(KEYS[0], 16 // size, f"u{size}").tolist()
        assert words == [int.from_bytes(bytes(narrow[i : i + size]), "little") for i in range(0, 16, size)]


def test_strided_vectors():
    """A vector that is not contiguous is masked in place, its gaps untouched."""
    store = np.zeros(2 * 100_000, np.uint32)
    prg.add_stream(store[::2], KEYS[3])
    assert np.array_equal(store[::2], prg.stream(KEYS[3], 100_000, np.uint32))
    assert not store[1::2].any()


def test_threads_do_not_share_buffers():
    """Eight vectors masked by four threads at once are each exact."""
    known = [prg.stream(key, 300_000, np.uint32) for key in KEYS]

    def masked(place):
        return np.array_equal(prg.stream(KEYS[place % 5], 300_000, np.uint32), known[place % 5])

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(masked, range(20))) == [True] * 20


@pytest.mark.parametrize("dtype", [np.int32, np.float64, np.bool_, ">u4", object])
def test_other_words_are_refused(dtype):
    """Signed, float and foreign-endian vectors have no stream."""
    with pytest.raises(InputError, match="unsigned words"):
        prg.stream(KEYS[0], 4, dtype)


def test_other_shapes_and_read_only_vectors_are_refused():
    """Matrices, scalars and read-only arrays are refused before anything changes."""
    frozen = np.zeros(4, np.uint32)
    frozen.flags.writeable = False
    for acc in (np.zeros((2, 2), np.uint32), np.zeros((), np.uint32), frozen):
        with pytest.raises(InputError, match="writable vector"):
            prg.add_stream(acc, KEYS[0])


@pytest.mark.parametrize("length", [0, 16, 24, 31, 33])
def test_other_key_lengths_are_refused(length):
    """A 16-byte key would silently be AES-128: it is refused, and the vector stays as it was."""
    acc = np.zeros(4, np.uint32)
    with pytest.raises(InputError, match="32 bytes"):
        prg.add_streams(acc, [(KEYS[0], False), (bytes(length), False)])
    assert not acc.any()
    with pytest.raises(InputError, match="32 bytes"):
        prg.gmac(bytes(length), b"")


class FlippedCipher:
    """The real cipher, with one bit of the whole keystream flipped."""

    position = 0

    def __init__(self, *args):
        self._cipher = Cipher(*args)

    def encryptor(self):
        """Begin the keystream."""
        self._encryptor, self._done = self._cipher.encryptor(), 0
        return self

    def update_into(self, data, out):
        """The next bytes, the flipped one among them if it is there."""
        self._encryptor.update_into(data, out)
        place, bit = divmod(self.position, 8)
        if self._done <= place < self._done + len(out):
            out[place - self._done] ^= 1 << bit
        self._done += len(out)


@pytest.mark.usefixtures("fresh_self_test")
@pytest.mark.parametrize(
    "position",
    [0, 7, 8, 8 * prg.CHUNK_BYTES - 1, 8 * prg.CHUNK_BYTES, 12 * prg.CHUNK_BYTES + 3, 16 * prg.CHUNK_BYTES + 23],
)
def test_self_test_sees_one_flipped_bit(monkeypatch, position):
    """A single wrong bit in the first, the second or the third chunk fails the self-test, again and again."""
    monkeypatch.setattr(FlippedCipher, "position", position)
    monkeypatch.setattr(prg, "Cipher", FlippedCipher)
    for _ in range(2):
        with pytest.raises(SelfTestError, match="AES-256-CTR"):
            prg.self_test()


@pytest.mark.usefixtures("fresh_self_test")
def test_self_test_sees_a_subtraction_that_adds(monkeypatch):
    """A wrong combination of streams fails it too, not only a wrong stream."""
    real = prg.add_streams
    monkeypatch.setattr(prg, "add_streams", lambda acc, keys: real(acc, [(key, False) for key, _ in keys]))
    with pytest.raises(SelfTestError, match="AES-256-CTR"):
        prg.self_test()


@pytest.mark.usefixtures("fresh_self_test")
def test_self_test_sees_a_wrong_tag(monkeypatch):
    """A wrong tag fails it."""
    monkeypatch.setattr(prg, "gmac", lambda *_: bytes(16))
    with pytest.raises(SelfTestError, match="GMAC"):
        prg.self_test()


@pytest.mark.usefixtures("fresh_self_test")
def test_self_test_passes_and_runs_once(monkeypatch):
    """The installed generator passes, and a second call does no work."""
    prg.self_test()
    monkeypatch.setattr(prg, "stream", None)
    prg.self_test()


def test_self_test_constants_come_from_another_road():
    """The known answers in the module are those of AES-ECB and Python integers, over more than two chunks."""
    streams = {}
    for size in (1, 2, 4, 8):
        count = prg._TEST_BYTES // size + 3
        assert count * size > 2 * prg.CHUNK_BYTES
        one, two = (counter_bytes(digest(Label.TEST_ENTROPY, place), count * size) for place in (0, 1))
        words = [
            (int.from_bytes(one[i : i + size], "little") - int.from_bytes(two[i : i + size], "little")) % 256**size
            for i in range(0, count * size, size)
        ]
        difference = b"".join(word.to_bytes(size, "little") for word in words)
        streams[size] = hashlib.sha256(one).hexdigest()
        assert prg._KNOWN_DIFFERENCE[size] == hashlib.sha256(difference).hexdigest()
    assert streams == prg._KNOWN_STREAM


def test_bodies_beyond_the_librarys_limit_are_refused():
    """A body of 2**31 bytes is refused by name (a broadcast view, so nothing is allocated)."""
    with pytest.raises(InputError, match="has no tag"):
        prg.gmac(KEYS[0], memoryview(np.broadcast_to(np.uint8(0), 2**31)))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.uint64])
def test_more_threads_give_the_same_stream(dtype, monkeypatch):
    """However a vector is cut for the cores, each part takes up the keystream where it stands."""
    keys = [(bytes([i]) * 32, i % 2 == 1) for i in range(12)]
    length = 5_000_003 // np.dtype(dtype).itemsize
    found = []
    for cores in (1, 2, 3, 8):
        monkeypatch.setattr(prg, "CORES", cores)
        words = np.zeros(length, dtype)
        assert len(prg._parts(words, len(keys))) == cores
        prg.add_streams(words, keys)
        found.append(words)
    assert all(np.array_equal(found[0], other) for other in found[1:])


@pytest.mark.filterwarnings("ignore:.*multi-?threaded")
def test_threads_are_made_anew_after_a_fork():
    """A child of a process whose threads have run masks the same, and does not wait for threads that it does not have."""
    keys = [(bytes([i]) * 32, False) for i in range(12)]
    before = np.zeros(1_200_000, np.uint32)
    prg.add_streams(before, keys)
    child = os.fork()
    if child == 0:
        after = np.zeros(1_200_000, np.uint32)
        prg.add_streams(after, keys)
        os._exit(0 if np.array_equal(before, after) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_more_streams_than_are_open_at_once_are_all_added(monkeypatch):
    """The result does not depend on how many ciphers are open at a time."""
    keys = [(bytes([i]) * 32, i % 3 == 0) for i in range(10)]
    found = []
    for count in (1, 3, 10, 64):
        monkeypatch.setattr(prg, "_OPEN_STREAMS", count)
        words = np.zeros(100_001, np.uint32)
        prg.add_streams(words, keys)
        found.append(words)
    assert all(np.array_equal(found[0], other) for other in found[1:])
