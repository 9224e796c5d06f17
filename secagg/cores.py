"""Both cores: long pieces of work that release the interpreter's lock, side by side."""

import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

T = TypeVar("T")
R = TypeVar("R")

CORES = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)


def spread(task: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """The task of every item, in their order: a stretch of them in this thread, the others in threads of their own.

    Args:
        task: What it does has to release the lock to gain anything, as ciphers of many kilobytes, signatures and array arithmetic do.
        items: Cut into as many stretches as there are cores.

    Raises:
        Exception: What the first task that failed raised; all of them have ended by then.
    """
    step = -(-len(items) // CORES) or 1
    parts = [items[start : start + step] for start in range(0, len(items), step)]

    def stretch(part: Sequence[T]) -> list[R]:
        return [task(item) for item in part]

    others = [_workers().submit(stretch, part) for part in parts[1:]]
    try:
        found = [result for part in parts[:1] for result in stretch(part)]
    finally:
        # Whoever called may use what the tasks work on as soon as this returns or raises.
        for other in others:
            other.exception()
    return found + [result for other in others for result in other.result()]


@cache
def _workers() -> "ThreadPoolExecutor":
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - it brings logging along

    return ThreadPoolExecutor(max_workers=max(CORES - 1, 1), thread_name_prefix="secagg")


# Threads do not survive a fork; the child makes its own.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_workers.cache_clear)
