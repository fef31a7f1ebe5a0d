"""Many small decompositions side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from threading import Condition
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")
Value = TypeVar("Value")

_MAX_WORKERS = 8
_BYTES_AT_A_TIME = 2**28


def parallel_map(
    function: Callable[[Item], Value], items: Iterable[Item], nbytes: Callable[[Item], int] | None = None
) -> list[Value]:
    """Return `function(item)` of every item, in their order, computed on threads with single-threaded BLAS each.

    Layers are independent and their matrices small. BLAS's own threads gain little on them, and on a busy machine or
    in a container with fewer cores than it sees they wait for each other in spin locks: twenty times slower was
    measured. One thread a matrix also gives the same bits however many cores there are.

    Args:
        function: what is computed.
        items: of what.
        nbytes: the size of an item, of which the memory that its computation takes is a multiple: items that together
            have more than 256 MB are not computed at a time.
    """
    listed = list(items)
    share = _Share(_BYTES_AT_A_TIME)

    def within_share(item: Item) -> Value:
        with share.taken(0 if nbytes is None else nbytes(item)):
            return function(item)

    workers = max(1, min(_MAX_WORKERS, _cores(), len(listed)))
    with one_blas_thread(), ThreadPoolExecutor(workers) as executor:
        return list(executor.map(within_share, listed))


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let BLAS compute on the threads that call it alone, as beside a session of onnxruntime, which has all cores."""
    with _blas().limit(limits=1, user_api="blas"):
        yield


@cache
def _blas() -> ThreadpoolController:
    """Return the BLAS libraries of numpy and scipy; to look for them takes milliseconds."""
    import scipy.linalg  # noqa: F401 - brings its own, which must be there by now
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


class _Share:
    """A number of bytes that threads share: each takes its part and waits while that is not left."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._taken = 0
        self._changed = Condition()

    @contextmanager
    def taken(self, nbytes: int) -> Iterator[None]:
        """Take so many bytes; one that wants more than all of them has all of them."""
        own = min(nbytes, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._taken + own <= self._total)
            self._taken += own
        try:
            yield
        finally:
            with self._changed:
                self._taken -= own
                self._changed.notify_all()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
