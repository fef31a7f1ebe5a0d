"""Singular values and left singular vectors through the small Gram matrix.

An unfolded kernel is wide, (192, 3456) say, and a full SVD of it spends its time on right vectors that nobody asks for.
Its Gram matrix is (192, 192); the eigenvalues are the squared singular values. Squaring costs accuracy only below
about 1e-8 of the largest singular value, which neither a rank rule nor a truncated basis depends on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
"""float64 (float32 where `working` says so), any number of axes; the docstrings give the shapes."""

_LARGEST_IN_DOUBLE = 2**25
_BLOCK = 2**22
"""Elements of a tensor that are converted at a time."""


@dataclass(frozen=True)
class Spectrum:
    """Left half of a matrix's SVD.

    Attributes:
        values: singular values, descending, shape (rows,); zeros beyond `min(shape)`.
        vectors: left singular vectors in columns, shape (rows, rows), in the order of `values`.
        shape: of the matrix, (rows, columns).
    """

    values: Matrix
    vectors: Matrix
    shape: tuple[int, int]

    def basis(self, rank: int) -> Matrix:
        """Return the leading `rank` left singular vectors, shape (rows, rank)."""
        return self.vectors[:, :rank]


def left_spectrum(matrix: npt.NDArray[np.floating]) -> Spectrum:
    """Return singular values and left singular vectors of a matrix (rows, columns).

    Raises:
        ValueError: the matrix is not two-dimensional, is empty, or holds NaN or infinite values.
    """
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError(f"expected a non-empty matrix, got shape {matrix.shape}")
    rows, columns = matrix.shape
    values, vectors = descending_eigenpairs(gram(matrix))
    singular = np.sqrt(np.maximum(values, 0.0))
    # Beyond min(shape) the matrix has no singular values: what stands there is rounding.
    singular[min(rows, columns) :] = 0.0
    return Spectrum(singular, vectors, (rows, columns))


def working(tensor: npt.NDArray[np.floating]) -> Matrix:
    """Return a tensor as the decompositions work on it: float64, or float32 above 32 M elements to spare memory.

    Gram matrices and energies are float64 either way; float32 is what the products with the bases are rounded to.
    """
    return np.asarray(tensor, dtype=working_type(tensor))


def working_type(tensor: npt.NDArray[np.floating]) -> type[np.floating[Any]]:
    """Return the type that `working` converts a tensor to."""
    return np.float64 if tensor.size <= _LARGEST_IN_DOUBLE or tensor.dtype == np.float64 else np.float32


def energy(tensor: npt.NDArray[np.floating]) -> float:
    """Return the sum of squares, in float64."""
    flat = tensor.reshape(-1)
    blocks = (np.asarray(flat[at : at + _BLOCK], np.float64) for at in range(0, flat.size, _BLOCK))
    return float(sum(np.dot(block, block) for block in blocks))


def energy_of_difference(tensor: npt.NDArray[np.floating], other: npt.NDArray[np.floating]) -> float:
    """Return the sum of squares of the difference of two tensors of one shape, in float64."""
    flat, minus = tensor.reshape(-1), other.reshape(-1)
    spans = (slice(at, at + _BLOCK) for at in range(0, flat.size, _BLOCK))
    blocks = (np.asarray(flat[span], np.float64) - np.asarray(minus[span], np.float64) for span in spans)
    return float(sum(np.dot(block, block) for block in blocks))


def gram(matrix: npt.NDArray[np.floating]) -> Matrix:
    """Return `matrix @ matrix.T` in float64, shape (rows, rows).

    Raises:
        ValueError: the matrix holds NaN or infinite values.
    """
    rows, columns = matrix.shape
    step = columns if matrix.dtype == np.float64 else max(1, _BLOCK // rows)
    product: Matrix = np.zeros((rows, rows))
    for at in range(0, columns, step):
        double = np.asarray(matrix[:, at : at + step], dtype=np.float64)
        product += double @ double.T
    if not np.isfinite(product).all():
        raise ValueError("the matrix holds NaN or infinite values, or values whose squares overflow")
    return product


def descending_eigenpairs(symmetric: Matrix) -> tuple[Matrix, Matrix]:
    """Return eigenvalues, descending, (N,) and eigenvectors in columns (N, N) of a symmetric matrix (N, N).

    The sign of an eigenvector is arbitrary; here its entry of largest magnitude is positive, so that the same kernel
    gives the same factors.
    """
    values, vectors = np.linalg.eigh(symmetric)
    values, vectors = values[::-1], vectors[:, ::-1]
    largest = np.abs(vectors).argmax(axis=0)
    signs = np.where(vectors[largest, np.arange(len(largest))] < 0, -1.0, 1.0)
    return np.ascontiguousarray(values), np.ascontiguousarray(vectors * signs)
