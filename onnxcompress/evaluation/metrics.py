"""Scores of a batch of outputs, all in float64: class ranks, divergence from the original, relative error."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxcompress.runtime.tensors import Array, classifies

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


def class_scores(output: Array, samples: int) -> Array | None:
    """Return an output of shape [N, C] or [N, C, 1, ...] with C > 1 as (N, C), or None where it classifies nothing."""
    if output.dtype.kind != "f" or output.shape[:1] != (samples,) or not classifies(output.shape):
        return None
    return output.reshape(output.shape[:2])


def label_ranks(scores: Array, labels: Int64) -> Int64:
    """Return how many classes stand before each sample's label, shape (N,): 0 is a top-1 hit, below 5 a top-5 hit.

    Of equal scores the lower class number comes first, as with argmax.
    """
    own = scores[np.arange(len(scores)), labels][:, None]
    earlier = np.arange(scores.shape[1]) < labels[:, None]
    ranks: Int64 = ((scores > own) | ((scores == own) & earlier)).sum(axis=1)
    return ranks
