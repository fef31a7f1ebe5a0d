"""How far a network's outputs are from the original's, as numbers: what every network can be judged by.

    ||original - compressed|| / ||original||

over all samples, of the output where it is largest, and of smaller numbers alone where an output holds several kinds
(`linalg.sizes`); of whole numbers and truth values, such as the classes of pixels, the share that differs, or 1 - IoU
of the class that differs most (`class_errors`). Such a share, and the error's square, is a ratio of two sums over
samples, so its scatter follows by linearisation (W. G. Cochran, Sampling Techniques, 1977, chapter 6).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from onnxcompress.evaluation import intervals
from onnxcompress.evaluation.class_errors import ClassCounts, OneClass
from onnxcompress.linalg.sizes import Division
from onnxcompress.runtime.tensors import Array

Rows = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SmallNumbers:
    """The small numbers of an output that holds larger ones, too: scores beside boxes in pixels, say.

    Attributes:
        axis: along which numbers are of several kinds.
        count: entries of this kind, of the `length` that the axis has.
        first: the first of them, from 0.
    """

    axis: int
    count: int
    length: int
    first: int

    def __str__(self) -> str:
        return f"{self.count} of {self.length} along axis {self.axis}, from {self.first} on"


@dataclass(frozen=True)
class RelativeError:
    """The error of the output where it is largest.

    Attributes:
        output: its name.
        value: a share, 0.05 for 5 %; infinite where an output holds NaN or infinity, or is not zero as the original's.
        interval: 95 %, as shares; None of fewer than two samples, or where there is nothing to tell it from.
        standard_error: of the value; 0 where there is no interval.
        part: of the output that the error is of; None: of the whole.
    """

    output: str
    value: float
    interval: intervals.Interval | None
    standard_error: float
    part: SmallNumbers | OneClass | None = None

    @property
    def bound(self) -> float:
        """The value with one standard error on top."""
        return self.value + self.standard_error


_Key = tuple[str, SmallNumbers | None]
"""An output, and which part of it."""


class ErrorTally:
    """Squared errors and energies of outputs, sample by sample; a batch counts as one where samples are not told apart.

    Args:
        divisions: {output: where numbers of several kinds lie}: smaller ones are judged by themselves, too.

    Attributes:
        apart: outputs that were missing or had another shape than the original's on some samples; they are left out.
    """

    def __init__(self, divisions: Mapping[str, Division] | None = None) -> None:
        self.apart: set[str] = set()
        self._divisions = dict(divisions or {})
        self._missed: dict[_Key, list[Rows]] = {}
        self._energies: dict[_Key, list[Rows]] = {}
        self._powers: dict[str, float] = {}
        self._classes: dict[str, ClassCounts] = {}

    @property
    def compared(self) -> set[str]:
        """The outputs that had the original's shape on all samples."""
        return {name for name, _ in self._missed} - self.apart

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
            self._powers[name], *both = _compared(first, np.where(is_number[:, None], second, 0))
            missed, energies = (each.reshape(reference.shape) for each in both)
            self._add((name, None), rows, is_number, missed, energies)
            if reference.dtype.kind in "iub":
                self._classes.setdefault(name, ClassCounts()).add(first, second)
            division = self._divisions.get(name)
            if division is None:
                continue
            for chosen in division.smaller:
                small = SmallNumbers(division.axis, int(chosen.sum()), len(chosen), int(chosen.argmax()))
                parts = (np.compress(chosen, each, axis=division.axis) for each in (missed, energies))
                self._add((name, small), rows, is_number, *parts)
        return finite

    def _add(self, key: _Key, rows: int, is_number: Array, missed: Array, energies: Array) -> None:
        """Take in what each element adds to the two sums; `is_number` (rows,)."""
        sums = (each.reshape(rows, each.size // rows).sum(axis=1) for each in (missed, energies))
        missed, energies = sums
        self._missed.setdefault(key, []).append(np.where(is_number, missed, np.inf))
        self._energies.setdefault(key, []).append(energies)

    def result(self) -> RelativeError | None:
        """Return the largest error, None where no output could be compared."""
        errors = []
        for key, missed in self._missed.items():
            name, part = key
            if name not in self.apart:
                sums = np.concatenate(missed), np.concatenate(self._energies[key])
                errors.append(replace(_relative_error(name, *sums, self._powers[name]), part=part))
        for name, counts in self._classes.items():
            for own, differing, either in [] if name in self.apart else counts.errors():
                errors.append(replace(_relative_error(name, differing, either, 1.0), part=own))
        return max(errors, key=lambda each: each.value, default=None)


def _compared(first: Array, second: Array) -> tuple[float, Array, Array]:
    """Return the power that makes a ratio of sums an error, and what each element adds to the two sums, as given."""
    if first.dtype.kind != "f":
        return 1.0, first != second, np.broadcast_to(1.0, first.shape)
    wide = first.astype(np.float64)
    return 0.5, np.square(second.astype(np.float64) - wide), np.square(wide)


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
