"""How far a network's outputs are from the original's, as numbers: what every network can be judged by.

    ||original - compressed|| / ||original||

over all samples, of the output where it is largest; of whole numbers and truth values, such as the classes of pixels,
the share that differs. Such a share, and the error's square, is a ratio of two sums over samples, so its scatter
follows by linearisation (W. G. Cochran, Sampling Techniques, 1977, chapter 6).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxcompress.evaluation import intervals
from onnxcompress.evaluation.metrics import are_probabilities
from onnxcompress.runtime.tensors import Array

Rows = npt.NDArray[np.float64]

_SMALL = 1e-4
"""Numbers whose mean square is below this share of the largest's, in one output, hide in its error."""

_WORTH_TELLING, _TIMES_LARGER = 0.1, 3.0
"""An error that hides is told from this value on, where it is so many times that of the whole output."""


@dataclass(frozen=True)
class HiddenError:
    """The error of small numbers beside large ones, as of scores beside boxes in pixels, which the whole's hides.

    Attributes:
        output: name of the output.
        axis: along which numbers are of different size; `small` of its `length` entries are.
        value: of the small ones alone, a share.
    """

    output: str
    axis: int
    small: int
    length: int
    value: float


@dataclass(frozen=True)
class RelativeError:
    """The error of the output where it is largest.

    Attributes:
        output: its name.
        value: a share, 0.05 for 5 %; infinite where an output holds NaN or infinity, or is not zero as the original's.
        interval: 95 %, as shares; None of fewer than two samples, or where there is nothing to tell it from.
        standard_error: of the value; 0 where there is no interval.
    """

    output: str
    value: float
    interval: intervals.Interval | None
    standard_error: float

    @property
    def bound(self) -> float:
        """The value with one standard error on top."""
        return self.value + self.standard_error


class ErrorTally:
    """Squared errors and energies of outputs, sample by sample; a batch counts as one where samples are not told apart.

    Attributes:
        apart: outputs that were missing or had another shape than the original's on some samples; they are left out.
    """

    def __init__(self) -> None:
        self.apart: set[str] = set()
        self._missed: dict[str, list[Rows]] = {}
        self._energies: dict[str, list[Rows]] = {}
        self._powers: dict[str, float] = {}
        self._along: dict[tuple[str, int], tuple[Rows, Rows] | None] = {}

    def add(self, samples: int, expected: Mapping[str, Array], seen: Mapping[str, Array]) -> npt.NDArray[np.bool_]:
        """Take a batch in; return which of its samples are finite in all outputs of `seen`, (samples,)."""
        finite = np.ones(samples, np.bool_)
        for name, reference in expected.items():
            if name not in seen or seen[name].shape != reference.shape:
                self.apart.add(name)
                continue
            rows = samples if reference.shape[:1] == (samples,) else 1
            shape = rows, reference.size // rows
            first, second = reference.reshape(shape), seen[name].reshape(shape)
            is_number = np.asarray(np.isfinite(second).all(axis=1))
            finite &= is_number
            second = np.where(is_number[:, None], second, 0)
            self._powers[name], missed, energies = _compared(first, second)
            if reference.size and math.prod(reference.shape[2:]) > 1 and reference.dtype.kind == "f":
                self._add_along(name, reference, missed, energies)
            self._missed.setdefault(name, []).append(np.where(is_number, missed.sum(axis=1), np.inf))
            self._energies.setdefault(name, []).append(energies.sum(axis=1))
        return finite

    def hidden(self) -> tuple[HiddenError, ...]:
        """Return the errors that others hide, of outputs (N, C, ...) along the second axis or the last.

        Not along one over which probabilities sum to one: there small numbers are classes that are not seen.
        """
        found = (
            _hidden_error(name, axis, *sums)
            for (name, axis), sums in self._along.items()
            if sums is not None and name not in self.apart
        )
        return tuple(each for each in found if each is not None)

    def _add_along(self, name: str, reference: Array, missed: Array, energies: Array) -> None:
        for axis in {1, reference.ndim - 1}:
            length = reference.shape[axis]
            if (name, axis) not in self._along:
                is_distribution = are_probabilities(np.moveaxis(reference, axis, -1).reshape(-1, length))
                self._along[name, axis] = None if is_distribution else (np.zeros(length), np.zeros(length))
            known = self._along[name, axis]
            if known is None:
                continue
            if len(known[0]) != length:  # of varying length: there is nothing to add to
                self._along[name, axis] = None
                continue
            others = tuple(each for each in range(reference.ndim) if each != axis)
            error, energy = (each.reshape(reference.shape).sum(axis=others) for each in (missed, energies))
            self._along[name, axis] = known[0] + error, known[1] + energy

    def result(self) -> RelativeError | None:
        """Return the largest error, None where no output could be compared."""
        errors = [
            _relative_error(name, np.concatenate(missed), np.concatenate(self._energies[name]), self._powers[name])
            for name, missed in self._missed.items()
            if name not in self.apart
        ]
        return max(errors, key=lambda each: each.value, default=None)


def _compared(first: Array, second: Array) -> tuple[float, Array, Array]:
    """Return the power that makes a ratio of sums an error, and what each element adds to the two sums, as given."""
    if first.dtype.kind != "f":
        return 1.0, first != second, np.broadcast_to(1.0, first.shape)
    wide = first.astype(np.float64)
    return 0.5, np.square(second.astype(np.float64) - wide), np.square(wide)


def _hidden_error(name: str, axis: int, missed: Rows, energies: Rows) -> HiddenError | None:
    """Return the error that is hidden along an axis of an output, told by sums at each of its entries, (length,)."""
    small = energies < _SMALL * energies.max(initial=0.0)
    error, energy = float(missed[small].sum()), float(energies[small].sum())
    if not energy > 0.0:
        return None
    value, whole = math.sqrt(error / energy), math.sqrt(float(missed.sum()) / float(energies.sum()))
    is_told = value >= _WORTH_TELLING and value >= _TIMES_LARGER * whole
    return HiddenError(name, axis, int(small.sum()), len(small), value) if is_told else None


def _relative_error(output: str, missed: Rows, energies: Rows, power: float) -> RelativeError:
    """Return the error of one output from what its samples add to the two sums, (n,)."""
    error, whole = float(missed.sum()), float(energies.sum())
    ratio = error / whole if whole > 0.0 else math.inf
    value = ratio**power if error > 0.0 else 0.0
    if len(missed) < 2 or math.isinf(value):
        return RelativeError(output, value, None, 0.0)
    if value == 0.0:
        return RelativeError(output, value, (0.0, 0.0), 0.0)
    scatter = math.sqrt(len(missed)) * float((missed - ratio * energies).std(ddof=1)) / whole
    standard_error = power * scatter * value / ratio
    return RelativeError(output, value, intervals.positive(value, standard_error), standard_error)
