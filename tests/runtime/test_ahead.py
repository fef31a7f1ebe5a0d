"""A stream's next item is computed while the present one is worked on."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from onnxcompress.runtime.ahead import one_ahead


def test_the_order_is_kept() -> None:
    assert list(one_ahead(range(20))) == list(range(20))
    assert list(one_ahead([])) == []
    assert list(one_ahead([None, None])) == [None, None]


def test_one_item_is_made_on_another_thread_and_no_more() -> None:
    made: list[int] = []
    threads: set[int] = set()
    asked = threading.Semaphore(0)

    def stream() -> Iterator[int]:
        for number in range(5):
            made.append(number)
            threads.add(threading.get_ident())
            asked.release()
            yield number

    for number in one_ahead(stream()):
        for _ in range(min(2, 5 - number) if number == 0 else int(number < 4)):
            asked.acquire()  # the next one is made without being asked for
        assert len(made) == min(number + 2, 5)
    assert threading.get_ident() not in threads


def test_errors_come_in_their_place() -> None:
    def stream() -> Iterator[int]:
        yield 1
        raise ValueError("two")

    ahead = one_ahead(stream())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="two"):
        next(ahead)


def test_who_stops_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    ahead = one_ahead(iter(range(100)))
    assert next(ahead) == 0
    ahead.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
