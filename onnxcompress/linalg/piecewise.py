"""Functions of one number that are polynomials between breaks: what sums, products and bounds make of a number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.polynomial import polynomial

Coefficients = tuple[float, ...]
"""Of a polynomial, that of the lowest power first."""

_NOTHING = 1e-12
"""A coefficient below it is what rounding left of zero."""

_RELATIVE, _ABSOLUTE = 1e-6, 1e-7
"""What two coefficients may differ by where constants of single precision made them."""


@dataclass(frozen=True)
class Piecewise:
    """A function of x, one polynomial left of each break and one behind the last.

    Attributes:
        breaks: ascending, (n,).
        pieces: (n + 1,).
    """

    breaks: tuple[float, ...]
    pieces: tuple[Coefficients, ...]

    @classmethod
    def constant(cls, value: float) -> Piecewise:
        """Return the function that is `value` everywhere."""
        return cls((), ((float(value),),))

    @property
    def degree(self) -> int:
        """The highest power of any piece."""
        return max(len(piece) for piece in self.pieces) - 1

    @property
    def number(self) -> float | None:
        """The value of a function that has one value, None of any other."""
        return None if self.breaks or self.degree else self.pieces[0][0]

    def __call__(self, x: float) -> float:
        return float(polynomial.polyval(x, self._piece_at(x)))

    def __add__(self, other: Piecewise) -> Piecewise:
        return _combined(self, other, lambda one, two: _coefficients(polynomial.polyadd(one, two)))

    def __mul__(self, other: Piecewise) -> Piecewise:
        return _combined(self, other, lambda one, two: _coefficients(polynomial.polymul(one, two)))

    def scaled(self, factor: float) -> Piecewise:
        """Return the function times a number."""
        return self * Piecewise.constant(factor)

    def larger(self, other: Piecewise) -> Piecewise:
        """Return the larger of two functions, place by place."""
        difference = self + other.scaled(-1.0)
        breaks = sorted({*difference.breaks, *_crossings(difference)})
        pieces = [(self if difference(x) >= 0.0 else other)._piece_at(x) for x in _places_between(breaks)]
        return _simplified(breaks, pieces)

    def smaller(self, other: Piecewise) -> Piecewise:
        """Return the smaller of two functions, place by place."""
        return self.scaled(-1.0).larger(other.scaled(-1.0)).scaled(-1.0)

    def is_close(self, other: Piecewise) -> bool:
        """Whether both are one function, the rounding of constants apart."""
        return (
            len(self.breaks) == len(other.breaks)
            and _are_close(self.breaks, other.breaks)
            and all(_are_close(*pair) for pair in zip(self.pieces, other.pieces, strict=True))
        )

    def _piece_at(self, x: float) -> Coefficients:
        return self.pieces[int(np.searchsorted(self.breaks, x))]


X = Piecewise((), ((0.0, 1.0),))
"""The function that gives its argument."""


def _combined(
    one: Piecewise, two: Piecewise, operation: Callable[[Coefficients, Coefficients], Coefficients]
) -> Piecewise:
    breaks = sorted({*one.breaks, *two.breaks})
    pieces = [operation(one._piece_at(x), two._piece_at(x)) for x in _places_between(breaks)]
    return _simplified(breaks, pieces)


def _places_between(breaks: Sequence[float]) -> list[float]:
    """Return a place in each interval between breaks, and outside of the first and the last."""
    if not breaks:
        return [0.0]
    middles = [(left + right) / 2 for left, right in pairwise(breaks)]
    return [breaks[0] - 1.0, *middles, breaks[-1] + 1.0]


def _crossings(function: Piecewise) -> list[float]:
    """Return where the pieces of a function are zero, each inside its own interval."""
    ends = [-np.inf, *function.breaks, np.inf]
    found: list[float] = []
    for (left, right), piece in zip(pairwise(ends), function.pieces, strict=True):
        roots = polynomial.polyroots(piece) if len(piece) > 1 else np.zeros(0)
        real = np.real(roots[np.abs(np.imag(roots)) < _NOTHING])
        found += [float(root) for root in real if left < root < right]
    return found


def _simplified(breaks: Sequence[float], pieces: Sequence[Coefficients]) -> Piecewise:
    """Return the function without breaks that divide nothing."""
    kept_breaks: list[float] = []
    kept = [pieces[0]]
    for at, piece in zip(breaks, pieces[1:], strict=True):
        if not _are_close(piece, kept[-1], 0.0, _NOTHING):
            kept_breaks.append(float(at))
            kept.append(piece)
    return Piecewise(tuple(kept_breaks), tuple(kept))


def _coefficients(values: Iterable[float]) -> Coefficients:
    found = [float(value) for value in values]
    while len(found) > 1 and abs(found[-1]) < _NOTHING:
        found.pop()
    return tuple(found)


def _are_close(
    one: Sequence[float], two: Sequence[float], relative: float = _RELATIVE, absolute: float = _ABSOLUTE
) -> bool:
    """Whether coefficients are equal but for rounding; those that one lacks are zero."""
    length = max(len(one), len(two))
    first, second = ([*each, *[0.0] * (length - len(each))] for each in (one, two))
    return bool(np.allclose(first, second, rtol=relative, atol=absolute))
