import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.data import SiteData, load_heart, split_by_record, table_fingerprint
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
        train, test = split_by_record(hospital, seed=seed)
        both = np.concatenate([np.c_[train.x, train.y], np.c_[test.x, test.y]])
        whole = np.c_[hospital.x, hospital.y]
        assert np.array_equal(both[np.lexsort(both.T)], whole[np.lexsort(whole.T)])
        for part in (train, test):
            assert (part.name, part.fingerprint) == (hospital.name, hospital.fingerprint)


def members(part):
    """The records of a part, as a multiset."""
    return collections.Counter(row.tobytes() + label.tobytes() for row, label in zip(part.x, part.y, strict=True))


@pytest.mark.parametrize("name", ["hungary", "switzerland"])
def test_removing_any_patient_moves_no_other_patient(name):
    """With each row of a hospital cut out in turn, the parts lose that record and change in nothing else."""
    hospital = load_heart()[name]
    whole = [members(part) for part in split_by_record(hospital, seed=0)]
    for gone in range(len(hospital.y)):
        less = [
            members(part)
            for part in split_by_record(hospital.take(np.delete(np.arange(len(hospital.y)), gone)), seed=0)
        ]
        lost = [before - after for before, after in zip(whole, less, strict=True)]
        assert not any(after - before for before, after in zip(whole, less, strict=True))
        record = hospital.x[gone].tobytes() + hospital.y[gone].tobytes()
        assert lost[0] + lost[1] == collections.Counter([record])


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=12), st.data())
def test_identical_records_move_nobody_either(records, data):
    """The same with many identical records: as sets of records, the parts lose one copy and nothing else."""

    def of(chosen):
        y = np.array([label for _, label in chosen], dtype=np.int32)
        x = np.array([value for value, _ in chosen], dtype=np.float32)[:, None]
        return [members(part) for part in split_by_record(SiteData("s", x, y, ("v",), "f"), seed=1, test_fraction=0.5)]

    gone = data.draw(st.integers(0, len(records) - 1))
    whole, less = of(records), of(records[:gone] + records[gone + 1 :])
    assert not any(after - before for before, after in zip(whole, less, strict=True))
    assert sum((before - after).total() for before, after in zip(whole, less, strict=True)) == 1


def test_the_held_out_share_is_the_fraction_of_every_class():
    """Over 200 seeds the share held out of each hospital's classes is 0.2 within 4.5 standard errors."""
    for hospital in load_heart().values():
        for label in (0, 1):
            count = (hospital.y == label).sum()
            held = [(split_by_record(hospital, seed=seed)[1].y == label).sum() for seed in range(200)]
            assert abs(sum(held) / (200 * count) - 0.2) < 4.5 * np.sqrt(0.16 / (200 * count))


@pytest.mark.parametrize("rows_", [0, 1, 2])
def test_tiny_sites_lose_no_row(rows_):
    """F17: a site of no, one or two rows is split like any other."""
    train, test = split_by_record(site(rows_, 0), seed=3)
    assert sorted(rows(train) + rows(test)) == list(range(rows_))


def test_split_is_deterministic_and_depends_on_seed_and_name():
    """Same site and seed: same rows in file order; another seed or another name: other rows."""
    base = rows(split_by_record(site(50, 50), seed=5)[1])
    assert base == rows(split_by_record(site(50, 50), seed=5)[1])
    assert base == sorted(base)
    assert base != rows(split_by_record(site(50, 50), seed=6)[1])
    assert base != rows(split_by_record(site(50, 50, name="t"), seed=5)[1])


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_refuses_a_fraction_out_of_range(fraction):
    """The whole table is never a part."""
    with pytest.raises(ConfigError, match="test_fraction"):
        split_by_record(site(5, 5), seed=0, test_fraction=fraction)


def test_refuses_a_negative_seed():
    """A seed below 0 is named."""
    with pytest.raises(ConfigError, match="seed must be at least 0, is -1"):
        split_by_record(site(5, 5), seed=-1)
