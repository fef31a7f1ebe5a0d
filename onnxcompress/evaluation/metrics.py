"""Scores of a batch of outputs, all in float64: class ranks, divergence from the original, relative error."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxcompress.runtime.tensors import Array, classifies

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

# Keeps the divergence finite where a float32 softmax underflowed to zero.
_LEAST_PROBABILITY = 1e-12
# Rounding of a float16 softmax over a thousand classes.
_SUM_TOLERANCE = 1e-2


def class_scores(output: Array, samples: int) -> Array | None:
    """Return an output of shape [N, C] or [N, C, 1, ...] with C > 1 as (N, C), or None where it classifies nothing."""
    if output.dtype.kind != "f" or output.shape[:1] != (samples,) or not classifies(output.shape):
        return None
    return output.reshape(output.shape[:2])


def are_probabilities(scores: Array) -> bool:
    """Whether the rows (N, C) are distributions already: not negative, and their sums are 1."""
    wide = scores.astype(np.float64)
    return bool(wide.min() >= 0.0 and np.abs(wide.sum(axis=1) - 1.0).max() < _SUM_TOLERANCE)


def probabilities(scores: Array, normalised: bool) -> Float64:
    """Return distributions (N, C): the scores made to sum to 1 exactly if `normalised`, else their softmax."""
    wide = scores.astype(np.float64)
    if not normalised:
        wide = np.exp(wide - wide.max(axis=1, keepdims=True))
    wide = np.maximum(wide, _LEAST_PROBABILITY)
    distributions: Float64 = wide / wide.sum(axis=1, keepdims=True)
    return distributions


def kl_divergence(reference: Float64, other: Float64) -> Float64:
    """Return KL(reference || other) of each row in nats, shape (N,)."""
    divergence: Float64 = (reference * (np.log(reference) - np.log(other))).sum(axis=1)
    return np.maximum(divergence, 0.0)


def label_ranks(scores: Array, labels: Int64) -> Int64:
    """Return how many classes stand before each sample's label, shape (N,): 0 is a top-1 hit, below 5 a top-5 hit.

    Of equal scores the lower class number comes first, as with argmax.
    """
    own = scores[np.arange(len(scores)), labels][:, None]
    earlier = np.arange(scores.shape[1]) < labels[:, None]
    ranks: Int64 = ((scores > own) | ((scores == own) & earlier)).sum(axis=1)
    return ranks
