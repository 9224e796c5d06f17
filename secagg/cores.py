"""Both cores: long pieces of work that release the interpreter's lock, side by side."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

CORES = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)


def spread(task: Callable[[T], R], parts: Sequence[T]) -> list[R]:
    """The task of every part, in order of the parts: the first in this thread, the others in threads of their own.

    Args:
        task: What it does has to release the lock to gain anything, as ciphers of many kilobytes, signatures and array arithmetic do.
        parts: At most `CORES` of them run at once.

    Raises:
        Exception: What the first task that failed raised; all of them have ended by then.
    """
    others = [_workers().submit(task, part) for part in parts[1:]]
    try:
        first = [task(part) for part in parts[:1]]
    finally:
        # Whoever called may use what the tasks work on as soon as this returns or raises.
        for other in others:
            other.exception()
    return first + [other.result() for other in others]


@cache
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=max(CORES - 1, 1), thread_name_prefix="secagg")


# Threads do not survive a fork; the child makes its own.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_workers.cache_clear)
