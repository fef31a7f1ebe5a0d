"""Computing side by side: in order, and no more at a time than memory has room for."""

from __future__ import annotations

import threading

import pytest

from onnxcompress.linalg import parallel
from onnxcompress.linalg.parallel import parallel_map


@pytest.fixture(autouse=True)
def four_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_cores", lambda: 4)
    monkeypatch.setattr(parallel, "_BYTES_AT_A_TIME", 100)


def test_values_come_in_the_order_of_the_items() -> None:
    assert parallel_map(lambda item: item * item, range(50), lambda item: item) == [n * n for n in range(50)]
    assert parallel_map(str, []) == []


@pytest.mark.parametrize(("nbytes", "most"), [(30, 3), (50, 2), (60, 1), (500, 1)])
def test_items_of_more_than_the_share_wait(nbytes: int, most: int) -> None:
    lock, ahead, seen = threading.Lock(), 0, []
    full = threading.Event()

    def compute(_: int) -> None:
        nonlocal ahead
        with lock:
            ahead += 1
            seen.append(ahead)
            if ahead == most:
                full.set()
        assert full.wait(30)  # as many as there is room for run at a time
        with lock:
            ahead -= 1

    parallel_map(compute, range(12), lambda _: nbytes)
    assert max(seen) == most


def test_an_error_gives_its_share_back() -> None:
    def fail(item: int) -> int:
        if item < 4:
            raise ValueError(f"item {item}")
        return item

    with pytest.raises(ValueError, match="item 0"):
        parallel_map(fail, range(20), lambda _: 100)
