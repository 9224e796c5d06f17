import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.algorithms import LocalResult, SiteUpdate, WeightedEncoding
from fl.simulation.device import contribution, encode_adaptive, encode_fixed_point, encode_grid
from privacy.adaptive import AdaptiveCodec
from privacy.codec import MAX_GRID, FixedPoint, GridCodec
from privacy.errors import InputError

SIZES = (1, 2, 7, 1001)  # few, since each is a compilation
GRIDS = (20, 2**20, MAX_GRID)
DTYPES = (np.float32, ml_dtypes.bfloat16, np.float16, np.float64)


def traced(codec):
    """The compiled encoder of a codec, as (values, clip) -> NumPy integers and flag."""
    encode = encode_adaptive if isinstance(codec, AdaptiveCodec) else encode_grid
    run = _COMPILED.setdefault(codec, jax.jit(lambda values, clip: encode(codec, values, clip)))

    def call(values, clip):
        with jax.enable_x64(True):
            integers, ok = run(jnp.asarray(values), jnp.float64(clip))
            return np.asarray(integers), bool(ok)

    return call


_COMPILED = {}


@st.composite
def vectors(draw, dtypes=DTYPES, sizes=SIZES):
    """A finite vector: any bits (denormals, the largest numbers), ordinary ones, one spike, or nothing but zeros."""
    dtype, size = np.dtype(draw(st.sampled_from(dtypes))), draw(st.sampled_from(sizes))
    kind = draw(st.sampled_from(["bits", "normal", "spike", "equal", "zero"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    if kind == "bits":
        values = rng.integers(0, 256, size * dtype.itemsize, dtype=np.uint8).view(dtype)
        with np.errstate(invalid="ignore"):  # a signalling NaN of a small type
            values = np.where(np.isfinite(values), values, np.asarray(1, dtype)).astype(dtype)
    elif kind == "normal":
        values = (rng.standard_normal(size) * 10.0 ** draw(st.integers(-6, 3))).astype(dtype)
    elif kind == "spike":
        values = np.zeros(size, dtype)
        values[rng.integers(size)] = dtype.type(draw(st.sampled_from([1e-7, 0.5, 1.0, -60000.0])))
    else:
        values = np.full(size, 0.0 if kind == "zero" else 0.37).astype(dtype)
    if dtype == np.float64:
        values = np.where(np.abs(values) < 2.0**-1022, 0.0, values)
    return values


def clips(values):
    """Clip norms of interest: the vector's own norm and its neighbours, and ordinary ones."""
    with np.errstate(over="ignore"):
        norm = float(np.linalg.norm(values.astype(np.float64)))
    near = [norm, math.nextafter(norm, 0), math.nextafter(norm, math.inf)] if 1e-300 < norm < 1e300 else []
    return st.sampled_from([*near, 1.0, 0.3, 1e-3, 1e6])


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_the_grid_codec_on_the_device_gives_the_same_integers(data):
    """Any finite vector at any clip norm and grid is encoded bit for bit as NumPy encodes it."""
    values = data.draw(vectors([np.float32]))
    clip, grid = data.draw(clips(values)), data.draw(st.sampled_from(GRIDS))
    integers, ok = traced(GridCodec(1.0, grid, len(values)))(values, clip)
    assert ok
    assert integers.dtype == np.int64
    np.testing.assert_array_equal(integers, GridCodec(clip, grid, len(values)).encode_update(values))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_adaptive_codec_on_the_device_gives_the_same_integers_and_bit(data):
    """For any floating type, and the bit too, also where the norm is the clip norm but for a rounding."""
    values = data.draw(vectors())
    clip = data.draw(clips(values))
    integers, ok = traced(AdaptiveCodec(GridCodec(1.0, 2**20, len(values)), 77))(values, clip)
    assert ok
    np.testing.assert_array_equal(
        integers, AdaptiveCodec(GridCodec(clip, 2**20, len(values)), 77).encode_update(values)
    )


@settings(max_examples=120, deadline=None)
@given(st.data(), st.sampled_from([(8.0, 20), (64.0, 32), (0.1, 30), (1000.5, 0), (2.0**-20, 61)]))
def test_fixed_point_on_the_device_gives_the_same_integers_or_the_flag(data, numbers):
    """Bit for bit NumPy's integers where it encodes, and the flag with zeros exactly where it refuses."""
    values = data.draw(vectors([np.float32, np.float64, ml_dtypes.bfloat16], [2, 7]))
    codec = FixedPoint(*numbers, dimension=len(values))
    edge = data.draw(st.sampled_from([None, 1.0, -1.0, 1.0000001, math.nan, math.inf]))
    if edge is not None:
        values[-1] = values.dtype.type(edge * codec.limit)
    run = _COMPILED.setdefault((codec, values.dtype), jax.jit(lambda v: encode_fixed_point(codec, (v[:1], v[1:]))))
    with jax.enable_x64(True):
        found, ok = run(jnp.asarray(values))
    integers = np.concatenate(found)
    try:
        expected = codec.encode(values)
    except InputError:
        assert not ok
        assert not integers.any()
    else:
        assert ok
        assert integers.dtype == np.int64
        np.testing.assert_array_equal(integers, expected)


@pytest.mark.parametrize("dimension", [1, 2, 4097, 101_770])
def test_large_vectors_are_the_same_too(dimension):
    """Dimensions of a real model, clipped and not, where a contracted product would show in nearly every draw."""
    rng = np.random.default_rng(dimension)
    codec = AdaptiveCodec(GridCodec(1.0, 2**20, dimension), 5)
    for scale in (1e-5, 1.0):
        values = (rng.standard_normal(dimension) * scale).astype(np.float32)
        integers, _ = traced(codec)(values, 0.7)
        np.testing.assert_array_equal(
            integers, AdaptiveCodec(GridCodec(0.7, 2**20, dimension), 5).encode_update(values)
        )


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_denormal_numbers_are_not_read_as_zero(dtype):
    """Denormal values count at a clip norm as small as they are, which the processor's own reading would lose."""
    values = np.array([1e-39, -3e-39, 0.0, 2e-38]).astype(dtype)
    integers, _ = traced(GridCodec(1.0, 2**20, 4))(values, 1e-38)
    np.testing.assert_array_equal(integers, GridCodec(1e-38, 2**20, 4).encode_update(values))
    assert integers[0] != 0


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("codec", [GridCodec(1.0, 2**20, 3), AdaptiveCodec(GridCodec(1.0, 2**20, 3), 9)])
def test_a_value_that_is_not_finite_lowers_the_flag(codec, wrong):
    """The flag is False and every integer zero, the bit included."""
    integers, ok = traced(codec)(np.array([1.0, wrong, 0.0], np.float32), 1.0)
    assert not ok
    assert not integers.any()


def test_the_vector_is_shrunk_until_the_certificate_holds(monkeypatch):
    """With a norm that is too small by half, both loops shrink the same number of times, to the same integers."""
    from fl.simulation import device
    from privacy import codec as reference

    values = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    monkeypatch.setattr(reference, "_row_sums", lambda _rows: np.full(1, 5.0))
    monkeypatch.setattr(device, "_tree_sum", lambda _squares: jnp.float64(5.0))
    codec = GridCodec(0.5, 2**20, 50)
    with jax.enable_x64(True):
        integers, _ = jax.jit(lambda v, c: encode_grid(codec, v, c))(jnp.asarray(values), jnp.float64(0.5))
    np.testing.assert_array_equal(integers, codec.encode_update(values))
    assert (np.asarray(integers) ** 2).sum() <= codec.grid**2


def test_quotients_are_rounded_once():
    """Dividing by a common divisor gives NumPy's quotients bit for bit, which the compiler's own division does not."""
    from fl.simulation.device import _divided, _hidden_zero

    values = np.random.default_rng(2).standard_normal(10_000)
    with jax.enable_x64(True):
        ours = jax.jit(lambda v, by, clip: _divided(v, by, _hidden_zero(clip)))(
            values, np.float64(3.7), np.float64(1.0)
        )
    np.testing.assert_array_equal(ours, values / 3.7)


def test_rows_of_a_vmap_are_encoded_as_alone():
    """A chunk of clients gives each client the integers that it gets alone, whichever of them shrink or do not."""
    rows = np.random.default_rng(1).standard_normal((5, 33)).astype(np.float32) * np.array(
        [[1e-3], [1], [5], [0], [1e9]]
    )
    rows = rows.astype(np.float32)
    codec = AdaptiveCodec(GridCodec(1.0, 2**20, 33), 3)
    with jax.enable_x64(True):
        both = jax.jit(jax.vmap(lambda v, c: encode_adaptive(codec, v, c), in_axes=(0, None)))
        integers, _ = both(jnp.asarray(rows), jnp.float64(1.0))
    np.testing.assert_array_equal(integers, [codec.encode_update(row) for row in rows])


def test_a_constant_clip_norm_is_refused():
    """A clip norm that the compiler can see would undo the guard against contraction."""
    with pytest.raises(TypeError, match="argument of the compiled program"):
        encode_grid(GridCodec(1.0, 2**20, 3), jnp.zeros(3), jnp.float32(1.0))


@pytest.mark.parametrize("uniform", [False, True])
def test_a_weighted_contribution_is_that_of_the_encoding(uniform):
    """Update in pieces, extra vector, weight and loss: bit for bit `WeightedEncoding.encode`, and the flag where it raises."""
    encoding = WeightedEncoding((("a", 2), ("b", 3)), FixedPoint(8.0, 20, 5), 64, extra=("control",), uniform=uniform)
    rng = np.random.default_rng(0)
    delta, control = rng.standard_normal((2, 5)).astype(np.float32)
    run = jax.jit(lambda result: contribution(encoding, result, jnp.float32(1)))
    with jax.enable_x64(True):
        result = LocalResult(jnp.asarray(delta), jnp.int32(7), jnp.float32(0.3), {"control": jnp.asarray(control)})
        found, ok = run(result)
        bad = [
            result._replace(loss=jnp.float32(np.nan)),
            result._replace(extra={"control": jnp.full(5, 9.0, jnp.float32)}),
        ]
        assert not any(run(each)[1] for each in bad)
    expected = encoding.encode(SiteUpdate(delta, 7, float(np.float32(0.3)), {"control": control}))
    assert ok
    assert set(found) == set(expected)
    for name, integers in expected.items():
        np.testing.assert_array_equal(np.concatenate(found[name]), integers)
