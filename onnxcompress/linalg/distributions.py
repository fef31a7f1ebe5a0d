"""Distributions over classes: what a network's scores say, and how far two networks differ in it."""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcompress.linalg.spectrum import Matrix

Scores = npt.NDArray[Any]

SUM_TOLERANCE = 1e-2
"""Rounding of a float16 softmax over a thousand classes."""

_LEAST_PROBABILITY = 1e-12

LEAST_APART = 1e-6
"""A probability of one class by itself, and as much below 1: float32 has no numbers between 1 and 1 - 6e-8, and a
sigmoid of onnxruntime gives 0 for what is very unlikely."""


class Kind(Enum):
    """What scores of classes (N, C) are.

    Attributes:
        LOGITS: their softmax is a distribution.
        DISTRIBUTION: they are one already, such as a Softmax.
        APART: each is the probability of its own class, whatever the others are, such as a Sigmoid.
    """

    LOGITS = "logits"
    DISTRIBUTION = "distribution"
    APART = "apart"


def kind_of(scores: Scores, *, apart: bool = False) -> Kind:
    """Return the kind of scores (N, C); `apart`: the network says by its graph that each stands for itself."""
    if apart and float(scores.min()) >= 0.0 and float(scores.max()) <= 1.0:
        return Kind.APART
    return Kind.DISTRIBUTION if are_probabilities(scores) else Kind.LOGITS


def are_probabilities(scores: Scores) -> bool:
    """Whether the rows (N, C) are distributions already: not negative, and their sums are 1."""
    wide = scores.astype(np.float64)
    return bool(wide.min() >= 0.0 and np.abs(wide.sum(axis=1) - 1.0).max() < SUM_TOLERANCE)


def probabilities(scores: Scores, kind: Kind, least: float = _LEAST_PROBABILITY) -> Matrix:
    """Return probabilities (N, C): of distributions, made to sum to 1 exactly, or of each class by itself.

    None is below `least`, and of each class by itself none is nearer to 0 or 1 than `LEAST_APART`: divergences stay
    finite where a float32 softmax underflowed to zero.
    """
    wide = scores.astype(np.float64)
    if kind is Kind.APART:
        return np.clip(wide, LEAST_APART, 1.0 - LEAST_APART)
    if kind is Kind.LOGITS:
        wide = np.exp(wide - wide.max(axis=1, keepdims=True))
    wide = np.maximum(wide, least)
    distributions: Matrix = wide / wide.sum(axis=1, keepdims=True)
    return distributions


def kl_divergence(reference: Matrix, other: Matrix, kind: Kind = Kind.DISTRIBUTION) -> Matrix:
    """Return KL(reference || other) of each row of probabilities in nats, shape (N,): of `APART` its classes' sum."""
    divergence: Matrix = (reference * (np.log(reference) - np.log(other))).sum(axis=1)
    if kind is Kind.APART:
        divergence = divergence + ((1.0 - reference) * (np.log1p(-reference) - np.log1p(-other))).sum(axis=1)
    return np.maximum(divergence, 0.0)
