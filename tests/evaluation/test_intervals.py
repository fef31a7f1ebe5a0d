"""Intervals: known values, and how often they cover the truth."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.evaluation.intervals import mcnemar_p_value, paired_difference, proportion, ratio_of_medians


def test_equal_models_on_few_samples_are_not_known_to_be_equal() -> None:
    low, high = paired_difference(0, 0, 200)
    assert low == -high
    assert 0.012 < high < 0.015
    assert paired_difference(0, 0, 20000)[1] < 0.0002


@pytest.mark.parametrize(("first", "second", "samples"), [(10, 4, 200), (0, 9, 50), (200, 0, 200), (3, 3, 6)])
def test_the_interval_holds_the_difference_and_mirrors(first: int, second: int, samples: int) -> None:
    low, high = paired_difference(first, second, samples)
    assert -1 <= low <= (first - second) / samples <= high <= 1
    assert paired_difference(second, first, samples) == pytest.approx((-high, -low))


@pytest.mark.parametrize("samples", [50, 200, 1000])
@pytest.mark.parametrize(("only_first", "only_second"), [(0.08, 0.03), (0.02, 0.02), (0.3, 0.1)])
def test_coverage_of_the_paired_interval(samples: int, only_first: float, only_second: float) -> None:
    generator = np.random.default_rng(0)
    drawn = generator.multinomial(samples, [only_first, only_second, 1 - only_first - only_second], 2000)
    intervals = [paired_difference(int(a), int(b), samples) for a, b, _ in drawn]
    covered = np.mean([low <= only_first - only_second <= high for low, high in intervals])
    # 2000 draws of 95 %: standard deviation 0.5 points. With few discordant samples it is conservative by design.
    assert covered >= 0.935


def test_the_paired_interval_is_narrower_than_that_of_independent_samples() -> None:
    low, high = paired_difference(6, 2, 200)
    independent = 2 * 1.96 * np.sqrt(2 * 0.78 * 0.22 / 200)
    assert high - low < independent / 2


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 2 / 32), (1, 9, 2 * 11 / 1024), (9, 1, 2 * 11 / 1024)],
)
def test_the_exact_test(first: int, second: int, expected: float) -> None:
    assert mcnemar_p_value(first, second) == pytest.approx(expected, rel=1e-9)


def test_the_exact_test_of_thousands() -> None:
    assert mcnemar_p_value(5000, 5000) == 1.0
    assert 0 <= mcnemar_p_value(4000, 6000) < 1e-50


def test_a_proportion() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3.
    assert proportion(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert proportion(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert proportion(29, 29) == pytest.approx((0.8830, 1.0), abs=1e-4)


def test_a_ratio_of_identical_rounds_is_exact() -> None:
    assert ratio_of_medians(np.full(10, np.log(2.0))) == pytest.approx((2.0, 2.0))


def test_few_rounds_have_no_interval() -> None:
    assert ratio_of_medians(np.zeros(5)) is None
    assert ratio_of_medians(np.zeros(6)) == (1.0, 1.0)
    assert ratio_of_medians(np.array([0.0] * 9 + [np.nan])) is None


def test_the_ratio_repeats_with_its_seed() -> None:
    ratios = np.random.default_rng(0).normal(0, 0.1, 30)
    assert ratio_of_medians(ratios, 1) == ratio_of_medians(ratios, 1)
    assert ratio_of_medians(ratios, 1) != ratio_of_medians(ratios, 2)


@pytest.mark.parametrize("outliers", [0.0, 0.2])
def test_coverage_of_the_ratio(outliers: float) -> None:
    generator = np.random.default_rng(0)
    covered = []
    for _ in range(300):
        ratios = generator.normal(0.3, 0.05, 30)
        # Disturbances hit either model alike.
        ratios += (generator.random(30) < outliers) * generator.normal(0, 1.0, 30)
        interval = ratio_of_medians(ratios)
        assert interval is not None
        covered.append(interval[0] <= np.exp(0.3) <= interval[1])
    # 300 draws of 95 %: standard deviation 1.3 points.
    assert 0.91 <= np.mean(covered) <= 0.99


def test_rounds_that_depend_on_each_other_widen_the_interval() -> None:
    generator = np.random.default_rng(0)
    covered = []
    for _ in range(200):
        noise = generator.normal(0, 0.05, 130)
        for n in range(1, len(noise)):
            noise[n] += 0.8 * noise[n - 1]
        interval = ratio_of_medians(noise)
        assert interval is not None
        covered.append(interval[0] <= 1.0 <= interval[1])
    # Drawn one by one they cover it in little more than half of the cases; ten blocks are few, so 95 % is not reached.
    assert np.mean(covered) >= 0.84
