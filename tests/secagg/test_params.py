import dataclasses
import hashlib
import itertools
import warnings

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import Block, RoundParams, graph
from secagg.crypto.kdf import Label, framed
from secagg.errors import DecodeError, ParameterError, SecaggError
from secagg.params import SlackWarning
from secagg.protocols.pairwise import mask

BLOCK = Block("x", 3, 32, 1000)


def params(n=4, **fields):
    """Parameters of n clients and one block."""
    return RoundParams(**({"cohort": range(n), "blocks": (BLOCK,), "session": bytes(16)} | fields))


@pytest.mark.parametrize(
    ("n", "c", "expected"),
    [
        (3, 0, (2, 2, 1, 2)),
        (4, 0, (3, 3, 1, 3)),
        (4, 1, (3, 3, 1, 3)),
        (5, 1, (4, 4, 1, 4)),
        (10, 2, (7, 7, 3, 7)),
        (100, 5, (53, 53, 47, 53)),
        (200, 66, (134, 134, 66, 134)),
    ],
)
def test_defaults_are_the_smallest_sound_numbers(n, c, expected):
    """The threshold, the quorum, the dropouts and the minimum of survivors (t, q, r, m) that follow from n and c."""
    p = params(n, colluders=c)
    assert (p.threshold, p.quorum(n), p.dropouts, p.min_survivors) == expected
    assert p.degree == n - 1


def test_the_example_of_the_design():
    """The numbers n = 4, c = 1, r = 1 give t = 3 and q = 3."""
    p = params(4, colluders=1, dropouts=1)
    assert (p.threshold, p.quorum(4)) == (3, 3)


def test_two_quorums_share_an_honest_client():
    """Two sets of q of n1 clients meet in more than c of them, and one signature fewer would not do."""
    for n, c in itertools.product(range(3, 60), range(20)):
        try:
            p = params(n, colluders=c)
        except ParameterError:
            continue
        for n1 in range(p.min_survivors, n + 1):
            q = p.quorum(n1)
            assert 2 * q - n1 > c
            assert 2 * (q - 1) - n1 <= c


def test_every_accepted_combination_is_sound():
    """Over all small numbers: whatever the constructor accepts obeys every rule, and whatever it refuses breaks one."""
    accepted = 0
    for n, c, r, t in itertools.product(range(2, 8), range(4), range(4), range(8)):
        sound = (
            n >= 3
            and c <= n - 1
            and 2 <= t <= n - 1
            and t > c
            and 2 * t > n + c
            and n - r >= t
            and n - r >= (n + c) // 2 + 1
        )
        try:
            params(n, colluders=c, dropouts=r, threshold=t)
        except ParameterError:
            assert not sound, (n, c, r, t)
        else:
            assert sound, (n, c, r, t)
            accepted += 1
    assert accepted > 40


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n": 2}, "cohort of 2"),
        ({"n": 0}, "cohort of 0"),
        ({"threshold": 1}, r"threshold t = 1 must be in 2\.\.3"),
        ({"threshold": 4}, r"threshold t = 4 must be in 2\.\.3"),
        ({"n": 6, "threshold": 2, "colluders": 2, "adversary": "curious"}, "t = 2 must exceed the colluders c = 2"),
        ({"n": 10, "threshold": 6, "colluders": 2}, r"2t > n \+ c = 12 is needed, t >= 7"),
        ({"dropouts": 2}, r"n - r = 2 clients cannot reach threshold t = 3 and quorum q = 3"),
        ({"n": 9, "threshold": 5, "dropouts": 5}, "n - r = 4"),
        ({"n": 10, "threshold": 4, "dropouts": 5, "adversary": "curious"}, "quorum q = 6"),
        ({"colluders": 4}, r"colluders = 4 is outside 0\.\.3"),
        ({"colluders": -1}, "colluders = -1"),
        ({"min_survivors": 2}, r"min_survivors = 2 must be in 3\.\.4"),
        ({"min_survivors": 5}, r"min_survivors = 5 must be in 3\.\.4"),
        ({"n": 10, "threshold": 9, "dropouts": 3}, "n - r = 7 clients cannot reach threshold t = 9 and quorum q = 6"),
        ({"n": 10, "threshold": 9, "dropouts": 1, "min_survivors": 8}, r"min_survivors = 8 must be in 9\.\.10"),
        ({"degree": 2}, "degree and threshold together, or neither: got degree 2 and threshold None"),
        ({"n": 201, "threshold": 150}, "degree and threshold together, or neither: got degree None and threshold 150"),
        ({"n": 201, "degree": 200}, "n = 201: the complete graph is for up to 200 clients"),
        ({"n": 20_001}, "a cohort of 20001 is more than the 20000"),
        ({"n": 300, "degree": 81, "threshold": 70}, r"degree k = 81 must be even and in 2\.\.298"),
        ({"n": 300, "degree": 0, "threshold": 70}, r"degree k = 0 must be even and in 2\.\.298"),
        ({"n": 300, "degree": 80, "threshold": 81}, r"threshold t = 81 must be in 2\.\.80"),
        (
            {"n": 300, "degree": 80, "threshold": 41, "colluders": 15},
            r"too small for n = 300, c = 15, r = 15 against a lying",
        ),
        (
            {"n": 300, "degree": 10, "threshold": 6, "colluders": 15, "adversary": "curious"},
            r"bad with probability up to 2\^-[\d.]+, at most 2\^-40 is needed",
        ),
        ({"n": 201, "colluders": 190, "dropouts": 5}, "no sparse graph withstands c = 190 colluders and r = 5"),
        ({"round": 2**64}, "round = 18446744073709551616"),
        ({"round": -1}, "round = -1"),
        ({"round": True}, "round must be an integer, got True"),
        ({"round": 1.0}, r"round must be an integer, got 1\.0"),
        ({"session": bytes(15)}, "session must be 16 bytes"),
        ({"app_context": bytes(31)}, "app_context must be 32 bytes"),
        ({"app_context": "x" * 32}, "app_context must be 32 bytes"),
        ({"suite": "rot13"}, "suite 'rot13' is unknown"),
        ({"adversary": "kind"}, "adversary 'kind' is unknown"),
        ({"blocks": ()}, "at least one block"),
        ({"blocks": (BLOCK, BLOCK)}, r"block names appear twice: \['x'\]"),
        ({"cohort": (1, 2, 2, 3)}, r"client ids appear twice: \[2\]"),
        ({"cohort": (1, 2, 2**64 - 1)}, "client id = 18446744073709551615"),
        ({"cohort": (-1, 2, 3)}, "client id = -1"),
        ({"cohort": (True, 2, 3)}, "client id must be an integer"),
    ],
)
def test_an_unsound_parameter_is_refused_with_its_numbers(fields, message):
    """Each rule has its refusal, and the refusal has the numbers."""
    fields = dict(fields)
    with pytest.raises(ParameterError, match=message):
        params(fields.pop("n", 4), **fields)


def test_s3_an_even_number_of_shares_smaller_than_the_cohort():
    """A threshold that is even works; a sparse graph has k + 1 holders, an odd number, and works or is refused here."""
    assert params(6, threshold=4, dropouts=2).threshold == 4
    with pytest.raises(ParameterError, match="degree k = 4 and threshold t = 3 are too small for n = 6"):
        params(6, degree=4, threshold=3)


def test_s4_clients_at_a_bound_that_wraps_are_refused():
    """1 100 clients at the bound of their block are refused naming n, bound and bits; with the bits named, accepted."""
    for n, needed in ((200, 24), (1100, 26)):
        with pytest.raises(
            ParameterError,
            match=rf"block 'u'.*n = {n} clients x bound 30000 >= 2\^21 with bits = 22; bits = {needed} would do",
        ):
            params(n, blocks=(Block("u", 1, 22, 30000),))
        assert params(n, blocks=(Block("u", 1, needed, 30000),)).blocks[0].bits == needed


def test_more_than_200_clients_get_a_sparse_graph():
    """Degree and threshold are those of `graph.choose`, one in twenty may go silent, and the round is not complete."""
    found = params(1000, colluders=50)
    assert (found.degree, found.threshold) == graph.choose(1000, 50, 50, "lying")
    assert (found.dropouts, found.complete) == (50, False)
    assert params(200).complete
    assert RoundParams.decode(found.encode()) == found


def test_fewer_survivors_than_planned_must_be_safe_too():
    """The bounds hold for the fewest survivors that a client accepts, not only for the planned dropouts."""
    k, t = graph.choose(1000, 50, 50, "lying")
    fine = {"colluders": 50, "dropouts": 50, "degree": k, "threshold": t}
    assert params(1000, **fine).min_survivors == 950
    with pytest.raises(ParameterError, match="r = 450 against a lying server"):
        params(1000, **fine, min_survivors=550)


def test_a_sparse_graph_that_dropouts_can_break_is_warned_about():
    """Security is refused, correctness is warned about."""
    with pytest.warns(SlackWarning, match="60 silent clients end the round with probability up to"):
        params(300, colluders=3, dropouts=60, degree=120, threshold=96)


def test_the_warning_about_a_sparse_graph_counts_all_who_may_be_missing():
    """Fewer survivors than n - r are agreed on: the probability is that of so many silent clients, and so is the number."""
    fields = {"colluders": 3, "dropouts": 15, "degree": 120, "threshold": 96}
    params(300, **fields)
    found = graph.bounds(300, 3, 35, 120, 96).correctness_bits
    with pytest.warns(SlackWarning, match=rf"35 silent clients .* up to 2\^-{found:.1f}, "):
        params(300, **fields, min_survivors=265)


def test_s5_a_weight_above_its_maximum_is_refused():
    """A value of 5 000 in a block whose bound is 1 000 does not enter the round."""
    with pytest.raises(mask.InputError, match=r"block 'weight': values 5000\.\.5000 are outside \+-1000"):
        mask.check_inputs(params(blocks=(Block("weight", 1, 32, 1000),)), {"weight": np.array([5000])})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"threshold": 1}, "threshold t = 1"),
        ({"blocks": (Block("x", 1, 2, 1),)}, "block 'x' could wrap around: n = 4 clients x bound 1"),
        ({"n": 2}, "cohort of 2"),
    ],
)
def test_s10_threshold_one_two_bits_and_a_cohort_of_two_are_refused(fields, message):
    """What a greedy server would propose is no `RoundParams`, whoever builds it."""
    fields = dict(fields)
    with pytest.raises(ParameterError, match=message):
        params(fields.pop("n", 4), **fields)


@pytest.mark.parametrize(
    ("n", "bound", "bits"), [(4, 2**30, 34), (10, 4800, 17), (10, 4800 * 2**20, 37), (4, 2**40, 44)]
)
def test_s16_weighted_sums_have_the_right_bits_or_are_refused(n, bound, bits):
    """The refusal names the smallest ring that does, and that ring is indeed accepted, one bit fewer not."""
    narrow = bits - 1
    with pytest.raises(ParameterError, match=f"bits = {bits} would do"):
        params(n, blocks=(Block("x", 1, narrow, bound),))
    assert params(n, blocks=(Block("x", 1, bits, bound),))


def test_s19_round_zero_is_valid():
    """Round 0 is a round like any other, and so is the last u64."""
    assert params(round=0).round == 0
    assert params(round=2**64 - 1).round == 2**64 - 1
    assert params(round=0).context != params(round=1).context


def test_s19_a_vector_too_long_for_its_tag_is_refused_at_once():
    """One tag covers all blocks of a client and takes less than 2 GiB: more is refused here, not after two exchanges."""
    with pytest.raises(ParameterError, match="block"):
        params(3, blocks=(Block("a", 2**28, 32, 1), Block("b", 2**28, 32, 1)))


def test_s24_sums_of_many_rows_take_their_bits_from_the_bound():
    """13 000 rows up to 150 fit 32 bits; 10 000 up to 700 000 do not, and the width that the message names does."""
    assert params(3, blocks=(Block("x", 1, 32, 13_000 * 150),))
    with pytest.raises(ParameterError, match="bound = 7000000000 does not fit into signed 32-bit values"):
        Block("x", 1, 32, 10_000 * 700_000)
    with pytest.raises(ParameterError, match=r"n = 3 clients x bound 7000000000 >= 2\^33.*bits = 36 would do"):
        params(3, blocks=(Block("x", 1, 34, 10_000 * 700_000),))
    assert params(3, blocks=(Block("x", 1, 36, 10_000 * 700_000),))


def test_s25_no_slack_is_warned_about():
    """Minimum survivors equal to the cohort: one slow client ends every round, so the plan says it."""
    with pytest.warns(SlackWarning, match="min_survivors = n = 4"):
        params(4, min_survivors=4)


def test_colluders_that_can_end_the_round_are_warned_about():
    """If n - r - 2c is below the threshold the constructor warns; with enough honest clients it does not."""
    with pytest.warns(SlackWarning, match="n - r - 2c = 1 is under threshold t = 3"):
        params(4, colluders=1, dropouts=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        params(10, colluders=1, dropouts=2)


def test_the_warning_points_at_the_caller():
    """The line that made the parameters is the one that the warning shows."""
    with pytest.warns(SlackWarning) as caught:
        RoundParams(cohort=range(4), blocks=(BLOCK,), colluders=1, dropouts=1)
    assert caught[0].filename == __file__


def test_a_curious_server_waives_the_two_t_rule_and_nothing_else():
    """`adversary="curious"` takes a low threshold, but not one at c, and the quorum stays."""
    p = params(10, threshold=4, colluders=3, adversary="curious")
    assert (p.threshold, p.quorum(10)) == (4, 7)
    assert p.dropouts == 3
    with pytest.raises(ParameterError, match="must exceed the colluders"):
        params(10, threshold=3, colluders=3, adversary="curious")


@settings(deadline=None)
@given(bits=st.integers(2, 64), n=st.integers(3, 200), data=st.data())
def test_no_sum_of_accepted_inputs_wraps_around(bits, n, data):
    """Guarantee: for any subset at its bound the sum is a signed b-bit integer, or the parameters are refused."""
    bound = data.draw(st.integers(0, 2 ** (bits - 1) - 1))
    try:
        params(n, blocks=(Block("x", 1, bits, bound),))
    except ParameterError:
        assert n * bound >= 2 ** (bits - 1)
    else:
        assert -(2 ** (bits - 1)) <= -n * bound
        assert n * bound <= 2 ** (bits - 1) - 1


def test_no_ring_is_wide_enough():
    """Where even 64 bits would wrap the message says to lower the bound."""
    with pytest.raises(ParameterError, match="no ring up to 64 bits would do: lower the bound"):
        params(blocks=(Block("x", 1, 64, 2**62),))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 1}, r"block 'x': bits = 1 is outside 2\.\.64"),
        ({"bits": 65}, "bits = 65"),
        ({"bits": True}, "bits must be an integer"),
        ({"bound": 128}, r"bound = 128 does not fit into signed 8-bit values \(bound < 2\^7\); bits = 9 would do"),
        ({"bound": -1}, "bound = -1"),
        ({"bound": 1.5}, r"bound must be an integer, got 1\.5"),
        ({"length": -1}, "length = -1"),
        ({"length": np.int64(3)}, "length must be an integer"),
        ({"name": ""}, "block name ''"),
        ({"name": "é" * 128}, "must be a string of 1..255 bytes"),
        ({"name": b"x"}, "block name b'x'"),
    ],
)
def test_a_bad_block_is_refused(fields, message):
    """Each field of a block has its refusal, naming the block."""
    with pytest.raises(ParameterError, match=message):
        Block(**({"name": "x", "length": 1, "bits": 8, "bound": 1} | fields))


def test_a_block_name_that_is_no_text_is_refused():
    """A lone surrogate has no encoding: it is refused like any other bad name."""
    with pytest.raises(ParameterError, match="block name"):
        Block("\ud800", 1, 8, 1)


@pytest.mark.parametrize("bound", [0, 127])
def test_a_block_takes_bounds_up_to_its_largest_value(bound):
    """The largest signed value is a valid bound, and so is zero."""
    assert Block("x", 0, 8, bound).bound == bound


def test_the_cohort_is_sorted_and_the_order_of_the_caller_does_not_matter():
    """The same clients in another order are the same round."""
    assert params(cohort=(3, 1, 2)).cohort == (1, 2, 3)
    assert params(cohort=(3, 1, 2)).context == params(cohort=(1, 2, 3)).context


def test_s14_ids_above_2_to_the_63_are_ids():
    """The largest client id is 2^64 - 2, and it survives the encoding."""
    p = params(cohort=(0, 2**63, 2**64 - 2))
    assert RoundParams.decode(p.encode()).cohort == (0, 2**63, 2**64 - 2)


def test_each_round_has_its_own_session():
    """Without a session of the caller's, two rounds with the same numbers differ."""
    one, two = (RoundParams(cohort=range(3), blocks=(BLOCK,)) for _ in range(2))
    assert len(one.session) == 16
    assert one.session != two.session
    assert one.context != two.context


def test_the_encoding_decodes_to_the_same_parameters():
    """Encoding and decoding are inverse, for both suites and several blocks."""
    for suite in ("hybrid", "classical"):
        p = params(
            7, colluders=1, suite=suite, blocks=(BLOCK, Block("é", 0, 64, 0)), round=2**63, app_context=b"\1" * 32
        )
        assert RoundParams.decode(p.encode()) == p


def test_the_context_is_the_hash_of_the_encoding():
    """It is SHA-256(framed label || 01 || u32be length || encoding), computed here by hand."""
    p = params()
    encoding = p.encode()
    expected = hashlib.sha256(framed(Label.CONTEXT) + b"\x01" + len(encoding).to_bytes(4, "big") + encoding)
    assert p.context == expected.digest()


def test_the_encoding_is_as_documented():
    """A known answer: the MessagePack array of docs/protocol.md, byte for byte."""
    p = RoundParams(cohort=(2, 1, 300), blocks=(Block("x", 3, 20, 1000),), session=b"s" * 16, suite="classical")
    assert p.encode().hex() == (
        "9d01a9636c6173736963616cc410"
        + "73" * 16
        + "00930102cd012c020200019194a1780314cd03e8c420"
        + "00" * 32
        + "02a56c79696e67"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"round": 1},
        {"session": b"\1" * 16},
        {"app_context": b"\1" * 32},
        {"suite": "classical"},
        {"adversary": "curious"},
        {"colluders": 1, "dropouts": 1},
        {"cohort": (0, 1, 2, 4)},
        {"blocks": (Block("y", 3, 32, 1000),)},
        {"blocks": (Block("x", 4, 32, 1000),)},
        {"blocks": (Block("x", 3, 33, 1000),)},
        {"blocks": (Block("x", 3, 32, 1001),)},
        {"min_survivors": 4},
        {"dropouts": 0},
    ],
)
def test_every_field_is_in_the_context(change):
    """Two rounds that differ in one field have different contexts."""
    assert params(**change).context != params().context


def wire(**changes):
    """The encoding of good parameters with some positions replaced."""
    names = [
        "version",
        "suite",
        "session",
        "round",
        "cohort",
        "threshold",
        "degree",
        "colluders",
        "dropouts",
        "blocks",
        "app_context",
        "min_survivors",
        "adversary",
    ]
    items = msgspec.msgpack.decode(params().encode())
    for name, value in changes.items():
        items[names.index(name)] = value
    return msgspec.msgpack.encode(items)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (wire(version=2), DecodeError),
        (wire(round=True), DecodeError),
        (wire(round=1.0), DecodeError),
        (wire(session=bytes(15)), DecodeError),
        (wire(cohort=[3, 2, 1, 0]), DecodeError),
        (wire(cohort=[0, 0, 1, 2]), ParameterError),
        (wire(cohort=[-1, 0, 1, 2]), ParameterError),
        (wire(threshold=1), ParameterError),
        (wire(blocks=[]), ParameterError),
        (wire(blocks=[["x", 3, 32]]), DecodeError),
        (wire(blocks=[["x", 3, 2, 1]]), ParameterError),
        (wire(suite="none"), ParameterError),
        (params().encode()[:-1], DecodeError),
        (params().encode() + b"\0", DecodeError),
        (params().encode().replace(b"\x00\x94\x00", b"\x00\x94\xcc\x00"), DecodeError),
        (b"", DecodeError),
        (b"\xc0", DecodeError),
        (b"\x91" * 100_000, DecodeError),
    ],
)
def test_decoding_is_strict(data, error):
    """Truncated, trailing, non-canonical, mistyped and unsound encodings are refused, each with its error."""
    assert data != params().encode()
    with pytest.raises(error):
        RoundParams.decode(data)


def test_decoding_text_that_is_no_text_is_refused():
    """Bytes that are no UTF-8 where a name must stand are a `DecodeError`, not a crash."""
    data = params(suite="hybrid").encode().replace(b"\xa6hybrid", b"\xa6hybri\xff")
    with pytest.raises(DecodeError):
        RoundParams.decode(data)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_changed_encoding_is_an_error_or_other_parameters(data):
    """Any changed byte gives a `SecaggError`, or parameters with another context; never another exception."""
    encoding = bytearray(params().encode())
    place = data.draw(st.integers(0, len(encoding) - 1))
    encoding[place] ^= data.draw(st.integers(1, 255))
    try:
        decoded = RoundParams.decode(bytes(encoding))
    except SecaggError:
        return
    assert decoded.context != params().context


def test_parameters_cannot_be_changed():
    """They are a value: replacing a field goes through the checks again."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        params().threshold = 2
    with pytest.raises(ParameterError):
        dataclasses.replace(params(), threshold=1)


def test_a_round_takes_twenty_thousand_clients():
    """The largest cohort has a graph, and what it is encoded as comes back."""
    found = params(20_000, colluders=100)
    assert not found.complete
    assert RoundParams.decode(found.encode()) == found


def test_all_but_one_are_not_all():
    """The densest sparse graph, k = n - 2, is none of everybody with everybody."""
    found = params(12, degree=10, threshold=5, dropouts=1, adversary="curious")
    assert not found.complete
    assert params(12, degree=11).complete
