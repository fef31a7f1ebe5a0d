"""Accumulated statistics against the same over all samples at once."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.errors import DataError
from onnxcompress.runtime.statistics import ChannelMoments, Reservoir, SecondMoments, channel_rows

ACTIVATIONS = np.random.default_rng(0).standard_normal((30, 6, 4, 5)).astype(np.float32) * 3 + 1
ROWS = ACTIVATIONS.astype(np.float64).transpose(0, 2, 3, 1).reshape(-1, 6)


@pytest.mark.parametrize("batch", [1, 7, 30])
def test_moments_do_not_depend_on_the_batches(batch: int) -> None:
    channels, matrix = ChannelMoments(6), SecondMoments(6)
    for start in range(0, 30, batch):
        channels.update(ACTIVATIONS[start : start + batch])
        matrix.update(ACTIVATIONS[start : start + batch])
    assert channels.count == matrix.count == 600
    np.testing.assert_allclose(channels.mean, ROWS.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(channels.second_moment, (ROWS**2).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(channels.variance, ROWS.var(axis=0), rtol=1e-10)
    np.testing.assert_allclose(matrix.mean, ROWS.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(matrix.second_moment, ROWS.T @ ROWS / 600, rtol=1e-12)
    np.testing.assert_allclose(matrix.covariance, np.cov(ROWS.T, bias=True), rtol=0, atol=1e-10)


def test_activations_without_positions_and_of_one_or_three_dimensions() -> None:
    for shape in ((5, 6), (5, 6, 7), (5, 6, 2, 3, 4)):
        moments = ChannelMoments(6)
        array = np.random.default_rng(0).standard_normal(shape)
        moments.update(array)
        np.testing.assert_allclose(moments.mean, array.mean(axis=(0, *range(2, array.ndim))), rtol=0, atol=1e-12)
    assert channel_rows(np.zeros((5, 6), np.float16)).dtype == np.float64


def test_half_precision_does_not_overflow() -> None:
    moments = ChannelMoments(1)
    moments.update(np.full((10, 1, 8), 60000, np.float16))
    assert moments.second_moment[0] == pytest.approx(60000.0**2, rel=1e-3)


@pytest.mark.parametrize("empty", [ChannelMoments(2), SecondMoments(2)])
def test_nothing_seen_has_no_mean(empty: ChannelMoments | SecondMoments) -> None:
    with pytest.raises(DataError, match="no activations were seen"):
        _ = empty.mean
    with pytest.raises(DataError, match="no activations were seen"):
        _ = Reservoir(3).rows


def test_a_reservoir_holds_few_rows_all_while_they_fit_and_each_equally_likely() -> None:
    stream = np.arange(100)[:, None]
    small = Reservoir(200)
    small.update_rows(stream)
    np.testing.assert_array_equal(small.rows, stream)
    counts = np.zeros(100)
    for seed in range(400):
        reservoir = Reservoir(10, seed)
        for start in range(0, 100, 7):
            reservoir.update_rows(stream[start : start + 7])
        assert reservoir.rows.shape == (10, 1)
        counts[reservoir.rows[:, 0]] += 1
    # 400 draws of 10 of 100: 40 each, standard deviation 6.
    assert np.abs(counts - 40).max() < 5 * 6
    assert np.abs(counts.reshape(10, 10).mean(axis=1) - 40).max() < 4 * 6 / np.sqrt(10)
