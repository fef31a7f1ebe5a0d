"""Streaming histograms of a tensor's values, and the range that quantises them at the least squared error.

For a range [low, high] cut into 2^bits - 1 equal steps, a value inside is off by its rounding, step^2 / 12 on average,
and a value outside by its distance to the range (Choukroun et al., Low-bit Quantization of Neural Networks for
Efficient Inference, ICCVW 2019). Zeros, which a rectifier makes in great number, are met exactly and cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]
Curve = Callable[[Numbers], Numbers]
"""From values (n,) to what is made of each, (n,)."""

BINS = 2048
"""Bins on either side of zero."""

_SHARES = np.concatenate([np.geomspace(0.02, 0.5, 24), np.linspace(0.5, 1.0, 51)[1:]])
"""Ends of a range that are tried, as shares of the largest value on their side."""


@dataclass(frozen=True)
class Range:
    """A range for quantisation.

    Attributes:
        low, high: low <= 0 <= high.
        error: the expected squared error relative to the values' own mean square.
        lost: share of the values other than 0 that become 0.
    """

    low: float
    high: float
    error: float
    lost: float


class Histogram:
    """Counts of values in bins of one width, 2^k, aligned at zero; the bins widen as larger values come."""

    def __init__(self) -> None:
        self.width = 0.0
        self.low = self.high = 0.0
        self.zeros = 0
        self._counts: Counts = np.zeros(2 * BINS, np.int64)

    def add(self, values: npt.NDArray[Any], most: int | None = None) -> None:
        """Count values, all finite, of any shape; of more than `most` only so many, evenly spread.

        The smallest and the largest are found among all of them.
        """
        flat = values.reshape(-1)
        if flat.size == 0:
            return
        self.low, self.high = min(self.low, float(flat.min())), max(self.high, float(flat.max()))
        if most is not None and flat.size > most:
            flat = flat[:: -(-flat.size // most)]
        largest = max(-self.low, self.high)
        self.zeros += int(np.count_nonzero(flat == 0))
        flat = flat[flat != 0]
        if largest == 0.0 or flat.size == 0:
            return
        self._widen(largest)
        bins = np.floor(flat.astype(np.float64) / self.width).astype(np.int64) + BINS
        # The largest value itself may stand on the last bin's upper edge.
        self._counts += np.bincount(np.clip(bins, 0, 2 * BINS - 1), minlength=2 * BINS)

    @property
    def count(self) -> int:
        """How many values were counted."""
        return int(self._counts.sum()) + self.zeros

    def best_range(self, *, bits: int = 8, symmetric: bool = False, curve: Curve | None = None) -> Range:
        """Return the range of the least squared error.

        Args:
            bits: of the integers.
            symmetric: whether zero stands in the middle, as signed integers without a zero point have it.
            curve: what is made of each value, where nothing else counts: the error is its error.

        Raises:
            ValueError: nothing was counted.
        """
        if self.count == 0:
            raise ValueError("no values were counted")
        if self.width == 0.0:
            return Range(0.0, 0.0, 0.0, 0.0)
        steps = 2**bits - 2 if symmetric else 2**bits - 1
        if symmetric:
            highs = _SHARES * max(-self.low, self.high)
            lows = -highs
        else:
            ends_low = _SHARES * self.low if self.low < 0 else np.zeros(1)
            ends_high = _SHARES * self.high if self.high > 0 else np.zeros(1)
            lows, highs = (grid.reshape(-1) for grid in np.meshgrid(ends_low, ends_high, indexing="ij"))
        squared, power = self._squared_errors(lows, highs, (highs - lows) / steps, curve)
        # Of equal errors the widest range: nothing is cut that need not be.
        best = len(squared) - 1 - int(np.argmin(squared[::-1]))
        low, high = float(lows[best]), float(highs[best])
        lost = self._share_below((high - low) / steps / 2)
        return Range(low, high, float(squared[best]) / power if power > 0 else 0.0, lost)

    @cached_property
    def _numbers(self) -> Numbers:
        return np.arange(2 * BINS, dtype=np.float64) - BINS + 0.5

    @property
    def _centres(self) -> Numbers:
        return self._numbers * self.width

    def _widen(self, largest: float) -> None:
        if self.width == 0.0:
            self.width = 2.0 ** np.ceil(np.log2(largest / BINS))
        while largest > BINS * self.width:
            merged = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts = np.zeros_like(self._counts)
            self._counts[BINS // 2 : BINS // 2 + BINS] = merged
            self.width *= 2.0

    def _squared_errors(
        self, lows: Numbers, highs: Numbers, step: Numbers, curve: Curve | None
    ) -> tuple[Numbers, float]:
        """Return the summed squared errors of ranges, by rounding inside and cutting outside, and of all values."""
        centres, counts = self._centres, self._counts
        values, at_lows, at_highs, slopes = centres, lows, highs, np.ones_like(centres)
        if curve is not None:
            edges = np.append(centres - self.width / 2, centres[-1] + self.width / 2)
            points = (centres, lows, highs, edges)
            made = curve(np.concatenate(points))
            if np.isfinite(made).all():  # not so of a pole, or what overflows
                ends = np.cumsum([len(each) for each in points[:-1]])
                values, at_lows, at_highs, at_edges = np.split(made, ends)
                slopes = np.square(np.diff(at_edges) / self.width)
        above, rounded_high = _cut(counts, centres, highs, values, at_highs, slopes)
        below, rounded_low = _cut(counts[::-1], -centres[::-1], -lows, values[::-1], at_lows, slopes[::-1])
        rounded = rounded_high + rounded_low - (counts * slopes).sum()
        squared = above + below + np.maximum(rounded, 0) * step**2 / 12.0
        return np.asarray(squared, np.float64), float((counts * values**2).sum())

    def _share_below(self, limit: float) -> float:
        total = self._counts.sum()
        return float(self._counts[np.abs(self._centres) < limit].sum() / total) if total else 0.0


def _cut(
    counts: Counts, centres: Numbers, ends: Numbers, values: Numbers, at_ends: Numbers, slopes: Numbers
) -> tuple[Numbers, Numbers]:
    """Return, for each end, the squared distances of the values of what lies above it, summed, and the slopes below.

    Args:
        counts: of each bin.
        centres: of the bins, ascending.
        values, slopes: what is made of a bin's centre, and the squared slope there.
        at_ends: what is made of each end.
    """
    sums = [np.concatenate([np.cumsum((counts * values**power)[::-1])[::-1], [0.0]]) for power in (0, 1, 2)]
    first = np.searchsorted(centres, ends, side="right")
    number, total, squares = (part[first] for part in sums)
    below = np.concatenate([[0.0], np.cumsum(counts * slopes)])[first]
    return np.maximum(squares - 2 * at_ends * total + at_ends**2 * number, 0.0), below
