"""Numbers of several kinds in one output, such as boxes in pixels beside scores from 0 to 1: each is judged by itself.

Kinds lie along an output's second axis or its last, (N, kinds, places...) or (N, places..., kinds), and differ in size,
by the mean square of what an entry of that axis holds:

- Probabilities, between 0 and 1 and hardly ever 0 as behind a Relu, are another kind than numbers at least twice as
  large. Where all numbers of an output lie between 0 and 1 they are of one kind: those near 0 say that something is not
  there.
- Of the other numbers small are those below the first gap, a factor of 10 in size in which nothing lies, as seen from
  the largest: along places numbers fade.

What an error weighs may be asked relative to how much the numbers vary over samples instead of to their size: boxes are
mostly the places of their anchors, the same in every answer, and beside the size of these an error of a whole box would
weigh hardly anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxcompress.linalg.spectrum import Matrix

_GAP, _GAP_TO_PROBABILITIES = 100.0, 4.0

_LEAST_SPREAD = 1e-10
"""Of energy, as a share: what varies less is constant but for the rounding of float32, and is judged by its size."""

_MOST_ZEROS = 0.01
"""Of probabilities. A sigmoid of onnxruntime gives 0 for what is very unlikely: 0.02 % of a class of a YOLOv8."""


@dataclass(frozen=True)
class Division:
    """Where numbers of different kinds lie in an output.

    Attributes:
        axis: along which they differ.
        kinds: the number of each entry's kind, (length,): 0 of the largest numbers, 1 of the next, and so on.
    """

    axis: int
    kinds: npt.NDArray[np.int64]

    @property
    def smaller(self) -> list[npt.NDArray[np.bool_]]:
        """Of each kind but the largest numbers', whether an entry belongs to it, (length,)."""
        return [np.asarray(self.kinds == kind) for kind in range(1, int(self.kinds.max()) + 1)]


@dataclass(frozen=True)
class _Along:
    """What the entries of an axis hold, each (length,).

    Attributes:
        count: of an entry's numbers.
        zeros: how many of them are 0.
        energies: sums of squares.
        spreads: sums of squares about the mean over samples; 0 where they are not asked for.
        lowest, highest: numbers.
    """

    count: int
    zeros: npt.NDArray[np.int64]
    energies: Matrix
    spreads: Matrix
    lowest: Matrix
    highest: Matrix

    def joined(self, other: _Along) -> _Along:
        """Return both together."""
        return _Along(
            self.count + other.count,
            self.zeros + other.zeros,
            self.energies + other.energies,
            self.spreads + other.spreads,
            np.minimum(self.lowest, other.lowest),
            np.maximum(self.highest, other.highest),
        )


class _Means:
    """Each number's mean over samples, as far as they were seen (T. F. Chan et al., Compstat 1982)."""

    def __init__(self) -> None:
        self._count = 0
        self._mean: Matrix | None = None

    def spread(self, rows: npt.NDArray[np.floating]) -> Matrix | None:
        """Take more samples in; return by how much they raise the sums of squares about the mean.

        Args:
            rows: (samples, ...).

        Returns:
            (...); None where the samples are of another shape than those before.
        """
        count = len(rows)
        mean = rows.mean(axis=0, dtype=np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            spread = np.square(rows - mean).sum(axis=0)
            if self._mean is None:
                self._count, self._mean = count, mean
                return np.asarray(spread)
            if self._mean.shape != mean.shape:
                return None
            total = self._count + count
            step = mean - self._mean
            self._mean = self._mean + step * (count / total)
            spread += np.square(step) * (self._count * count / total)
        self._count = total
        return np.asarray(spread)


class Sizes:
    """How large an output's numbers are, batch after batch.

    Args:
        about_mean: errors weigh relative to how much the numbers vary over samples, not to how large they are. One
            sample of the output is kept for it in float64. Where samples are not told apart, a batch counts as one;
            what never varies, and outputs of varying shape, are judged by their size.
    """

    def __init__(self, *, about_mean: bool = False) -> None:
        self._samples = 0
        self._energy = self._spread = 0.0
        self._dimensions = 0
        self._along: dict[int, _Along] = {}
        self._means = _Means() if about_mean else None

    def add(self, array: npt.NDArray[np.floating], samples: int) -> None:
        """Take the answers to so many samples in, (samples, ...) where samples are told apart."""
        first = self._samples == 0
        self._samples += samples
        self._dimensions = array.ndim
        squares = np.square(array, dtype=np.float64)
        self._energy += float(squares.sum())
        if array.size == 0:
            return
        spread = self._spread_of(array, samples)
        if spread is not None:
            self._spread += float(spread.sum())
        if array.ndim < 2:
            return
        for axis in {1, array.ndim - 1} if first else set(self._along):
            others = tuple(each for each in range(array.ndim) if each != axis)
            zeros, count = (array == 0.0).sum(axis=others), array.size // array.shape[axis]
            energies = squares.sum(axis=others)
            spreads = np.zeros_like(energies) if spread is None else spread.sum(axis=others)
            own = _Along(count, zeros, energies, spreads, array.min(axis=others), array.max(axis=others))
            known = self._along.get(axis)
            if known is None:
                self._along[axis] = own
            elif len(known.energies) == len(own.energies):
                self._along[axis] = known.joined(own)
            else:  # of varying length: there is nothing to add to
                del self._along[axis]

    def _spread_of(self, array: npt.NDArray[np.floating], samples: int) -> Matrix | None:
        """Return by how much a batch raises the sums of squares about the mean, of as many axes as the batch."""
        if self._means is None:
            return None
        apart = array.shape[:1] == (samples,)
        spread = self._means.spread(array if apart else array[None])
        if spread is None:
            self._means = None
            return None
        return spread[None] if apart else spread

    def division(self) -> Division | None:
        """Return where numbers of different kinds lie, None where all are of one kind."""
        if not math.isfinite(self._energy):
            return None
        found = {axis: _kinds(own) for axis, own in self._along.items()}
        axis = max(found, key=lambda each: found[each][1], default=None)
        return None if axis is None or not found[axis][1] else Division(axis, found[axis][0])

    def weights(self) -> Matrix:
        """Return weights of squared errors, broadcast over an output.

        A sample's sum of weighted squared errors is on average, over samples, the relative squared error: the mean of
        all kinds' where there are several. 0 where all are zero, or some are not finite.
        """
        division = self.division()
        if division is None:
            return np.full([1] * self._dimensions, _over(self._samples, self._judged(self._energy, self._spread)))
        along, kinds = self._along[division.axis], division.kinds
        sums = [
            self._judged(*map(float, both))
            for both in zip(np.bincount(kinds, along.energies), np.bincount(kinds, along.spreads), strict=True)
        ]
        weights = np.array([_over(self._samples, len(sums) * own) for own in sums])[kinds]
        return weights.reshape([-1 if axis == division.axis else 1 for axis in range(self._dimensions)])

    def _judged(self, energy: float, spread: float) -> float:
        """Return what errors are relative to, of these two."""
        return spread if self._means is not None and spread > _LEAST_SPREAD * energy else energy


def _kinds(along: _Along) -> tuple[npt.NDArray[np.int64], float]:
    """Return the kind of each entry of an axis, (length,), and the widest gap between two kinds; 0 of one kind."""
    energies = along.energies
    within = (along.lowest >= 0.0) & (along.highest <= 1.0)
    if within.all():
        return np.zeros(len(energies), np.int64), 0.0
    probable = within & (along.zeros <= _MOST_ZEROS * along.count)
    gap = _gap(energies, probable)
    if gap < _GAP_TO_PROBABILITIES:
        probable, gap = np.zeros_like(probable), 0.0
    least = _least_of_large(energies[~probable])
    small = ~probable & (energies < least)
    gap_of_small = _gap(energies[~probable], small[~probable])
    parts = [part for part in (~probable & ~small, small, probable) if part.any()]
    kinds = np.empty(len(energies), np.int64)
    for kind, part in enumerate(sorted(parts, key=lambda each: float(energies[each].mean()), reverse=True)):
        kinds[part] = kind
    return kinds, max(gap, gap_of_small)


def _least_of_large(energies: Matrix) -> float:
    """Return the energy (of those in (length,)) above the first gap, 0 where there is none."""
    descending = np.sort(energies[energies > 0.0])[::-1]
    (gaps,) = np.nonzero(descending[:-1] >= _GAP * descending[1:])
    return float(descending[gaps[0]]) if len(gaps) else 0.0


def _gap(energies: Matrix, small: npt.NDArray[np.bool_]) -> float:
    """Return how many times the small entries' largest energy (length,) fits into the others' smallest; 0 of none."""
    largest = float(energies[small].max(initial=0.0))
    return float(energies[~small].min(initial=math.inf)) / largest if largest > 0.0 and not small.all() else 0.0


def _over(samples: int, energy: float) -> float:
    return samples / energy if 0.0 < energy < math.inf else 0.0
