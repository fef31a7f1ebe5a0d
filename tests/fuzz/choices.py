"""Where random graphs take their decisions from: hypothesis, which shrinks, or a seed, which is fast."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from hypothesis import strategies as st

T = TypeVar("T")


class Choices:
    """Decisions built from one function that returns an integer between two bounds, the simplest first."""

    def __init__(self, integer: Callable[[int, int], int]) -> None:
        self.integer = integer

    @classmethod
    def drawn(cls, draw: Callable[[st.SearchStrategy[Any]], Any]) -> Choices:
        return cls(lambda low, high: low if low == high else draw(st.integers(low, high)))

    @classmethod
    def seeded(cls, seed: int) -> Choices:
        return cls(random.Random(seed).randint)

    def pick(self, options: Sequence[T]) -> T:
        return options[self.integer(0, len(options) - 1)]

    def chance(self, percent: int) -> bool:
        return self.integer(0, 99) >= 100 - percent

    def shuffled(self, options: Sequence[T]) -> list[T]:
        rest, order = list(options), []
        while rest:
            order.append(rest.pop(self.integer(0, len(rest) - 1)))
        return order
