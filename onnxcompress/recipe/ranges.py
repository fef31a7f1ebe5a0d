"""Kinds of option values that stand for several values of another option: what a sweep goes through."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from onnxcompress.errors import RecipeError
from onnxcompress.recipe.kinds import Kind, Number, SplitSpec, Targets, shown

_MOST_VALUES = 1000

_FRACTION = Number("a fraction R with 0 < R < 1, such as 0.4", above=0.0, below=1.0)


class Fractions(Kind):
    """`0.1,0.2,0.4` or `0.1:0.6` or `0.1:0.6:5` (from, to, how many)."""

    expected = "give values such as 0.1,0.2,0.4, or a range such as 0.1:0.6 or 0.1:0.6:5"

    def checked(self, value: Any, where: str) -> str:
        self.values(value, 2, where)
        return str(value)

    def values(self, text: Any, points: int, where: str) -> list[float]:
        """Return the fractions, ascending, without doubles; a range that tells no number has `points` of them."""
        numbers = [number for word in _words(text, where, self.expected) for number in _spread(word, points, where)]
        return sorted({_FRACTION.checked(number, where) for number in numbers})


class Splits(Kind):
    """`energy=0.8:0.98`, `ratio=0.3,0.5`, `evbmf,energy=0.9`: the name before the last `=` holds until the next."""

    expected = "give energy=LOW:HIGH, ratio=LOW:HIGH, values such as energy=0.9,0.95, auto or evbmf"
    _spec = SplitSpec("auto", "evbmf")

    def checked(self, value: Any, where: str) -> str:
        self.values(value, 2, where)
        return str(value)

    def values(self, text: Any, points: int, where: str) -> list[str]:
        """Return the specifications, as `--tucker` takes them, without doubles; of a range the gentlest first."""
        specs: dict[str, None] = {}
        name = ""
        for word in _words(text, where, self.expected):
            named, separator, rest = word.partition("=")
            name = named if separator else name
            if not separator and re.fullmatch(r"[a-z]+", word):
                specs[self._spec.checked(word, where)] = None
                continue
            if name not in ("energy", "ratio"):
                raise RecipeError(f"{where}: {shown(word)} is not known; {self.expected}")
            for number in reversed(_spread(rest if separator else word, points, where)):
                specs[self._spec.checked(f"{name}={number:.6g}", where)] = None
        return list(specs)


class TargetShares(Kind):
    """`macs=0.3:0.9`, `params=0.5,0.7`: a kind of target and shares of the original."""

    expected = f"give KIND=LOW:HIGH or KIND=F,F,... with a kind of {', '.join(Targets.names)}, such as macs=0.3:0.9"

    def checked(self, value: Any, where: str) -> str:
        self.values(value, 2, where)
        return str(value)

    def values(self, text: Any, points: int, where: str) -> tuple[str, list[float]]:
        """Return the kind of target and its shares, ascending, without doubles."""
        kind, separator, rest = str(text).partition("=")
        if not separator or kind not in Targets.names:
            raise RecipeError(f"{where}: {shown(text)} is not a range of targets; {self.expected}")
        numbers = [n for word in _words(rest, where, self.expected) for n in _spread(word, points, where)]
        return kind, sorted({Targets().checked({kind: number}, where)[kind] for number in numbers})


def _words(text: Any, where: str, expected: str) -> Iterator[str]:
    if not isinstance(text, str) or not text.strip():
        raise RecipeError(f"{where}: {shown(text)} is not a range; {expected}")
    for word in text.split(","):
        yield word.strip()


def _spread(word: str, points: int, where: str) -> list[float]:
    """Return one number, or those of `LOW:HIGH` or `LOW:HIGH:N`, evenly spaced."""
    parts = word.split(":")
    try:
        numbers = [float(part) for part in parts[:2]]
        count = int(parts[2]) if len(parts) > 2 else points
    except ValueError:
        numbers, count = [], 0
    if not numbers or len(parts) > 3 or not 1 <= count <= _MOST_VALUES or numbers != sorted(numbers):
        raise RecipeError(f"{where}: {shown(word)} is not a number, LOW:HIGH or LOW:HIGH:N with LOW <= HIGH")
    if len(numbers) == 1:
        return numbers
    low, high = numbers
    if count == 1:
        return [round((low + high) / 2, 6)]
    return [round(low + (high - low) * step / (count - 1), 6) for step in range(count)]
