"""Second moments of inputs and targets: all that a linear least-squares problem needs of its data.

Products are taken in float32 a block of rows at a time and summed in float64: the rounding of a block does not grow
with the number of rows, and float32 products take half the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcompress.linalg.parallel import parallel_map
from onnxcompress.linalg.spectrum import Matrix

Rows = npt.NDArray[np.float32]
"""Samples in rows, (n, features)."""

_BLOCK_ROWS = 2048

_SUMMED_ROWS = 64

_FEW_COLUMNS = 64

_SAME_PRODUCT = 1e-12
"""Of rows with random numbers, relative to their size: what is closer comes from the same row."""


@dataclass
class Moments:
    """Sums over n samples of inputs x (D,) and targets y (O,).

    Attributes:
        count: n.
        sum_x: (D,).
        sum_y: (O,).
        xx: sum of x x^T, (D, D).
        xy: sum of x y^T, (D, O).
        yy: sum of y^2, (O,).
    """

    count: int
    sum_x: Matrix
    sum_y: Matrix
    xx: Matrix
    xy: Matrix
    yy: Matrix

    def take(self, x: Rows, y: Rows) -> None:
        """Take further samples in, `x` (n, D) and `y` (n, O), in place: these matrices are large.

        Raises:
            OverflowError: they are so large that sums of their squares are infinite.
        """
        self.count += len(x)
        self.yy += _sizes(y)
        for at in _blocks(len(x)):
            self.xx += _square(x[at])
            self.xy += _product(x[at], y[at])
        self.sum_x += column_sums(x)
        self.sum_y += column_sums(y)

    def centred(self) -> Covariances:
        """Return means and covariances: with the means taken out, an affine fit's constant follows from the slope.

        Raises:
            ValueError: no samples were seen.
        """
        if self.count == 0:
            raise ValueError("no samples were seen")
        return self._about(self.sum_x / self.count, self.sum_y / self.count)

    def about_zero(self) -> Covariances:
        """Return second moments with means of zero, for a fit without a constant.

        Raises:
            ValueError: no samples were seen.
        """
        if self.count == 0:
            raise ValueError("no samples were seen")
        return self._about(np.zeros_like(self.sum_x), np.zeros_like(self.sum_y))

    def _about(self, mean_x: Matrix, mean_y: Matrix) -> Covariances:
        return Covariances(
            count=self.count,
            mean_x=mean_x,
            mean_y=mean_y,
            xx=self.xx / self.count - np.outer(mean_x, mean_x),
            xy=self.xy / self.count - np.outer(mean_x, mean_y),
            yy=np.maximum(self.yy / self.count - mean_y**2, 0.0),
        )


@dataclass(frozen=True)
class Covariances:
    """Means and covariances of inputs x (D,) and targets y (O,); shapes as in `Moments`."""

    count: int
    mean_x: Matrix
    mean_y: Matrix
    xx: Matrix
    xy: Matrix
    yy: Matrix

    @classmethod
    def pooled(cls, parts: Sequence[Covariances]) -> Covariances:
        """Return means over the samples of all parts, and covariances within them."""
        if len(parts) == 1:
            return parts[0]
        count = sum(part.count for part in parts)
        weights = [part.count / count for part in parts]

        def mean(name: str) -> Matrix:
            return sum((weight * getattr(part, name) for weight, part in zip(weights, parts, strict=True)), np.zeros(1))

        return cls(count, *(mean(name) for name in ("mean_x", "mean_y", "xx", "xy", "yy")))

    def errors(self, slope: Matrix) -> Matrix:
        """Return the mean squared error of `x @ slope + constant`, with the best constant, for each target, (O,).

        Args:
            slope: (D, O).
        """
        explained = np.einsum("do,do->o", slope, 2.0 * self.xy - self.xx @ slope)
        errors: Matrix = np.maximum(self.yy - explained, 0.0)
        return errors

    def shrunk(self) -> Covariances:
        """Return these with `xx` drawn towards a multiple of the identity, the more the fewer the samples.

        Fewer samples than inputs leave directions in which nothing seems to vary; here these keep their part. The
        weight is that of the oracle approximating shrinkage (Chen, Wiesel, Eldar and Hero, Shrinkage Algorithms for
        MMSE Covariance Estimation, IEEE TSP 2010).
        """
        size = len(self.xx)
        trace, squares = float(np.trace(self.xx)), float(np.square(self.xx).sum())
        spread = squares - trace**2 / size
        weight = 1.0
        if spread > 0.0:
            weight = min(1.0, ((1.0 - 2.0 / size) * squares + trace**2) / ((self.count + 1.0 - 2.0 / size) * spread))
        return replace(self, xx=(1.0 - weight) * self.xx + weight * trace / size * np.eye(size))

    def constant(self, slope: Matrix) -> Matrix:
        """Return the constant that goes with a slope (D, O), shape (O,)."""
        constant: Matrix = self.mean_y - self.mean_x @ slope
        return constant


class Inputs:
    """Inputs x (n, D) of one or several problems: what all of them need is found once, and threads may ask for it."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self._lock = Lock()
        self._sums: tuple[Matrix, Matrix] | None = None
        self._distinct: int | None = None

    def sums(self) -> tuple[Matrix, Matrix]:
        """Return the sums of x, (D,), and of x x^T, (D, D).

        Raises:
            OverflowError: they are infinite.
        """
        with self._lock:
            if self._sums is None:
                xx = _squares(self.rows)  # refuses values whose sums would overflow, too
                self._sums = column_sums(self.rows), xx
            return self._sums

    def distinct(self) -> int:
        """Return how many rows differ from each other."""
        with self._lock:
            if self._distinct is None:
                self._distinct = distinct_rows(self.rows)
            return self._distinct


def accumulate(x: Rows, y: Rows) -> Moments:
    """Return the moments of samples: `x` (n, D) and `y` (n, O).

    Raises:
        OverflowError: they are so large that sums of their squares are infinite.
    """
    return joint_moments(Inputs(x), y)


def joint_moments(inputs: Inputs, y: Rows) -> Moments:
    """Return the moments of inputs x (n, D) and targets `y` (n, O); those of x alone are the inputs' own arrays.

    Raises:
        OverflowError: they are so large that sums of their squares are infinite.
    """
    x, blocks, targets = inputs.rows, _blocks(len(y)), y.shape[1]
    yy = _sizes(y)
    sum_x, xx = inputs.sums()
    # No sum of products is larger than those of both's squares.
    xy = _summed(lambda at: _product(x[at], y[at]), blocks, (x.shape[1], targets))
    return Moments(len(x), sum_x, column_sums(y), xx, xy, yy)


def column_sums(rows: Rows) -> Matrix:
    """Return the sums of rows (n, D), (D,): a few at a time in float32, and those in float64, in half the time."""
    parts = len(rows) // _SUMMED_ROWS
    whole = rows[: parts * _SUMMED_ROWS].reshape(parts, _SUMMED_ROWS, rows.shape[1])
    rest = rows[parts * _SUMMED_ROWS :].sum(axis=0, dtype=np.float64)
    found: Matrix = whole.sum(axis=1).sum(axis=0, dtype=np.float64) + rest
    return found


def _sizes(rows: Rows) -> Matrix:
    with np.errstate(over="ignore"):
        sizes = sum((np.einsum("no,no->o", rows[at], rows[at]) for at in _blocks(len(rows))), np.zeros(rows.shape[1]))
    _refuse_overflow(sizes)
    return sizes


def _squares(rows: Rows) -> Matrix:
    return _summed(lambda at: _square(rows[at]), _blocks(len(rows)), (rows.shape[1], rows.shape[1]))


def _square(rows: Rows) -> Rows:
    made = _product(rows, rows)
    _refuse_overflow(made.diagonal())
    return made


def _product(first: Rows, second: Rows) -> Rows:
    with np.errstate(over="ignore", invalid="ignore"):
        made: Rows = first.T @ second
    return made


def _refuse_overflow(squares: npt.NDArray[Any]) -> None:
    if not np.isfinite(squares).all():
        raise OverflowError("values so large that sums of their squares overflow")


def accumulate_made(x: Rows, made: Callable[[slice], Rows], targets: int) -> tuple[Matrix, Matrix]:
    """Return the sums of y (O,) and of x y^T (D, O) over samples whose y is made a block of rows at a time.

    Args:
        x: (n, D).
        made: from which rows to what is wanted there, (rows, O).
        targets: O.
    """

    def product(at: slice) -> Rows:
        own = made(at)
        return np.vstack([column_sums(own), x[at].T @ own])

    sums = _summed(product, _blocks(len(x)), (1 + x.shape[1], targets))
    return sums[0], sums[1:]


def distinct_rows(rows: Rows) -> int:
    """Return how many rows of (n, D) differ from each other: so many samples they are, however often each is there."""
    step = max(1, rows.shape[1] // _FEW_COLUMNS)
    # Most rows differ in few columns already; only the others are looked at as a whole.
    labels, counts = np.unique(_alike(rows[:, ::step]), return_inverse=True, return_counts=True)[1:]
    repeated = np.flatnonzero(counts[labels] > 1)
    return int((counts == 1).sum()) + len(np.unique(_alike(rows, repeated)))


def _alike(rows: Rows, chosen: npt.NDArray[np.intp] | None = None) -> npt.NDArray[np.intp]:
    """Return a number for each of the chosen rows, all of them by default, the same for rows that are the same."""
    chosen = np.arange(len(rows)) if chosen is None else chosen
    weights = np.random.default_rng(0).standard_normal(rows.shape[1:])
    products, largest = np.zeros(len(chosen)), 0.0
    for at in _blocks(len(chosen)):
        # In float64: a row that is there twice need not give the same product twice, as that depends on its neighbours.
        block = rows[chosen[at]].astype(np.float64)
        products[at] = block @ weights
        largest = max(largest, float(np.abs(block).max(initial=0.0)))
    order = np.argsort(products)
    numbers = np.zeros(len(chosen), np.intp)
    apart = np.diff(products[order]) > _SAME_PRODUCT * math.sqrt(len(weights)) * largest
    numbers[order[1:]] = np.cumsum(apart)
    return numbers


def in_blocks(function: Callable[[slice], Rows], count: int, outputs: int) -> Rows:
    """Return the rows (n, O) that a function gives for each block of n, blocks side by side."""
    rows = np.empty((count, outputs), np.float32)

    def fill(at: slice) -> None:
        rows[at] = function(at)

    parallel_map(fill, _blocks(count))
    return rows


def _blocks(count: int) -> list[slice]:
    return [slice(at, at + _BLOCK_ROWS) for at in range(0, count, _BLOCK_ROWS)]


def _summed(product: Callable[[slice], Rows], blocks: list[slice], shape: tuple[int, int]) -> Matrix:
    """Sum the products of all blocks, in a fixed order of a few partial sums."""
    if len(blocks) == 1:
        return product(blocks[0]).astype(np.float64)
    parts = [blocks[at::2] for at in range(2)]

    def partial(part: list[slice]) -> Matrix:
        total = np.zeros(shape)
        for block in part:
            total += product(block)
        return total

    first, second = parallel_map(partial, parts)
    return first + second
