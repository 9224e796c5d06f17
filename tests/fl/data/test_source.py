import numpy as np
import pytest

from fl.data import load_population, load_source
from fl.errors import ConfigError, DataError

GIVEN = {}


def source(seed):
    """What a test wants to be given; else two sites from the seed."""
    rng = np.random.default_rng(seed)
    ours = {"a": (rng.normal(size=(4, 2)), rng.integers(0, 2, 4)), "b": (np.zeros((0, 2)), np.zeros(0, np.int64))}
    return GIVEN.get("sites", ours)


def load(sites=None, seed=0):
    """The sites of this file's source."""
    GIVEN.clear()
    if sites is not None:
        GIVEN["sites"] = sites
    return load_source(f"{__name__}:source", seed)


def test_arrays_become_sites():
    """Floats become float32 and integers int32, a site may be empty, and the seed reaches the function."""
    sites = load()
    assert list(sites) == ["a", "b"]
    assert [(site.x.dtype, site.y.dtype, len(site.y)) for site in sites.values()] == [
        (np.float32, np.int32, 4),
        (np.float32, np.int32, 0),
    ]
    assert load(seed=1)["a"].fingerprint != sites["a"].fingerprint == load()["a"].fingerprint


def test_records_of_any_shape():
    """Images, tokens and quantities are taken as they are; a site may have a name that is no text."""
    sites = load(
        {7: (np.ones((2, 3, 3, 1), np.uint8), np.array([0.5, 2.0])), "t": ([[1, 2], [3, 4]], [[1, 0], [0, 1]])}
    )
    assert list(sites) == ["7", "t"]
    assert (sites["7"].x.dtype, sites["7"].x.shape, sites["7"].y.dtype) == (np.int32, (2, 3, 3, 1), np.float32)
    assert (sites["t"].x.tolist(), sites["t"].y.shape) == ([[1, 2], [3, 4]], (2, 2))


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ([1, 2], "gives a list, not records by site"),
        ({}, "gives a dict, not records by site"),
        ({"a": np.zeros(3)}, "gives a ndarray for site a, not"),
        ({"a": None}, "gives a NoneType for site a, not"),
        ({"a": (1.0, 2.0)}, "site a: x is a single value"),
        ({"a": (np.zeros((2, 3)), np.zeros(3))}, "site a: x has 2 rows and y 3"),
        ({"a": ([[1.0], [1.0, 2.0]], [0, 1])}, "site a: x is no array"),
        ({"a": (np.zeros((2, 3)), ["sick", "well"])}, "site a: y is an array of <U4, not of floats or integers"),
        ({"a": (np.zeros((2, 3)), np.array([True, False]))}, "site a: y is an array of bool"),
        ({"a": (np.zeros((2, 3), complex), np.zeros(2))}, "site a: x is an array of complex128"),
        ({"a": (np.full((2, 3), np.nan), np.zeros(2))}, "site a: x has values that are not finite"),
        ({"a": (np.full((2, 3), 1e300), np.zeros(2))}, "site a: x has values that are not finite"),
        ({"a": (np.zeros((2, 3)), np.array([0, 2**31]))}, "site a: y has integers beyond 32 bits"),
        ({1: (np.zeros((2, 3)), np.zeros(2)), "1": (np.ones((2, 3)), np.zeros(2))}, "gives 2 sites 1"),
    ],
)
def test_what_is_no_records_is_named(sites, message):
    """Anything but records by site is refused by the function or the site, and nothing is cut or guessed."""
    with pytest.raises(DataError, match=message):
        load(sites)


def test_a_source_that_is_not_there_is_a_configurations_fault():
    """A name that cannot be imported is refused by its key."""
    with pytest.raises(ConfigError, match=r'^data\.source: "absent:f" cannot be imported'):
        load_source("absent:f", 0)


def failing(seed):
    """A mistake of its own."""
    return {}[seed]


@pytest.mark.parametrize(("load", "key"), [(load_source, "data.source"), (load_population, "data.population")])
def test_a_mistake_in_a_function_is_the_keys(load, key):
    """Whatever a function of one's own raises is a refusal with the key and its name, and the error stays its cause."""
    with pytest.raises(ConfigError, match=rf'^{key}: ".*:failing" failed: KeyError: 7') as refused:
        load(f"{__name__}:failing", 7)
    assert isinstance(refused.value.__cause__, KeyError)
