"""Distributions over classes."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.linalg.distributions import are_probabilities, kl_divergence, probabilities

LOGITS = np.random.default_rng(0).standard_normal((5, 7)) * 4


def softmax(scores: np.ndarray) -> np.ndarray:
    return np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)


def test_distributions_are_recognised_even_in_half_precision() -> None:
    assert are_probabilities(softmax(LOGITS))
    assert are_probabilities(softmax(np.random.default_rng(0).standard_normal((5, 1000))).astype(np.float16))
    assert not are_probabilities(LOGITS)
    assert not are_probabilities(softmax(LOGITS) * 1.1)
    assert not are_probabilities(np.full((2, 2), [1.5, -0.5]))


def test_probabilities() -> None:
    np.testing.assert_allclose(probabilities(LOGITS, normalised=False), softmax(LOGITS), rtol=1e-9)
    np.testing.assert_allclose(probabilities(softmax(LOGITS) * 1.001, normalised=True), softmax(LOGITS), rtol=1e-9)
    huge = probabilities(np.array([[1e4, -1e4]], np.float32), normalised=False)
    np.testing.assert_allclose(huge, [[1, 0]], rtol=0, atol=1e-9)


def test_divergence() -> None:
    p, q = softmax(LOGITS), softmax(LOGITS[::-1])
    np.testing.assert_allclose(kl_divergence(p, q), (p * np.log(p / q)).sum(axis=1), rtol=1e-12)
    assert (kl_divergence(p, p) == 0).all()
    certain = probabilities(np.eye(2), normalised=True)
    assert np.isfinite(kl_divergence(certain, certain[::-1])).all()
    # Half against a quarter: ln 2 of one half less ln 1.5 of the other.
    half, quarter = np.array([[0.5, 0.5]]), np.array([[0.25, 0.75]])
    assert kl_divergence(half, quarter)[0] == pytest.approx(0.5 * np.log(2) - 0.5 * np.log(1.5))
