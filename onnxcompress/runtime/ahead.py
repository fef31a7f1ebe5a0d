"""The next item of a stream computed while the present one is worked on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items in their order, each asked for, on another thread, while the one before it is worked on.

    onnxruntime and numpy's products leave the interpreter to others while they compute. One item more is in memory.
    What the stream raises is raised here, in its place; a consumer that stops waits for the item that is on its way.
    """
    end = object()
    source = iter(items)
    with ThreadPoolExecutor(1) as worker:
        coming = worker.submit(next, source, end)
        while (item := coming.result()) is not end:
            coming = worker.submit(next, source, end)
            yield item  # type: ignore[misc]
