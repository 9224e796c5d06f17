import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from privacy import codec
from privacy.codec import FixedPoint, GridCodec
from privacy.errors import InputError, PlanError

FINITE = st.floats(allow_nan=False, allow_infinity=False)
ORDINARY = st.floats(-4.0, 4.0)


def squares(integers):
    """Sum of squares in Python integers."""
    return sum(int(value) ** 2 for value in np.asarray(integers).ravel())


@st.composite
def cases(draw):
    """A codec and a vector: any finite floats, sizes and grids, the coarsest and finest included."""
    dimension = draw(st.integers(1, 40))
    coarsest = math.isqrt(dimension // 4) + 1
    grid = draw(st.integers(coarsest, coarsest + 5) | st.integers(coarsest, 2**20) | st.just(codec.MAX_GRID))
    clip = draw(st.floats(1e-3, 1e3) | st.floats(5e-324, 1.7e308))
    vector = draw(hnp.arrays(np.float64, dimension, elements=draw(st.sampled_from([FINITE, ORDINARY]))))
    return GridCodec(clip, grid, dimension), vector


@settings(max_examples=400, deadline=None)
@given(cases())
def test_the_squares_never_sum_to_more_than_the_grid_squared(case):
    """The certificate, recomputed in Python integers, for any finite floats, clip norm and grid (P12)."""
    grid, vector = case
    encoded = grid.encode_update(vector)
    assert encoded.dtype == np.int64
    assert encoded.shape == vector.shape
    assert squares(encoded) <= grid.grid**2
    assert not encoded[vector == 0].any()


@settings(max_examples=200, deadline=None)
@given(cases(), st.floats(1.0, 3.0))
def test_the_certificate_does_not_rest_on_the_floats(case, excess):
    """With arithmetic that overshoots the norm by up to three times, the integer check still brings it back."""
    grid, vector = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "_row_sums", lambda values: values.sum(axis=1) / excess**2)
        assert squares(grid.encode_update(vector)) <= grid.grid**2


def test_plain_float32_rounding_breaks_the_bound_that_the_codec_keeps():
    """A float32 clip and round passes the bound in many draws; the codec never does, and loses at most 0.05 % (P12)."""
    rng = np.random.default_rng(0)
    dimension, grid = 100_000, 2**20
    ours = GridCodec(0.7, grid, dimension)
    broken = 0
    for _ in range(10):
        vector = rng.standard_normal(dimension).astype(np.float32)
        naive = np.rint(vector * np.float32(0.7) / np.linalg.norm(vector) / np.float32(0.7) * np.float32(grid))
        broken += squares(naive.astype(np.int64)) > grid**2
        encoded = ours.encode_update(vector)
        assert squares(encoded) <= grid**2
        assert math.sqrt(squares(encoded)) >= grid * 0.9995
    assert broken >= 2


@pytest.mark.parametrize("offset", [-1, 0, 1])
@pytest.mark.parametrize(("grid", "dimension"), [(2**10, 4), (codec.MAX_GRID, 16)])
def test_the_integer_check_is_exact_at_its_edge(grid, dimension, offset):
    """Sums of squares at and beside grid**2 are told apart, where the sum fits int64 and where it does not."""
    part = grid // math.isqrt(dimension)
    row = np.full((1, dimension), part, dtype=np.int64)
    row[0, 0] += offset
    assert (dimension * grid**2 >= 2**63) is (grid == codec.MAX_GRID)
    assert codec._within(row, grid).tolist() == [offset <= 0]
    assert codec._within(-row, grid).tolist() == [squares(row) <= grid**2]


def test_the_integer_check_does_not_wrap():
    """Sixteen coordinates at the finest grid, whose squares sum to 2**64, are not mistaken for zero."""
    row = np.full((1, 16), codec.MAX_GRID, dtype=np.int64)
    assert not codec._within(row, codec.MAX_GRID)[0]
    assert not codec._within(np.full((1, 2), 2**40, dtype=np.int64), 2**10)[0]


@pytest.mark.parametrize("size", [1e-300, 5e-324, 1.0, 1e200, 1e300, 1.7e308])
def test_magnitudes_whose_squares_overflow_are_clipped_like_any_other(size):
    """A vector of huge or tiny entries keeps its direction and gets norm C, or stays below it."""
    ours = GridCodec(1.0, 2**20, 4)
    encoded = ours.encode_update(np.array([size, -size, size, 0.0]))
    expected = 0 if size < 1e-6 else math.floor(2**20 / math.sqrt(3))
    assert np.abs(encoded - np.array([expected, -expected, expected, 0])).max() <= 2


def test_a_vector_within_the_clip_norm_is_only_rounded():
    """Grid values below the norm survive exactly, and others move by half a step at most."""
    ours = GridCodec(2.0, 2**10, 3)
    on_grid = np.array([100, -200, 7])
    assert ours.encode_update(on_grid * 2.0 / 2**10).tolist() == on_grid.tolist()
    vector = np.array([0.1, -0.2, 0.31])
    decoded = ours.decode(ours.encode_update(vector))
    assert decoded.dtype == np.float64
    assert np.abs(decoded - vector).max() <= 2.0 / 2**10 / 2


def test_a_vector_at_the_clip_norm_loses_the_rounding_margin_only():
    """At norm C the encoded norm is at least G - sqrt(d), in the same direction."""
    rng = np.random.default_rng(1)
    vector = rng.standard_normal(1000)
    vector *= 5.0 / np.linalg.norm(vector)
    ours = GridCodec(5.0, 2**12, 1000)
    encoded = ours.encode_update(vector)
    assert 2**12 - math.sqrt(1000) <= math.sqrt(squares(encoded)) <= 2**12
    assert np.corrcoef(encoded, vector)[0, 1] > 0.99


def test_an_update_of_zeros_encodes_to_zeros():
    """No division by the norm of nothing (F19)."""
    assert not GridCodec(1.0, 2**10, 5).encode_update(np.zeros(5)).any()
    assert not GridCodec(1.0, 2**10, 5).encode_records(np.zeros((3, 5)), np.ones(3, dtype=bool)).any()


def test_a_zero_dimensional_update_counts_as_one_coordinate():
    """A 0-d leaf is clipped and encoded like (1,), and decodes (P24)."""
    ours = GridCodec(1.0, 2**10, 1)
    assert ours.encode_update(np.float32(0.5)).tolist() == [512]
    assert ours.encode_update(np.array(100.0)).tolist() == ours.encode_update(np.array([100.0])).tolist() == [1024]
    assert ours.decode(np.array(512)).tolist() == [0.5]
    assert FixedPoint(1.0, 8, 1).encode(np.float64(0.5)).tolist() == [128]


@pytest.mark.parametrize(
    "dtype", [np.float16, np.float32, np.float64, np.longdouble, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]
)
def test_every_float_type_is_encoded_by_its_value(dtype):
    """Values that a type holds exactly give the same integers in every floating type."""
    values = np.array([0.5, -0.25, 0.0, 0.125]).astype(dtype)
    assert GridCodec(1.0, 2**10, 4).encode_update(values).tolist() == [512, -256, 0, 128]
    rows = GridCodec(1.0, 2**10, 4).encode_records(values[np.newaxis], np.array([True]))
    assert rows.tolist() == [[512, -256, 0, 128]]


@pytest.mark.parametrize(
    "array",
    [
        np.array([1, 2]),
        np.array([1, 2], dtype=np.uint8),
        np.array([1, 2]).astype(ml_dtypes.int4),
        np.array([True, False]),
        np.array([1j, 0j]),
        np.array(["a", "b"]),
        np.array([None, 1.0]),
        np.zeros(2, dtype="V8"),
    ],
    ids=lambda array: array.dtype.name,
)
def test_values_that_are_not_floats_are_refused(array):
    """Integer, boolean, complex, text and object buffers are neither clipped nor noised (P25)."""
    grid = GridCodec(1.0, 2**10, 2)
    with pytest.raises(InputError, match=f"dtype {array.dtype.name}"):
        grid.encode_update(array)
    with pytest.raises(InputError, match="the records: dtype"):
        grid.encode_records(array[np.newaxis], np.array([True]))
    with pytest.raises(InputError, match="the update: dtype"):
        FixedPoint(1.0, 8, 2).encode(array)


LEAVES = (("dense/kernel", 3), ("empty", 0), ("dense/bias", 2))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("index", "place"), [(0, "'dense/kernel', element 0"), (2, "element 2"), (3, "'dense/bias', element 0")]
)
def test_an_update_that_is_not_finite_is_refused_by_leaf(value, index, place):
    """NaN and infinity are refused, not returned unclipped, and the error names the leaf (P6)."""
    vector = np.full(5, 1e9)
    vector[index] = value
    for ours in (GridCodec(1.0, 2**10, 5).encode_update, FixedPoint(1e10, 8, 5).encode):
        with pytest.raises(InputError, match=f"leaf .*{place}: not finite"):
            ours(vector, LEAVES)
        with pytest.raises(InputError, match=f"^element {index}: not finite"):
            ours(vector)


@pytest.mark.skipif(np.finfo(np.longdouble).maxexp == 1024, reason="longdouble is float64 on this platform")
def test_a_longdouble_beyond_float64_counts_as_infinite():
    """A value that float64 cannot hold is refused in an update and is zero in a record."""
    vector = np.array([0.5, 0.5], dtype=np.longdouble)
    vector[0] = np.longdouble(2) ** 1030
    with pytest.raises(InputError, match="not finite"):
        GridCodec(1.0, 2**10, 2).encode_update(vector)
    assert not GridCodec(1.0, 2**10, 2).encode_records(vector[np.newaxis], np.array([True])).any()


@pytest.mark.parametrize("shape", [(4,), (6,), (5, 1), (1, 5), (0,), ()])
def test_a_wrong_shape_is_refused(shape):
    """Nothing is broadcast, flattened or padded; the error has both shapes."""
    for ours in (GridCodec(1.0, 2**10, 5).encode_update, FixedPoint(1.0, 8, 5).encode):
        with pytest.raises(InputError, match=r"expected \(5,\)"):
            ours(np.zeros(shape))
    for ours in (GridCodec(1.0, 2**10, 5).decode, FixedPoint(1.0, 8, 5).decode):
        with pytest.raises(InputError, match=r"expected \(5,\)"):
            ours(np.zeros(shape, dtype=np.int64))
    with pytest.raises(InputError, match=r"expected \(k, 5\)"):
        GridCodec(1.0, 2**10, 5).encode_records(np.zeros((2, 4)), np.ones(2, dtype=bool))


def test_leaves_that_do_not_add_up_are_refused():
    """A leaf table of another model cannot mislabel an error."""
    with pytest.raises(InputError, match="hold 5 values, expected 6"):
        GridCodec(1.0, 2**10, 6).encode_update(np.zeros(6), LEAVES)


@pytest.mark.parametrize("present", [np.ones(3), np.ones(3, dtype=int), np.ones(2, dtype=bool), np.ones((3, 1), bool)])
def test_present_flags_are_one_boolean_for_each_row(present):
    """Weights or a wrong count of flags are refused: a record is there or not."""
    with pytest.raises(InputError, match=r"expected bool \(3,\)"):
        GridCodec(1.0, 2**10, 5).encode_records(np.zeros((3, 5)), present)


def test_a_sum_of_floats_is_refused_in_decoding():
    """A float or unsigned total was not made by the integer path."""
    for total in (np.zeros(2), np.zeros(2, dtype=np.uint64), np.zeros(2, dtype=bool)):
        with pytest.raises(InputError, match="signed integers"):
            GridCodec(1.0, 2**10, 2).decode(total)
        with pytest.raises(InputError, match="signed integers"):
            FixedPoint(1.0, 8, 2).decode(total)


RECORDS = np.random.default_rng(2).standard_normal((37, 101)) * np.logspace(-3, 3, 37)[:, np.newaxis]


@pytest.fixture(params=[1, 101, 7 * 101 + 5, 10**6], ids=lambda size: f"group{size}")
def group(request, monkeypatch):
    """The rows worked on at a time, from one by one to all at once."""
    monkeypatch.setattr(codec, "_GROUP", request.param)


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_removing_any_record_leaves_all_others_bitwise_the_same(dtype):
    """Each row in turn: marked absent, replaced, or cut out of the table; the other rows' integers do not move."""
    ours = GridCodec(1.0, 2**20, 101)
    rows = RECORDS.astype(dtype)
    everyone = np.ones(37, dtype=bool)
    encoded = ours.encode_records(rows, everyone)
    assert encoded.any(axis=1).all()
    for i in range(37):
        others = np.arange(37) != i
        absent = ours.encode_records(rows, others)
        assert np.array_equal(absent[others], encoded[others])
        assert not absent[i].any()
        changed = rows.copy()
        changed[i] = [math.nan, 1e30, *[0.0] * 99]
        assert np.array_equal(ours.encode_records(changed, everyone)[others], encoded[others])
        assert np.array_equal(ours.encode_records(rows[others], everyone[others]), encoded[others])
        assert np.array_equal(ours.encode_records(rows[i : i + 1], everyone[:1])[0], encoded[i])
        assert np.array_equal(ours.encode_update(rows[i]), encoded[i])


def test_the_memory_layout_of_the_table_does_not_matter():
    """Column-major, strided and reversed tables give the same integers."""
    ours = GridCodec(1.0, 2**20, 101)
    everyone = np.ones(37, dtype=bool)
    encoded = ours.encode_records(RECORDS, everyone)
    assert np.array_equal(ours.encode_records(np.asfortranarray(RECORDS), everyone), encoded)
    assert np.array_equal(ours.encode_records(np.repeat(RECORDS, 2, axis=0)[::2], everyone), encoded)
    assert np.array_equal(ours.encode_records(RECORDS[::-1], everyone)[::-1], encoded)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 70), st.data())
def test_a_row_alone_equals_the_row_in_company(count, dimension, data):
    """Row i depends on row i only, for any values, counts and widths; every row keeps the certificate."""
    grid = data.draw(st.integers(math.isqrt(dimension) + 1, 2**12))
    rows = data.draw(hnp.arrays(np.float64, (count, dimension), elements=st.floats(width=64)))
    present = data.draw(hnp.arrays(np.bool_, count))
    ours = GridCodec(1.0, grid, dimension)
    encoded = ours.encode_records(rows, present)
    for i in range(count):
        assert np.array_equal(ours.encode_records(rows[i : i + 1], present[i : i + 1])[0], encoded[i])
        assert squares(encoded[i]) <= grid**2
        if not present[i] or not np.isfinite(rows[i]).all():
            assert not encoded[i].any()


def test_shrinking_one_row_leaves_the_others_alone(monkeypatch):
    """When the check fails for some rows, only those are redone, each as if it were alone."""
    plain = codec._row_sums
    monkeypatch.setattr(codec, "_row_sums", lambda values: plain(values) * 0.9)  # norms too small by 5 %
    ours = GridCodec(1.0, 2**10, 101)
    rows = RECORDS / 10
    encoded = ours.encode_records(rows, np.ones(37, dtype=bool))
    small = np.linalg.norm(rows, axis=1) < 0.9
    assert 0 < small.sum() < 37
    assert np.array_equal(encoded[small], np.rint(rows[small] * 2**10).astype(np.int64))
    for i in range(37):
        assert squares(encoded[i]) <= 2**20
        assert np.array_equal(ours.encode_records(rows[i : i + 1], np.array([True]))[0], encoded[i])


def test_no_bit_of_a_row_depends_on_its_company_before_rounding_either(monkeypatch):
    """The floats that are rounded are bitwise the same alone and in company; a library's sum over rows is not."""
    plain = codec._row_sums
    ours = GridCodec(1.0, 2**20, 101)
    seen = []
    rint = np.rint
    monkeypatch.setattr(codec.np, "rint", lambda values: seen.append(values) or rint(values))

    def differing(rows):
        """Number of rows whose floats in company are not those when alone."""
        seen.clear()
        ours.encode_records(rows, np.ones(37, dtype=bool))
        for i in range(37):
            ours.encode_records(rows[i : i + 1], np.array([True]))
        together, *alone = seen
        return sum(not np.array_equal(one[0], row) for one, row in zip(alone, together, strict=True))

    assert differing(RECORDS) == 0
    monkeypatch.setattr(
        codec, "_row_sums", lambda values: plain(values) if len(values) == 1 else np.asfortranarray(values).sum(axis=1)
    )
    assert differing(RECORDS) > 0


def test_a_vector_that_fails_the_check_by_a_hair_is_shrunk_by_a_hair(monkeypatch):
    """An overshoot of five steps in 2**30 costs a few steps of norm, not a percent."""
    plain = codec._row_sums
    monkeypatch.setattr(codec, "_row_sums", lambda values: plain(values) * (1 - 1e-8))
    norm = math.isqrt(squares(GridCodec(1.0, 2**30, 4).encode_update(np.full(4, 7.0))))
    assert 2**30 - 40 <= norm <= 2**30


def test_no_records_give_no_rows():
    """A site without rows encodes an empty table."""
    assert GridCodec(1.0, 2**10, 5).encode_records(np.zeros((0, 5)), np.zeros(0, dtype=bool)).shape == (0, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 2**10, 5), "clip = 0.0"),
        ((-1.0, 2**10, 5), "clip = -1.0"),
        ((math.nan, 2**10, 5), "clip = nan"),
        ((math.inf, 2**10, 5), "clip = inf"),
        ((1.0, 0, 5), "grid = 0"),
        ((1.0, 2**31, 5), "grid = 2147483648"),
        ((1.0, 1024.0, 5), "grid = 1024.0"),
        ((1.0, 2**10, 0), "dimension = 0"),
        ((1.0, 2**10, 5.0), "dimension = 5.0"),
        ((1.0, 2, 16), "grid = 2 is too coarse for 16 coordinates"),
    ],
)
def test_a_codec_that_cannot_hold_its_bound_is_refused(arguments, message):
    """Clip, grid and dimension out of range, or a grid that rounding alone would pass, are named."""
    with pytest.raises(PlanError, match=message):
        GridCodec(*arguments)
    assert GridCodec(1.0, 2, 15).encode_update(np.ones(15)).shape == (15,)


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(0, 40), st.floats(1e-6, 1e6))
def test_fixed_point_keeps_its_bound_and_its_precision(data, fraction_bits, limit):
    """Any value within the limit is within ``bound`` as an integer and within half a unit after decoding."""
    fixed = FixedPoint(limit, fraction_bits, 3)
    vector = data.draw(hnp.arrays(np.float64, 3, elements=st.floats(-limit, limit)))
    encoded = fixed.encode(vector)
    assert encoded.dtype == np.int64
    assert np.abs(encoded).max() <= fixed.bound
    assert np.abs(fixed.encode(np.array([limit, -limit, 0.0]))).tolist() == [fixed.bound, fixed.bound, 0]
    assert np.abs(fixed.decode(encoded) - vector).max() <= 2.0 ** -(fraction_bits + 1)


def test_fixed_point_refuses_a_value_beyond_its_limit_by_leaf():
    """The error names the leaf, the element and the limit, and does not print the value."""
    vector = np.array([0.0, 0.0, 0.0, 1.0, -8.53125])
    with pytest.raises(InputError, match=r"leaf 'dense/bias', element 1: a magnitude above the limit of 8") as caught:
        FixedPoint(8.0, 16, 5).encode(vector, LEAVES)
    assert "53125" not in str(caught.value)
    assert FixedPoint(8.53125, 16, 5).encode(vector, LEAVES)[4] == round(-8.53125 * 2**16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 8, 5), "limit = 0.0"),
        ((math.nan, 8, 5), "limit = nan"),
        ((1.0, -1, 5), "fraction_bits = -1"),
        ((1.0, 62, 5), "fraction_bits = 62"),
        ((2.0**30, 32, 5), "does not fit 62 bits"),
        ((1.0, 8, 0), "dimension = 0"),
    ],
)
def test_a_fixed_point_format_that_does_not_fit_is_refused(arguments, message):
    """A format whose largest value may not fit the integers is refused at construction."""
    with pytest.raises(PlanError, match=message):
        FixedPoint(*arguments)
