"""Spectra through the Gram matrix and truncated SVD, against numpy's."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.linalg import left_spectrum, short_side_spectrum, truncated_svd
from onnxcompress.linalg.parallel import parallel_map

SHAPES = [(6, 20), (20, 6), (9, 9), (1, 5), (5, 1)]


def matrix_of(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_spectrum_is_that_of_the_svd(shape):
    matrix = matrix_of(shape)
    found = left_spectrum(matrix)
    expected = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(found.values[: min(shape)], expected, rtol=1e-10, atol=1e-7)
    assert not found.values[min(shape) :].any()
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(shape[0]), atol=1e-12)
    projected = np.linalg.norm(found.vectors.T @ matrix, axis=1)
    np.testing.assert_allclose(projected, found.values, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_truncation_is_the_best_of_its_rank(shape):
    matrix = matrix_of(shape)
    values = np.linalg.svd(matrix, compute_uv=False)
    for rank in range(1, min(shape) + 1):
        found = truncated_svd(matrix, rank)
        assert found.left.shape == (shape[0], rank)
        assert found.right.shape == (rank, shape[1])
        best = np.sqrt(np.sum(values[rank:] ** 2))
        assert np.linalg.norm(matrix - found.reconstruct()) == pytest.approx(best, abs=1e-10)
        assert found.relative_error == pytest.approx(best / np.linalg.norm(matrix), abs=1e-7)


def test_a_spectrum_at_hand_changes_nothing():
    matrix = matrix_of((30, 12), 2).astype(np.float32)
    one, two = (truncated_svd(matrix, 4, spectrum=s) for s in (None, short_side_spectrum(matrix)))
    assert one.left.tobytes() == two.left.tobytes()
    assert one.right.tobytes() == two.right.tobytes()


@pytest.mark.parametrize("rank", [0, 4, -1])
def test_ranks_out_of_range_are_refused(rank):
    with pytest.raises(ValueError, match="rank must be from 1 to 3"):
        truncated_svd(matrix_of((3, 8)), rank)


@pytest.mark.parametrize("matrix", [np.ones(3), np.ones((2, 2, 2)), np.ones((0, 3))])
def test_what_is_no_matrix_is_refused(matrix):
    with pytest.raises(ValueError, match="non-empty matrix"):
        left_spectrum(matrix)


def test_parallel_map_keeps_the_order_and_passes_errors_on():
    assert parallel_map(lambda n: n * n, range(20)) == [n * n for n in range(20)]
    assert parallel_map(lambda n: n, []) == []
    with pytest.raises(ZeroDivisionError):
        parallel_map(lambda n: 1 // n, [1, 0])
