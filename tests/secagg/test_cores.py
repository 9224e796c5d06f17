import itertools
import threading
import time

import pytest

from secagg import cores
from secagg.cores import spread


def test_results_come_in_order(monkeypatch):
    """However many items and cores there are, and none."""
    for count, have in itertools.product(range(20), (1, 2, 3, 8)):
        monkeypatch.setattr(cores, "CORES", have)
        assert spread(lambda item: item * item, range(count)) == [item * item for item in range(count)]


def test_stretches_run_side_by_side(monkeypatch):
    """Two tasks that wait for each other both end: one is in this thread, the other is not."""
    monkeypatch.setattr(cores, "CORES", 2)
    barrier = threading.Barrier(2, timeout=60)
    threads = spread(lambda _: (barrier.wait(), threading.get_ident())[1], (0, 1))
    assert threads[0] == threading.get_ident() != threads[1]


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_all_have_ended_when_one_has_failed(bad, monkeypatch):
    """The error of a part comes when no other part is still at work on what the caller handed over."""
    monkeypatch.setattr(cores, "CORES", 8)
    ended = []

    def task(part):
        if part == bad:
            raise ZeroDivisionError
        time.sleep(0.02)
        ended.append(part)

    with pytest.raises(ZeroDivisionError):
        spread(task, range(3))
    assert sorted(ended) == [part for part in range(3) if part != bad]
