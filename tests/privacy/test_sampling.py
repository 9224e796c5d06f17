import itertools
import math
from bisect import bisect_right
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy import sampling
from privacy.errors import SamplerError
from privacy.sampling import DiscreteGaussian

KEY = bytes(range(32))
LARGEST = DiscreteGaussian(1e8)


def entries(table):
    """The 128-bit cumulative entries of a table as Python integers."""
    return [(int(high) << 64) | int(low) for high, low in zip(table.high, table.low, strict=True)]


def masses(table):
    """The folded law of a table in units of 2**-128: mass of each magnitude."""
    bounds = [0, *entries(table), 1 << 128]
    return [after - before for before, after in itertools.pairwise(bounds)]


SMALL = DiscreteGaussian(9.5)._levels[0][1]
SMALL_ENTRIES = entries(SMALL)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(range(len(SMALL_ENTRIES))), st.integers(-2, 2)), min_size=1, max_size=20))
def test_ties_on_the_high_word_are_settled_by_the_low_word(places):
    """Uniforms around every entry, high words equal included, give the count that 128-bit integers give."""
    uniforms = [min(max(SMALL_ENTRIES[index] + offset, 0), (1 << 128) - 1) for index, offset in places]
    words = np.array([uniform >> 64 for uniform in uniforms], dtype=np.uint64)
    asked = []

    def low_word(index):
        asked.append(index)
        return uniforms[index] & ((1 << 64) - 1)

    found = SMALL.magnitudes(words, low_word)
    assert found.tolist() == [bisect_right(SMALL_ENTRIES, uniform) for uniform in uniforms]
    assert asked


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=50))
def test_the_guide_table_gives_the_count_of_a_plain_search(highs):
    """Any high words: the guide, the search and plain integers agree."""
    table = LARGEST._levels[0][1]
    words = np.array(highs, dtype=np.uint64)
    last = (1 << 64) - 1  # the largest low word passes every entry that ties
    expected = np.searchsorted(table.high, words, side="right")
    near = table.high[np.arange(0, len(table.high), 5000)] + np.uint64(1)  # next to entries: cells that are not settled
    assert np.array_equal(table.magnitudes(words, lambda _: last), expected)
    assert np.array_equal(table.magnitudes(near, lambda _: last), np.searchsorted(table.high, near, side="right"))


def reference_sample(sigma, key, positions):
    """The sampler as its docstring states it, in Python integers, one counter block at a time."""
    cipher = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - builds counter mode by hand

    def stream(lane, offset, length):
        block, skip = divmod(offset, 16)
        data = b"".join(cipher.update(lane.to_bytes(8, "big") + (block + i).to_bytes(8, "big")) for i in range(2))
        return data[skip : skip + length]

    total = dict.fromkeys(positions, 0)
    for level, (scale, table) in enumerate(DiscreteGaussian(sigma)._levels):
        cumulative = entries(table)
        for position in positions:
            high = int.from_bytes(stream(3 * level, 8 * position, 8), "little")
            low = int.from_bytes(stream(3 * level + 1, 8 * position, 8), "little")
            sign = stream(3 * level + 2, position // 8, 1)[0] >> (position % 8) & 1
            magnitude = bisect_right(cumulative, high << 64 | low)
            total[position] += scale * (-magnitude if sign else magnitude)
    return [total[position] for position in positions]


@pytest.mark.parametrize("sigma", [8.0, 1e3, 1e6])
def test_samples_are_the_documented_function_of_sigma_key_and_position(sigma):
    """Each sample equals a plain-integer reimplementation, also across a chunk boundary; shorter draws are prefixes."""
    chunk = sampling._CHUNK
    positions = [0, 1, 2, 63, 1000, chunk - 1, chunk, chunk + 1, 2 * chunk + 7]
    drawn = DiscreteGaussian(sigma).sample(KEY, 2 * chunk + 8)
    assert drawn[positions].tolist() == reference_sample(sigma, KEY, positions)
    for length in (0, 1, 7, chunk, chunk + 1):
        assert np.array_equal(DiscreteGaussian(sigma).sample(KEY, length), drawn[:length])


def test_known_answers_pin_the_stream_layout():
    """Values recorded once: a change of the lanes, the byte order or the sign convention shows on every platform."""
    assert DiscreteGaussian(10.0).sample(KEY, 8).tolist() == [-13, 7, 16, -3, -11, -8, 2, -4]
    assert DiscreteGaussian(1e6).sample(KEY, 4).tolist() == [-1326060, 676392, 1628244, -301878]


def test_the_low_word_is_read_at_its_own_place_in_its_own_lane():
    """The low word of position i is word i of its lane, and no lane repeats another's words (P9)."""
    lanes = [sampling._lane(KEY, lane).update(bytes(4096)) for lane in range(6)]
    for index in (0, 1, 2, 7, 301):
        assert sampling._low_word(KEY, 1, index) == int.from_bytes(lanes[1][8 * index :][:8], "little")
    blocks = [lane[i : i + 16] for lane in lanes for i in range(0, len(lane), 16)]
    assert len(set(blocks)) == len(blocks)


def test_a_tie_in_a_later_chunk_reads_the_low_word_of_its_own_position():
    """A table whose entries are the stream's own uniforms ties at chosen positions; one unit more is not reached."""
    positions = [5, sampling._CHUNK + 3, 2 * sampling._CHUNK]
    highs = [int.from_bytes(sampling._lane(KEY, 0).update(bytes(8 * i + 8))[-8:], "little") for i in positions]
    for surplus in (0, 1):
        cumulative = sorted(
            (high << 64 | sampling._low_word(KEY, 1, i)) + surplus for high, i in zip(highs, positions, strict=True)
        )
        table = sampling._Table(
            np.array([entry >> 64 for entry in cumulative], dtype=np.uint64),
            np.array([entry & ((1 << 64) - 1) for entry in cumulative], dtype=np.uint64),
            np.full(2, -1, dtype=np.int32),
            np.uint64(63),
        )
        out = np.zeros(2 * sampling._CHUNK + 1, dtype=np.int64)
        sampling._add_level(out, 1, table, KEY, 0)
        rank = [sorted(highs).index(high) for high in highs]
        assert np.abs(out[positions]).tolist() == [place + 1 - surplus for place in rank]


def test_samples_are_clamped_to_thirteen_sigma(monkeypatch):
    """A keystream of ones, the largest possible magnitudes at both levels, stays within floor(13 sigma)."""

    class Ones:
        def update(self, data):
            return b"\xff" * len(data)

        def update_into(self, data, out):
            out[: len(data)] = self.update(data)

    sampler = DiscreteGaussian(5000.5)
    assert sum(scale * len(table.high) for scale, table in sampler._levels) > sampler.tail
    monkeypatch.setattr(sampling, "_lane", lambda *_: Ones())
    assert sampler.tail == 65006
    assert sampler.sample(KEY, 3).tolist() == [-65006] * 3


@pytest.mark.parametrize("sigma", [0.0, -8.0, 7.999, 1.0001e8, math.inf, math.nan])
def test_a_sigma_outside_the_proved_range_is_refused(sigma):
    """No table is built for a sigma below 8, above 1e8 or not finite, and the error has the number."""
    with pytest.raises(SamplerError, match=f"sigma = {sigma}"):
        DiscreteGaussian(sigma)


def test_a_short_key_and_a_negative_length_are_refused():
    """A key that is not 32 bytes or a negative length is an error, not a weaker sample."""
    with pytest.raises(SamplerError, match="32 bytes, not 16"):
        DiscreteGaussian(8.0).sample(bytes(16), 1)
    with pytest.raises(SamplerError, match="-1 samples"):
        DiscreteGaussian(8.0).sample(KEY, -1)


def test_tables_are_kept_for_each_real_sigma_and_never_shared_between_two():
    """The same sigma finds its tables again; a neighbouring sigma has its own (P11)."""
    assert DiscreteGaussian(10.4)._levels is DiscreteGaussian(10.4)._levels
    assert masses(DiscreteGaussian(10.4)._levels[0][1]) != masses(DiscreteGaussian(10.0)._levels[0][1])
    assert repr(DiscreteGaussian(10.4)) == "DiscreteGaussian(sigma=10.4)"


def test_coins_are_keystream_words_below_the_rate():
    """Coin i falls where word i of the AES-256-CTR stream is below rate * 2**64, by plain integers."""
    stream = Cipher(algorithms.AES(KEY), modes.CTR(bytes(16))).encryptor().update(bytes(8 * 4000))
    words = [int.from_bytes(stream[at : at + 8], "little") for at in range(0, len(stream), 8)]
    for rate in (0.5, 0.1, 1 / 3, 2.0**-9, math.nextafter(1.0, 0.0), 1.0):
        expected = [word < Fraction(rate) * 2**64 for word in words]
        assert sampling.coins(KEY, rate, 4000).tolist() == expected


@pytest.mark.parametrize("rate", [0.5, 0.1, 1e-3, 2.0**-32 * 1.7, 1.0])
def test_coins_never_fall_more_often_than_their_rate(monkeypatch, rate):
    """At the threshold: the last word that falls and the first that does not; so many of 2**64 are at most the rate."""
    threshold = math.floor(Fraction(rate) * 2**64)
    words = np.array([0, threshold - 1, min(threshold, 2**64 - 1)], dtype=np.uint64)
    monkeypatch.setattr(sampling, "_lane", lambda *_: SimpleNamespace(update=lambda _: words.tobytes()))
    fallen = sampling.coins(KEY, rate, 3)
    assert fallen.tolist() == [True, True, rate == 1]
    assert 0 <= Fraction(rate) - Fraction(threshold, 2**64) < Fraction(1, 2**64)


def off(flips, rate, factor):
    """How many standard deviations the number of fallen coins is from a rate that is off by a factor."""
    wrong = rate * factor
    return (flips.sum() - len(flips) * wrong) / math.sqrt(len(flips) * wrong * (1 - wrong))


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.7])
def test_the_law_of_coins(rate):
    """Two million coins have the rate and not one 3 % off to either side; neighbours are independent, and a wrong coin is seen."""
    flips = sampling.coins(KEY, rate, 2_000_000)

    def pairs(coins):
        return off(coins[1:] & coins[:-1], rate, rate), off(coins[64:] & coins[:-64], rate, rate)

    assert abs(off(flips, rate, 1.0)) < 4
    assert off(flips, rate, 1.03) < -4
    assert off(flips, rate, 0.97) > 4
    assert all(abs(each) < 5 for each in pairs(flips))
    sticky = np.repeat(flips[: len(flips) // 2], 2)  # the rate is right, and a coin tells its neighbour's
    assert abs(off(sticky, rate, 1.0)) < 6
    assert pairs(sticky)[0] > 20


@pytest.mark.parametrize(("rate", "count"), [(0.0, 3), (-0.1, 3), (1.1, 3), (math.nan, 3), (0.1, -1)])
def test_coins_that_cannot_be_flipped_are_refused(rate, count):
    """A rate outside (0, 1], NaN, or a negative count."""
    with pytest.raises(SamplerError, match="coins of rate"):
        sampling.coins(KEY, rate, count)
