"""Refitting a layer of very many inputs (the first dense layer of a VGG has 25,088): ridge regression in its dual form.

The covariance of D inputs has D^2 entries; with n samples, n far fewer than D, the same weights follow from the n x n
products of the samples with each other (C. Saunders, A. Gammerman and V. Vovk, "Ridge Regression Learning Algorithm in
Dual Variables", ICML 1998): with centred inputs X (n, D), targets Y (n, O) and the original's weights B0,

    B = B0 + X^T (X X^T + n l I)^-1 (Y - X B0)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from onnxcompress.linalg.moments import Rows
from onnxcompress.linalg.spectrum import Matrix, descending_eigenpairs
from onnxcompress.passes.recovery.refit_solve import RIDGES, SHRINKAGE, UNJUDGED, ChainShape, ChainWeights, Samples

MOST_INPUTS = 10_000
"""Layers of more inputs are fitted in the dual form: a covariance of so many takes 0.8 GB, a fit several of them."""

MOST_ROWS = 4096
"""Samples of such a layer, at most."""


def fit_wide(training: Samples, judging: Samples | None, shape: ChainShape, prior: Matrix) -> ChainWeights:
    """Fit a chain without an input factor, as `refit_solve.fit_chain` does, to at most `MOST_ROWS` samples.

    Args:
        prior: what the slope is drawn towards, (K I, O): the original's weights.
    """
    step = -(-len(training.inputs) // MOST_ROWS)
    inputs, targets = training.inputs[::step], training.targets[::step]
    means = [each.mean(axis=0, dtype=np.float64) * shape.has_constant for each in (inputs, targets)]
    fits = _fits(inputs, targets, means, prior, RIDGES if judging else (UNJUDGED,))
    errors = [replace(judging, relu=False).error(*fit) if judging else 0.0 for fit in fits]
    slope, constant = fits[int(np.argmin(errors))]
    last = None
    if shape.rank_out is not None:
        slope, last = _narrowed(inputs - means[0].astype(np.float32), slope, shape.rank_out)
        constant = means[1] - means[0] @ slope @ last
    return ChainWeights(None, slope.reshape(shape.positions, -1, slope.shape[1]), last, constant)


def _fits(
    inputs: Rows, targets: Rows, means: Sequence[Matrix], prior: Matrix, strengths: tuple[float, ...]
) -> list[tuple[Matrix, npt.NDArray[np.float64]]]:
    """Return slope (D, O) and constant (O,) for each ridge, in units of the mean variance of an input."""
    from scipy.linalg import cho_factor, cho_solve

    mean_x, mean_y = means
    centred = inputs - mean_x.astype(np.float32)
    products = (centred @ centred.T).astype(np.float64)
    missing = (targets - mean_y) - centred @ prior.astype(np.float32)
    trace = float(np.trace(products))
    found = []
    for strength in strengths:
        slope = prior
        if trace > 0.0:
            ridged = products + strength * trace / inputs.shape[1] * np.eye(len(inputs))
            duals = cho_solve(cho_factor(ridged, lower=True), missing)
            slope = prior + centred.T @ duals.astype(np.float32)
        found.append((slope, mean_y - mean_x @ slope))
    return found


def _narrowed(centred: Rows, slope: Matrix, rank: int) -> tuple[Matrix, Matrix]:
    """Return (D, R) and (R, O): of this rank the best for the response on the samples, and a little for any other."""
    count, inputs = centred.shape
    response = (centred @ slope.astype(np.float32)).astype(np.float64)
    variance = float(np.square(centred).sum(dtype=np.float64)) / count / inputs
    spread = SHRINKAGE * (inputs / count) ** 2 * variance
    vectors = descending_eigenpairs(response.T @ response / count + spread * (slope.T @ slope))[1][:, :rank]
    return slope @ vectors, vectors.T
