"""Distributions over classes: what a network's scores say, and how far two networks differ in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcompress.linalg.spectrum import Matrix

Scores = npt.NDArray[Any]

SUM_TOLERANCE = 1e-2
"""Rounding of a float16 softmax over a thousand classes."""

_LEAST_PROBABILITY = 1e-12


def are_probabilities(scores: Scores) -> bool:
    """Whether the rows (N, C) are distributions already: not negative, and their sums are 1."""
    wide = scores.astype(np.float64)
    return bool(wide.min() >= 0.0 and np.abs(wide.sum(axis=1) - 1.0).max() < SUM_TOLERANCE)


def probabilities(scores: Scores, normalised: bool, least: float = _LEAST_PROBABILITY) -> Matrix:
    """Return distributions (N, C): the scores made to sum to 1 exactly if `normalised`, else their softmax.

    None is below `least`: divergences stay finite where a float32 softmax underflowed to zero.
    """
    wide = scores.astype(np.float64)
    if not normalised:
        wide = np.exp(wide - wide.max(axis=1, keepdims=True))
    wide = np.maximum(wide, least)
    distributions: Matrix = wide / wide.sum(axis=1, keepdims=True)
    return distributions


def kl_divergence(reference: Matrix, other: Matrix) -> Matrix:
    """Return KL(reference || other) of each row in nats, shape (N,)."""
    divergence: Matrix = (reference * (np.log(reference) - np.log(other))).sum(axis=1)
    return np.maximum(divergence, 0.0)
