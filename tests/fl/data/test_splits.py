import numpy as np
import pytest

from fl.data import SiteData, load_heart, stratified_split, table_fingerprint
from fl.errors import ConfigError


def site(negatives, positives, name="s"):
    """A site whose only feature is the row number."""
    y = np.array([0] * negatives + [1] * positives, dtype=np.int32)
    x = np.arange(len(y), dtype=np.float32)[:, None]
    return SiteData(name, x, y, ("row",), table_fingerprint(x, y))


def rows(part):
    """Which rows of the site are in the part."""
    return part.x[:, 0].astype(int).tolist()


@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_parts_are_a_partition_of_every_hospital(seed):
    """Each row is in exactly one part; name and fingerprint stay the whole table's."""
    for hospital in load_heart().values():
        train, test = stratified_split(hospital, seed=seed)
        both = np.concatenate([np.c_[train.x, train.y], np.c_[test.x, test.y]])
        whole = np.c_[hospital.x, hospital.y]
        assert np.array_equal(both[np.lexsort(both.T)], whole[np.lexsort(whole.T)])
        for part in (train, test):
            assert (part.name, part.fingerprint) == (hospital.name, hospital.fingerprint)
        for label in (0, 1):
            assert (test.y == label).sum() == pytest.approx(0.2 * (hospital.y == label).sum(), abs=0.5)


@pytest.mark.parametrize("negatives", range(5))
@pytest.mark.parametrize("positives", range(5))
@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.99])
def test_small_classes(negatives, positives, fraction):
    """A class of two or more is in both parts, a single row is trained on, no row is lost (F17)."""
    train, test = stratified_split(site(negatives, positives), seed=3, test_fraction=fraction)
    assert sorted(rows(train) + rows(test)) == list(range(negatives + positives))
    for label, count in ((0, negatives), (1, positives)):
        in_train, in_test = (train.y == label).sum(), (test.y == label).sum()
        assert in_train >= min(count, 1)
        assert in_test >= (count >= 2)


def test_split_is_deterministic_and_depends_on_seed_and_name():
    """Same site and seed: same rows in file order; another seed or another name: other rows."""
    base = rows(stratified_split(site(50, 50), seed=5)[1])
    assert base == rows(stratified_split(site(50, 50), seed=5)[1])
    assert base == sorted(base)
    assert base != rows(stratified_split(site(50, 50), seed=6)[1])
    assert base != rows(stratified_split(site(50, 50, name="t"), seed=5)[1])


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_refuses_a_fraction_out_of_range(fraction):
    """The whole table is never a part."""
    with pytest.raises(ConfigError, match="test_fraction"):
        stratified_split(site(5, 5), seed=0, test_fraction=fraction)


def test_refuses_a_negative_seed():
    """A seed below 0 is named."""
    with pytest.raises(ConfigError, match="seed must be at least 0, is -1"):
        stratified_split(site(5, 5), seed=-1)
