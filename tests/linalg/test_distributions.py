"""Distributions over classes."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.linalg.distributions import Kind, are_probabilities, kind_of, kl_divergence, probabilities

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
    np.testing.assert_allclose(probabilities(LOGITS, Kind.LOGITS), softmax(LOGITS), rtol=1e-9)
    np.testing.assert_allclose(probabilities(softmax(LOGITS) * 1.001, Kind.DISTRIBUTION), softmax(LOGITS), rtol=1e-9)
    huge = probabilities(np.array([[1e4, -1e4]], np.float32), Kind.LOGITS)
    np.testing.assert_allclose(huge, [[1, 0]], rtol=0, atol=1e-9)


def test_divergence() -> None:
    p, q = softmax(LOGITS), softmax(LOGITS[::-1])
    np.testing.assert_allclose(kl_divergence(p, q), (p * np.log(p / q)).sum(axis=1), rtol=1e-12)
    assert (kl_divergence(p, p) == 0).all()
    certain = probabilities(np.eye(2), Kind.DISTRIBUTION)
    assert np.isfinite(kl_divergence(certain, certain[::-1])).all()
    # Half against a quarter: ln 2 of one half less ln 1.5 of the other.
    half, quarter = np.array([[0.5, 0.5]]), np.array([[0.25, 0.75]])
    assert kl_divergence(half, quarter)[0] == pytest.approx(0.5 * np.log(2) - 0.5 * np.log(1.5))


def test_the_kind_of_scores_is_told_by_the_graph_and_by_what_they_are() -> None:
    each = 1 / (1 + np.exp(-LOGITS))
    assert kind_of(each, apart=True) is Kind.APART
    assert kind_of(each, apart=False) is Kind.LOGITS
    assert kind_of(LOGITS, apart=True) is Kind.LOGITS
    assert kind_of(softmax(LOGITS), apart=False) is Kind.DISTRIBUTION


def test_classes_apart_are_a_distribution_each() -> None:
    p, q = (probabilities(1 / (1 + np.exp(-scores)), Kind.APART) for scores in (LOGITS, LOGITS[::-1]))
    pairs = [[np.stack([each[:, number], 1 - each[:, number]], 1) for each in (p, q)] for number in range(7)]
    expected = np.sum([kl_divergence(*pair) for pair in pairs], axis=0)
    np.testing.assert_allclose(kl_divergence(p, q, Kind.APART), expected, rtol=1e-9)
    certain = probabilities(np.eye(2, dtype=np.float32), Kind.APART)
    assert 0 < kl_divergence(certain, certain[::-1], Kind.APART).min() < np.inf
