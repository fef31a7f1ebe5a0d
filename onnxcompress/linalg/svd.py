"""A matrix as the product of two thin ones: the truncated SVD, best of its rank (Eckart and Young, 1936)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxcompress.linalg.spectrum import Matrix, Spectrum, energy, left_spectrum, working


@dataclass(frozen=True)
class TruncatedSvd:
    """A rank-R approximation `left @ right` of a matrix (M, N).

    Attributes:
        left: (M, R).
        right: (R, N).
        relative_error: Frobenius norm of what is missing, relative to the matrix's.
    """

    left: Matrix
    right: Matrix
    relative_error: float

    def reconstruct(self) -> Matrix:
        """Return the approximation, shape (M, N)."""
        return self.left @ self.right


def short_side_spectrum(matrix: npt.NDArray[np.floating]) -> Spectrum:
    """Return the spectrum of a matrix (M, N) over its shorter side: of the matrix if M <= N, else of its transpose."""
    return left_spectrum(matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T)


def truncated_svd(matrix: npt.NDArray[np.floating], rank: int, *, spectrum: Spectrum | None = None) -> TruncatedSvd:
    """Return the best rank-`rank` approximation of a matrix (M, N) as two factors.

    The factor on the matrix's shorter side has orthonormal columns (or rows), the other carries the scale.

    Args:
        matrix: shape (M, N).
        rank: 1 <= rank <= min(M, N).
        spectrum: `short_side_spectrum(matrix)`, where it is at hand.

    Raises:
        ValueError: the rank is out of range, or the matrix holds NaN or infinite values.
    """
    rows, columns = matrix.shape
    if not 1 <= rank <= min(rows, columns):
        raise ValueError(
            f"rank must be from 1 to {min(rows, columns)} for a matrix of shape {matrix.shape}, got {rank}"
        )
    matrix = working(matrix)
    basis = (spectrum or short_side_spectrum(matrix)).basis(rank).astype(matrix.dtype, copy=False)
    left, right = (basis, basis.T @ matrix) if rows <= columns else (matrix @ basis, basis.T)
    # The basis is orthonormal: the factor beside it carries the energy that is kept.
    kept = energy(right if rows <= columns else left)
    return TruncatedSvd(left, right, error_of_energies(energy(matrix), kept))


def error_of_energies(whole: float, kept: float) -> float:
    """Return the relative Frobenius error of an orthogonal projection that keeps `kept` of the energy `whole`.

    By Pythagoras the error needs no reconstruction: |W - P W|^2 = |W|^2 - |P W|^2.
    """
    return math.sqrt(max(0.0, 1.0 - kept / whole)) if whole > 0.0 else 0.0
