"""Histograms that widen as they go, and ranges of the least squared error."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from onnxcompress.linalg.histogram import Histogram

RNG = np.random.default_rng(0)


def of(values: npt.NDArray[np.float64]) -> Histogram:
    histogram = Histogram()
    histogram.add(values.astype(np.float32))
    return histogram


def rounded(values: npt.NDArray[np.float64], low: float, high: float, steps: int) -> npt.NDArray[np.float64]:
    step = (high - low) / steps
    result: npt.NDArray[np.float64] = np.round((np.clip(values, low, high) - low) / step) * step + low
    return result


def test_counts_do_not_depend_on_the_order() -> None:
    parts = [RNG.standard_normal(500), 30 * RNG.standard_normal(500), np.zeros(100), 0.01 * RNG.standard_normal(500)]
    forward, backward = Histogram(), Histogram()
    for part in parts:
        forward.add(part)
    for part in parts[::-1]:
        backward.add(part)
    assert forward.count == backward.count == 1600
    assert forward.zeros == backward.zeros == 100
    assert forward.best_range() == backward.best_range()


@pytest.mark.parametrize("values", [RNG.standard_normal(20000), np.abs(RNG.laplace(size=20000)), RNG.random(20000)])
def test_no_other_range_has_a_clearly_smaller_error(values: npt.NDArray[np.float64]) -> None:
    found = of(values).best_range()
    own = np.mean((rounded(values, found.low, found.high, 255) - values) ** 2)
    for share in np.linspace(0.3, 1.0, 30):
        low, high = share * min(values.min(), 0), share * max(values.max(), 0)
        other = np.mean((rounded(values, low, high, 255) - values) ** 2)
        assert own <= 1.05 * other
    assert own == pytest.approx(found.error * np.mean(values**2), rel=0.2)


def test_a_thin_tail_is_cut_off_and_a_full_range_is_not() -> None:
    # Banner et al. (2019): 8 bits of a Laplace distribution of scale 1 end at 9.9.
    tailed = RNG.laplace(size=1_000_000)
    found = of(tailed).best_range()
    assert found.high < 0.9 * tailed.max()
    assert 8.5 < found.high < 11.5
    assert of(RNG.random(50000)).best_range().high == pytest.approx(1.0, abs=0.01)


def test_a_rectified_tensor_starts_at_zero() -> None:
    found = of(np.maximum(RNG.standard_normal(10000), 0)).best_range()
    assert found.low == 0.0
    assert found.high > 1.5


def test_symmetric_ranges_have_zero_in_the_middle() -> None:
    found = of(RNG.random(10000)).best_range(symmetric=True)
    assert found.low == -found.high


def test_squares_of_many_magnitudes_are_lost() -> None:
    assert of(np.exp(3 * RNG.standard_normal(50000))).best_range().lost > 0.5
    assert of(RNG.standard_normal(50000)).best_range().lost < 0.1


def test_extremes_are_found_though_few_values_are_counted() -> None:
    histogram = Histogram()
    values = np.ones(10001)
    values[1] = 5.0
    histogram.add(values, most=100)
    assert histogram.high == 5.0
    assert histogram.count <= 101


def test_nothing_but_zeros_and_nothing_at_all() -> None:
    assert of(np.zeros(10)).best_range().high == 0.0
    empty = Histogram()
    empty.add(np.zeros(0))
    with pytest.raises(ValueError, match="no values"):
        empty.best_range()
