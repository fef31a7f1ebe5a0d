"""A matrix as the product of two thin ones: the truncated SVD, best of its rank (Eckart and Young, 1936)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxcompress.linalg.spectrum import Matrix, Spectrum, left_spectrum


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
    double = np.asarray(matrix, dtype=np.float64)
    basis = (spectrum or short_side_spectrum(double)).basis(rank)
    left, right = (basis, basis.T @ double) if rows <= columns else (double @ basis, basis.T)
    carrier = right if rows <= columns else left
    return TruncatedSvd(left, right, relative_error(double, carrier))


def relative_error(original: Matrix, kept: Matrix) -> float:
    """Return the relative Frobenius error of an orthogonal projection whose coefficients are `kept`.

    By Pythagoras the error needs no reconstruction: |W - P W|^2 = |W|^2 - |P W|^2.
    """
    whole = float(np.vdot(original, original))
    if whole == 0.0:
        return 0.0
    return math.sqrt(max(0.0, 1.0 - float(np.vdot(kept, kept)) / whole))
