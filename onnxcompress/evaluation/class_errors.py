"""How far outputs that hold a class for each of many elements, such as pixels, are from the original's, by class.

Of a class the error is 1 - IoU, what only one of the models gives to it over what either does: a rare class that is
gone differs by 100 %, while the share of all elements that differ is no more than how rare it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxcompress.runtime.tensors import Array

Rows = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

_MOST_CLASSES, _WIDEST = 200, 1024
"""Distinct values of the original, and how far apart the outermost may be (255 often says `none`): more than that are
numbers, such as a picture's, not classes."""

_LEAST_SHARE, _FEWEST_ELEMENTS, _FEWEST_SAMPLES = 0.001, 100, 5
"""That a class must have to be judged by itself. Of fewer elements single ones would make the error, and where one or
two samples have a class, it cannot be told how its error scatters."""


@dataclass(frozen=True)
class OneClass:
    """A class of an output of whole numbers or truth values.

    Attributes:
        value: that stands for it, 0 or 1 for a truth value.
        share: of the original's elements that have it.
    """

    value: int
    share: float

    def __str__(self) -> str:
        return f"class {self.value} ({100.0 * self.share:.2g} % of all)"


@dataclass(frozen=True)
class _Batch:
    """Elements of each class, by sample: of `values` (K,) as many as the others have columns, (samples, K)."""

    values: Counts
    first: Counts
    differing: Counts
    either: Counts


class ClassCounts:
    """Elements of each class in one output of two models, sample by sample."""

    def __init__(self) -> None:
        self._batches: list[_Batch] = []
        self._elements = 0
        self._are_classes = True

    def add(self, first: Array, second: Array) -> None:
        """Take in what the original and the other model give, (samples, elements) each."""
        if not self._are_classes or first.size == 0:
            return
        low, high = min(int(first.min()), int(second.min())), max(int(first.max()), int(second.max()))
        # One class for each sample is an answer as a whole: the share that differs says all.
        if second.dtype.kind not in "iub" or first.shape[1] < 2 or high - low >= _WIDEST:
            self._are_classes, self._batches = False, []
            return
        counts = [_counted(*pair, low, high - low + 1) for pair in zip(first, second, strict=True)]
        one, two, both = np.stack(counts, axis=1)
        either = one + two - both
        (used,) = np.nonzero(either.any(axis=0))
        self._batches.append(_Batch(used + low, one[:, used], (either - both)[:, used], either[:, used]))
        self._elements += first.size

    def errors(self) -> list[tuple[OneClass, Rows, Rows]]:
        """Return the classes that can be judged by themselves, each with what samples add to its error, (samples,).

        Elements that only one of the models gives to it, and those that either does.
        """
        values = sorted({value for each in self._batches for value in each.values[each.first.any(axis=0)].tolist()})
        if len(values) > _MOST_CLASSES:
            return []
        found = []
        for value in values:
            first, differing, either = (
                np.concatenate([_column(each.values, counts, value) for each, counts in pairs])
                for pairs in (
                    [(each, each.first) for each in self._batches],
                    [(each, each.differing) for each in self._batches],
                    [(each, each.either) for each in self._batches],
                )
            )
            count, samples = int(first.sum()), int(np.count_nonzero(first))
            if count < max(_FEWEST_ELEMENTS, _LEAST_SHARE * self._elements):
                continue
            if samples >= min(_FEWEST_SAMPLES, len(first)):
                found.append((OneClass(value, count / self._elements), differing, either))
        return found


def _counted(first: Array, second: Array, low: int, width: int) -> Counts:
    """Return how many elements of a sample (elements,) have each value from `low` on: in each, and in both.

    Returns:
        (3, width).
    """
    # In 64 bits: values of eight would run over.
    own, other = (each.astype(np.int64) - low for each in (first, second))
    return np.stack([np.bincount(each, minlength=width) for each in (own, other, own[own == other])])


def _column(values: Counts, counts: Counts, value: int) -> Rows:
    """Return the column (samples,) of a value; zeros where a batch lacks it."""
    return np.asarray(counts[:, values == value].sum(axis=1), np.float64)
