"""What planning computed, kept until the rewrite uses it."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

from onnxcompress.passes.tucker.sites import Array

Value = TypeVar("Value")


class WeightCache(Generic[Value]):
    """Values computed from weights; without an entry they are computed again, to the same bytes.

    Arrays are never written into, so that an array's identity is the key; an entry holds on to its array.
    """

    def __init__(self) -> None:
        self._entries: dict[tuple[object, ...], tuple[Array, Value]] = {}
        self._lock = threading.Lock()

    def put(self, weight: Array, how: tuple[object, ...], value: Value) -> None:
        """Keep what was computed from a weight in a certain way."""
        key = (id(weight), *how)
        with self._lock:
            self._entries[key] = (weight, value)

    def take(self, weight: Array, how: tuple[object, ...]) -> Value | None:
        """Hand over what was computed from a weight in a certain way, if it is here."""
        with self._lock:
            entry = self._entries.pop((id(weight), *how), None)
        return None if entry is None else entry[1]

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
