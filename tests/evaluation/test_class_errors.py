"""Outputs that hold a class for each element: a rare class that is gone is a loss, single elements are none."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from onnxcompress.evaluation.class_errors import OneClass
from onnxcompress.evaluation.relative_error import RelativeError
from tests.evaluation.tallies import error_of

Maps = npt.NDArray[np.generic]


def rare(count: int = 20, value: int = 1) -> npt.NDArray[np.int64]:
    """Maps of 0 in which 2 % have the value: 8 of the 400 places of each."""
    maps = np.zeros((count, 20, 20), np.int64)
    maps[:, 3:5, 2:6] = value
    return maps


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.int8, np.bool_])
@pytest.mark.parametrize("batch", [3, 20])
def test_a_rare_class_that_is_gone_is_lost(dtype: type, batch: int) -> None:
    expected = rare().astype(dtype)
    found = error_of(expected, np.zeros_like(expected), batch)
    assert (found.value, found.part) == (1.0, OneClass(1, 0.02))
    assert found.interval == pytest.approx((1.0, 1.0))
    assert str(found.part) == "class 1 (2 % of all)"


def test_the_error_is_one_less_the_intersection_over_the_union() -> None:
    generator = np.random.default_rng(0)
    expected = generator.choice([-3, 0, 255], size=(30, 12, 10), p=[0.1, 0.6, 0.3])
    noise = generator.random(expected.shape) < 0.2 * generator.random((30, 1, 1))
    seen = np.where(noise, generator.choice([-3, 0, 7], size=expected.shape), expected)
    errors = {}
    for value in (-3, 0, 255):
        one, two = expected == value, seen == value
        errors[value] = 1.0 - (one & two).sum() / (one | two).sum()
    worst = max(errors, key=lambda each: errors[each])
    for batch in (1, 7, 30):
        found = error_of(expected, seen, batch)
        assert found.part == OneClass(worst, float((expected == worst).mean()))
        assert found.value == pytest.approx(errors[worst], rel=1e-12)
        assert found.interval is not None
        assert found.interval[0] < found.value < found.interval[1]


def test_the_interval_is_that_of_samples() -> None:
    generator = np.random.default_rng(1)

    def drawn(count: int) -> RelativeError:
        expected = generator.random((count, 200)) < 0.1 * generator.random((count, 1))
        missed = generator.random((count, 200)) < 0.4 * generator.random((count, 1))
        return error_of(expected, expected & ~missed, count)

    found = [drawn(60) for _ in range(200)]
    assert {getattr(each.part, "value", None) for each in found} == {1}
    covered = np.mean([each.interval[0] <= 0.2 <= each.interval[1] for each in found if each.interval])
    assert 0.90 <= covered <= 0.99


def test_what_is_too_rare_is_not_judged_by_itself() -> None:
    """Few elements of all, few in number, or on few samples: the share of all elements that differ counts."""
    few = np.zeros((50, 100, 100), np.int64)
    few[:, 0, :9] = 1  # 0.09 %
    seldom = np.zeros((20, 20, 20), np.int64)
    seldom[:4, :10] = 1
    for expected in (few, rare(12), seldom):  # of the second 96 elements
        found = error_of(expected, np.zeros_like(expected))
        assert found.part is None
        assert found.value == pytest.approx(float(expected.mean()))
    few[:, 0, 9] = 1
    assert error_of(few, np.zeros_like(few)).part == OneClass(1, 0.001)
    seldom[4, 0, 0] = 1
    assert error_of(seldom, np.zeros_like(seldom)).part == OneClass(1, 801 / 8000)


def test_what_holds_no_classes_is_judged_by_the_share_that_differs() -> None:
    """One number for each sample, numbers of many values as pictures have, and those far from each other."""
    generator = np.random.default_rng(0)
    one = generator.integers(0, 3, (400,))
    for expected in (
        one,
        one[:, None],
        generator.integers(0, 256, (20, 900)),
        2000 * generator.integers(0, 3, (20, 90)),
    ):
        seen = np.where(generator.random(expected.shape) < 0.1, expected + 1, expected)
        found = error_of(expected, seen)
        assert found.part is None
        assert found.value == pytest.approx(float((expected != seen).mean()))


def test_classes_may_come_late_and_others_be_new() -> None:
    """In batches of their own; what the original never answers is no class, but takes from others."""
    expected = np.concatenate([rare(10, 0), rare(20, 5)])
    seen = expected.copy()
    seen[:10, 3:5, 2:6] = 5  # where it is not
    found = error_of(expected, seen, 10)
    assert found.part == OneClass(5, 160 / expected.size)
    assert found.value == pytest.approx(80 / 240)
    seen = np.where(expected == 5, 9, expected)
    assert error_of(expected, seen, 10).part == OneClass(5, 160 / expected.size)
    assert error_of(expected, expected, 10) == RelativeError("y", 0.0, (0.0, 0.0), 0.0)
