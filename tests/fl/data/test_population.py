import numpy as np
import pytest

from fl.data import Records
from fl.data.population import MAX_CLIENTS, ArrayPopulation, GeneratedPopulation, sample
from fl.errors import ConfigError, DataError

KNOWN = [217, 524, 573, 625, 932]


def buckets(rows):
    """Powers of two."""
    return max(1, 1 << max(rows - 1, 0).bit_length())


def ragged():
    """Three clients of 3, 0 and 5 rows."""
    rng = np.random.default_rng(0)
    return {
        name: (rng.standard_normal((rows, 2)).astype(np.float32), rng.integers(0, 2, rows).astype(np.int32))
        for name, rows in {"a": 3, "b": 0, "c": 5}.items()
    }


def test_a_client_of_any_size_is_gathered_as_a_site_places_it():
    """Rows, zeros in absent slots and the present flags are those of `Records.place`, for clients without rows too."""
    clients = ragged()
    population = ArrayPopulation(clients, buckets)
    slots = population.slots(np.arange(3))
    assert slots.tolist() == [8, 2, 8]  # the largest, and a quarter of it: few sizes, so few compilations
    for client, (x, y) in enumerate(clients.values()):
        expected = Records.place(x, y, int(slots[client]))
        found = population.gather(population.data, client, int(slots[client]))
        np.testing.assert_array_equal(found.x, expected.x)
        np.testing.assert_array_equal(found.y, expected.y)
        np.testing.assert_array_equal(found.present, expected.present)
        assert (found.x.dtype, found.y.dtype) == (np.float32, np.int32)


def test_a_population_knows_its_clients():
    """Names by id, the largest client, and that arrays may keep local state."""
    population = ArrayPopulation(ragged(), buckets)
    assert dict(population.names) == {0: "a", 1: "b", 2: "c"}
    assert population.largest == ("c", 5)
    assert population.size == 3
    assert population.stateful


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.zeros((2, 2), np.float32), np.zeros(3, np.int32)),
        (np.zeros((2, 3), np.float32), np.zeros(2, np.int32)),
        (np.zeros((2, 2), np.float64), np.zeros(2, np.int32)),
        (np.float32(1), np.int32(1)),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_the_client_s_name(x, y):
    """Rows without labels, another record shape, another dtype, no rows at all: the client is named."""
    with pytest.raises(DataError, match="client odd"):
        ArrayPopulation(ragged() | {"odd": (x, y)}, buckets)


def test_a_population_of_nobody_is_refused():
    """There is no first client to take a shape from."""
    with pytest.raises(DataError, match="at least one client"):
        ArrayPopulation({}, buckets)


def generate(key, client, _data):
    """Records that carry their client's id."""
    import jax
    import jax.numpy as jnp

    return jax.random.normal(key, (2, 1)) + client, jnp.full(2, client, jnp.int32), jnp.arange(2) < 1


def test_generated_records_are_a_function_of_seed_and_client():
    """The same client has the same records each time, another client or another seed has others."""
    population = GeneratedPopulation(10**6, 2, generate, seed=1)
    first, again = (population.gather(None, 999_999, 2) for _ in range(2))
    np.testing.assert_array_equal(first.x, again.x)
    assert first.y.tolist() == [999_999] * 2
    assert not np.array_equal(first.x, population.gather(None, 999_998, 2).x + 1)
    assert not np.array_equal(first.x, GeneratedPopulation(10**6, 2, generate, seed=2).gather(None, 999_999, 2).x)


def test_generated_clients_have_names_without_storing_them():
    """A name is made when it is looked up; an id beyond the population has none."""
    names = GeneratedPopulation(10**6, 2, generate, seed=1).names
    assert names[17] == "client-17"
    assert len(names) == 10**6
    assert next(iter(names)) == 0
    with pytest.raises(KeyError):
        names[10**6]


@pytest.mark.parametrize(("size", "rows"), [(0, 1), (MAX_CLIENTS + 1, 1), (1, 0)])
def test_generated_populations_out_of_range_are_refused(size, rows):
    """Nobody, more clients than ids, or clients without slots."""
    with pytest.raises(ConfigError):
        GeneratedPopulation(size, rows, generate, seed=1)


@pytest.mark.parametrize(("size", "count"), [(10**6, 10**4), (10, 9), (10, 10), (1, 1), (7, 3)])
def test_a_cohort_is_drawn_without_replacement(size, count):
    """Ascending, all different, in range, and the same each time it is asked for."""
    ids = sample(size, count, seed=3, number=5)
    assert len(ids) == count
    assert (np.diff(ids) > 0).all()
    assert ids[0] >= 0
    assert ids[-1] < size
    np.testing.assert_array_equal(ids, sample(size, count, seed=3, number=5))


def test_rounds_and_seeds_draw_different_cohorts():
    """Two rounds of one seed, and two seeds in one round, differ."""
    first = sample(1000, 20, seed=3, number=5)
    assert not np.array_equal(first, sample(1000, 20, seed=3, number=6))
    assert not np.array_equal(first, sample(1000, 20, seed=4, number=5))


def test_the_cohort_of_a_seed_never_changes():
    """Known values: another version of NumPy, or of this, must draw the cohort of an old run again."""
    assert sample(1000, 5, seed=0, number=0).tolist() == KNOWN


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.statistical
def test_every_client_is_drawn_alike(count):
    """Each of 6 clients is in a cohort as often as any other, for those drawn and those left out; off by a tenth fails."""
    rounds = 6000
    hits = np.zeros(6)
    for number in range(rounds):
        hits[sample(6, count, seed=0, number=number)] += 1
    expected = rounds * count / 6
    deviation = np.sqrt(rounds * (count / 6) * (1 - count / 6))
    assert np.abs(hits - expected).max() < 5 * deviation < 0.1 * expected


@pytest.mark.parametrize("count", [0, 6])
def test_impossible_cohorts_are_refused(count):
    """Nobody, or more clients than there are."""
    with pytest.raises(ConfigError, match="out of 5"):
        sample(5, count, seed=0, number=0)
