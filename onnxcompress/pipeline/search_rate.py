"""Which fraction of filters to try next, where the ranks of what is left reach one target whatever the fraction."""

from __future__ import annotations

import math
from collections.abc import Mapping

RATE_STEP = 0.03
"""Fractions that are closer to each other than this are not told apart."""

_MOST = 0.95
"""More filters are never tried, however little a target leaves."""

_WIDE = 4 * RATE_STEP
"""On a side as wide as this a valley can be much deeper than a parabola from its ends says."""

_GOLDEN = (3.0 - math.sqrt(5.0)) / 2.0
_LEAST_GAIN = 0.02
"""Of a distance's logarithm: less is not worth a trial."""


def next_rate(apart: Mapping[float, float], end: float) -> float | None:
    """Return the next fraction to try, None once the best is known to within a step.

    The distance of the answers is taken to fall towards one fraction and to grow beyond it: with fewer filters gone the
    ranks have to do what filters would do better, with more of them the filters do what ranks would. So the best lies
    between the neighbours of the best that was tried: where a parabola through the logarithms of the three is lowest,
    or, where one of them is not known or the parabola has nothing new to say and a neighbour is far away, at the golden
    section of the wider side.

    Args:
        apart: {fraction: how far the answers are from the original's}, infinite where ranks cannot reach the target.
        end: with so many filters gone hardly anything is left to the ranks.
    """
    rates, end = sorted(apart), min(end, _MOST)
    if not rates:
        return 0.0
    best = min(rates, key=apart.__getitem__)
    if apart[best] == 0.0:
        return None
    if apart[best] == math.inf:
        return _further(rates[-1], end)
    at = rates.index(best)
    before = max(at - 1, 0)
    low, high = rates[before], rates[at + 1] if at + 1 < len(rates) else end
    # At either end the parabola goes through the three there.
    first = max(min(before, len(rates) - 3), 0)
    three = {rate: math.log(apart[rate]) for rate in rates[first : first + 3]}
    if len(three) < 3 or math.inf in three.values():
        return _sectioned(low, best, high)
    where, gain = _lowest(three, best)
    if gain < _LEAST_GAIN or abs(best - where) < RATE_STEP or where < low:
        return _sectioned(low, best, high) if max(best - low, high - best) >= _WIDE else None
    low, high = (low, best) if where < best else (best, high)
    if high - low < 2 * RATE_STEP:
        return None
    return round(min(max(where, low + RATE_STEP), high - RATE_STEP), 2)


def _further(last: float, end: float) -> float | None:
    """Return what to try where nothing that was tried reaches the target."""
    left = end - last
    if left <= RATE_STEP:
        return None
    return round(end if left <= 2 * RATE_STEP else end - _GOLDEN * left, 2)


def _sectioned(low: float, best: float, high: float) -> float | None:
    """Return the golden section of the wider side of the best, None where both sides are narrow."""
    before, behind = best - low, high - best
    wider = max(before, behind)
    if wider < 2 * RATE_STEP:
        return None
    away = max(_GOLDEN * wider, RATE_STEP)
    return round(best - away if before > behind else best + away, 2)


def _lowest(three: Mapping[float, float], best: float) -> tuple[float, float]:
    """Return where a parabola through three points is lowest, and by how much; the best of them if it has no such."""
    (x1, y1), (x2, y2), (x3, y3) = three.items()
    rise, next_rise = (y2 - y1) / (x2 - x1), (y3 - y2) / (x3 - x2)
    bend = (next_rise - rise) / (x3 - x1)
    if bend <= 0.0:
        return best, 0.0
    where = (x1 + x2) / 2 - rise / (2 * bend)
    return where, bend * (best - where) ** 2
