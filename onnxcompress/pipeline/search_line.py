"""Where to try next, on one line from the most that can be compressed to nothing compressed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

_ROUNDING = 1e-9
_USUAL_SLOPE = -10.0
"""Of a drop's logarithm over the share of MACs: -11 of a GoogLeNet, -9 of one for digits, from half of them on."""

_LEAST_AIMED, _MOST_AIMED = 0.25, 0.8
"""Of a drop: what few samples tell of it is not believed beyond."""


def next_position(
    drops: Mapping[float, float], limit: float, least: float, step: float, slope: float | None = None
) -> float | None:
    """Return the next position to try, None once the smallest that keeps the limit is known to within a step.

    The drop is taken to grow exponentially towards smaller positions, as it about does: so the position where it meets
    the limit lies between the two nearest to it that are known, or beyond the one. At least a step from each of them,
    so that what is left shrinks; in their middle where the drops tell nothing.

    Args:
        drops: {position: drop there}, infinite where the position cannot be reached. Position 1 compresses nothing.
        limit: the largest drop that is kept.
        least: the smallest position.
        slope: of the drop's logarithm over the position, from other lines, for where one position alone was tried.
    """
    high = min((at for at, drop in drops.items() if drop <= limit), default=1.0)
    low = max((at for at, drop in drops.items() if drop > limit and at < high), default=least)
    if high - low <= step + _ROUNDING:
        return None
    wished = (low + high) / 2
    if high - low >= 2 * step:
        met = _met(drops, limit, low, high, slope)
        wished = wished if met is None else min(max(met, low + step), high - step)
    return round(wished, 4)


def steepness(drops: Mapping[float, float]) -> float | None:
    """Return the slope of the drop's logarithm over the position, None unless it falls as it should."""
    known = {at: math.log(drop) for at, drop in drops.items() if 0.0 < drop < math.inf}
    if len(known) < 2:
        return None
    slope = statistics.linear_regression(list(known), list(known.values())).slope
    return slope if slope < 0.0 else None


def milder_position(position: float, aimed: float, slope: float | None, step: float) -> float | None:
    """Return where less is lost than at `position`: up to half of the way to nothing compressed, at least a step.

    Args:
        aimed: the share of the drop at `position` that may be left; no number counts as 0.
        slope: as in `next_position`; half of the way where it is not known.

    Returns:
        None where no step is left.
    """
    most = (1.0 - position) / 2
    if most < step:
        return None
    share = min(max(aimed, _LEAST_AIMED), _MOST_AIMED) if math.isfinite(aimed) else _LEAST_AIMED
    return round(position + (most if slope is None else min(max(math.log(share) / slope, step), most)), 4)


def _met(drops: Mapping[float, float], limit: float, low: float, high: float, slope: float | None) -> float | None:
    """Return where the drop meets the limit, None where that is not told."""
    of_low, of_high = drops.get(low), drops.get(high)
    known = of_low if of_high is None else of_high
    if known is None or not 0.0 < known < math.inf or not limit > 0.0:
        return None
    if of_low is None or of_high is None:
        own = steepness(drops) if len(drops) > 1 else slope or _USUAL_SLOPE
        return None if own is None else (low if of_high is None else high) + math.log(limit / known) / own
    if not of_high < of_low < math.inf:
        return None
    return high + (low - high) * math.log(limit / of_high) / math.log(of_low / of_high)
