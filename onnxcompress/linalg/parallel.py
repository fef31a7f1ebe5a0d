"""Many small decompositions side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")

_MAX_WORKERS = 8


def parallel_map(function: Callable[[Item], Value], items: Iterable[Item]) -> list[Value]:
    """Return `function(item)` of every item, in their order, computed on threads with single-threaded BLAS each.

    Layers are independent and their matrices small. BLAS's own threads gain little on them, and on a busy machine or
    in a container with fewer cores than it sees they wait for each other in spin locks: twenty times slower was
    measured. One thread a matrix also gives the same bits however many cores there are.
    """
    from threadpoolctl import threadpool_limits

    listed = list(items)
    workers = max(1, min(_MAX_WORKERS, _cores(), len(listed)))
    with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(workers) as executor:
        return list(executor.map(function, listed))


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let BLAS compute on the calling thread only: on a busy machine its own threads wait for each other, spinning."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"):
        yield


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
