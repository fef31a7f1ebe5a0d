"""Numbers of two sizes in one output, such as boxes in pixels beside scores from 0 to 1: each kind is judged by itself.

Kinds lie along an output's second axis or its last, (N, kinds, places...) or (N, places..., kinds). Small are entries
of it whose mean square is below 1e-4 of the largest one's: numbers a hundredth as large. They are another kind where
nothing lies between, a factor of 100 in the mean square: along places numbers fade. Where all numbers of an output lie
between 0 and 1 they are of one kind: those near 0 say that something is not there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxcompress.linalg.spectrum import Matrix

_SMALL, _GAP = 1e-4, 100.0


@dataclass(frozen=True)
class Division:
    """Where the small numbers of an output lie.

    Attributes:
        axis: along which numbers are of two sizes.
        small: whether an entry of that axis holds small ones, (length,).
    """

    axis: int
    small: npt.NDArray[np.bool_]


class Sizes:
    """How large an output's numbers are, batch after batch."""

    def __init__(self) -> None:
        self._samples = 0
        self._energy = 0.0
        self._dimensions = 0
        self._along: dict[int, Matrix] = {}
        self._lowest, self._highest = math.inf, -math.inf

    def add(self, array: npt.NDArray[np.floating], samples: int) -> None:
        """Take the answers to so many samples in, (samples, ...) where samples are told apart."""
        first = self._samples == 0
        self._samples += samples
        self._dimensions = array.ndim
        squares = np.square(array, dtype=np.float64)
        self._energy += float(squares.sum())
        if array.size == 0 or array.ndim < 2:
            return
        self._lowest, self._highest = min(self._lowest, float(array.min())), max(self._highest, float(array.max()))
        for axis in {1, array.ndim - 1} if first else set(self._along):
            energies = squares.sum(axis=tuple(each for each in range(array.ndim) if each != axis))
            known = self._along.get(axis)
            if known is None:
                self._along[axis] = energies
            elif len(known) == len(energies):
                self._along[axis] = known + energies
            else:  # of varying length: there is nothing to add to
                del self._along[axis]

    def division(self) -> Division | None:
        """Return where the small numbers lie, None where all are of one kind."""
        if not math.isfinite(self._energy) or (self._lowest >= 0.0 and self._highest <= 1.0):
            return None
        gaps = {axis: _gap(energies) for axis, energies in self._along.items()}
        axis = max(gaps, key=lambda each: gaps[each], default=None)
        if axis is None or gaps[axis] < _GAP:
            return None
        return Division(axis, _is_small(self._along[axis]))

    def weights(self) -> Matrix:
        """Return weights of squared errors, broadcast over an output.

        A sample's sum of weighted squared errors is on average, over samples, the relative squared error: the mean of
        the small and the large numbers' where there are two kinds. 0 where all are zero, or some are not finite.
        """
        division = self.division()
        if division is None:
            return np.full([1] * self._dimensions, _over(self._samples, self._energy))
        energies = self._along[division.axis]
        weights = np.empty(len(energies))
        for part in (division.small, ~division.small):
            weights[part] = _over(self._samples, 2.0 * float(energies[part].sum()))
        return weights.reshape([-1 if axis == division.axis else 1 for axis in range(self._dimensions)])


def _is_small(energies: Matrix) -> npt.NDArray[np.bool_]:
    return np.asarray(energies < _SMALL * energies.max())


def _gap(energies: Matrix) -> float:
    """Return how many times the small entries' largest energy (length,) fits into the others' smallest; 0 of none."""
    small = _is_small(energies)
    largest = float(energies[small].max(initial=0.0))
    return float(energies[~small].min()) / largest if largest > 0.0 else 0.0


def _over(samples: int, energy: float) -> float:
    return samples / energy if 0.0 < energy < math.inf else 0.0
