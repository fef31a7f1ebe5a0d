"""The relative error of outputs: by hand, with an interval that holds what it says, and of outputs of every kind."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from onnxcompress.evaluation.relative_error import ErrorTally, RelativeError, SmallNumbers
from onnxcompress.linalg.sizes import Division
from tests.evaluation.tallies import error_of

Rows = npt.NDArray[np.float32]


def maps(count: int, seed: int) -> Rows:
    return np.random.default_rng(seed).standard_normal((count, 3, 4, 5), dtype=np.float32)


def test_the_error_is_that_of_all_samples_together() -> None:
    expected, noise = maps(20, 0), maps(20, 1)
    seen = (expected + 0.1 * noise).astype(np.float32)
    whole = np.linalg.norm(seen.astype(np.float64) - expected) / np.linalg.norm(expected.astype(np.float64))
    for batch in (1, 7, 20):
        found = error_of(expected, seen, batch)
        assert found.output == "y"
        assert found.value == pytest.approx(whole, rel=1e-9)
        assert found.interval is not None
        assert found.interval[0] < whole < found.interval[1]
        assert found.bound == found.value + found.standard_error > found.value


def test_the_interval_covers_the_error_of_many_samples() -> None:
    """Errors and energies that hang together, as a network's do: both grow with the sample's contrast."""
    generator = np.random.default_rng(3)

    def drawn(count: int) -> tuple[Rows, Rows]:
        contrast = generator.lognormal(sigma=0.4, size=(count, 1))
        expected = contrast * generator.standard_normal((count, 30))
        noise = contrast * generator.lognormal(sigma=0.3, size=(count, 1)) * generator.standard_normal((count, 30))
        return expected.astype(np.float32), (expected + 0.1 * noise).astype(np.float32)

    true = error_of(*drawn(100_000), 10_000).value
    found = [error_of(*drawn(60), 60) for _ in range(400)]
    covered = np.mean([each.interval[0] <= true <= each.interval[1] for each in found if each.interval])
    assert 0.91 <= covered <= 0.98
    scatter = np.std([each.value for each in found])
    assert np.mean([each.standard_error for each in found]) == pytest.approx(scatter, rel=0.2)


def test_the_worst_output_counts() -> None:
    tally = ErrorTally()
    one, two = maps(8, 0), maps(8, 1)
    finite = tally.add(8, {"fine": one, "bad": two}, {"fine": one, "bad": 1.5 * two})
    assert finite.all()
    found = tally.result()
    assert found is not None
    assert (found.output, found.value) == ("bad", pytest.approx(0.5, rel=1e-6))


def test_numbers_that_are_none() -> None:
    expected = maps(6, 0)
    seen = expected.copy()
    seen[2, 0, 0, 0], seen[4, 1] = np.nan, np.inf
    tally = ErrorTally()
    np.testing.assert_array_equal(
        tally.add(6, {"y": expected, "z": expected}, {"y": seen, "z": expected}), [True, True, False, True, False, True]
    )
    found = tally.result()
    assert found is not None
    assert (found.output, found.value, found.interval) == ("y", math.inf, None)


def test_outputs_of_other_shapes_are_left_out() -> None:
    tally = ErrorTally()
    boxes = maps(2, 0)
    tally.add(2, {"boxes": boxes, "scores": boxes}, {"boxes": boxes[:, :2], "scores": 2.0 * boxes})
    tally.add(2, {"boxes": boxes, "scores": boxes}, {"boxes": 9.0 * boxes, "scores": 2.0 * boxes})
    assert tally.apart == {"boxes"}
    found = tally.result()
    assert found is not None
    assert (found.output, found.value) == ("scores", pytest.approx(1.0))
    only = ErrorTally()
    only.add(2, {"boxes": boxes}, {"boxes": boxes[:1]})
    assert only.result() is None


@pytest.mark.parametrize("shape", [(), (3, 5), (0, 4), (4, 0), (0, 4, 5), (4, 0, 5)])
def test_outputs_that_do_not_tell_samples_apart(shape: tuple[int, ...]) -> None:
    """A batch counts as one then; what holds nothing misses nothing."""
    generator = np.random.default_rng(0)
    tally, missed, whole = ErrorTally(), 0.0, 0.0
    for _ in range(3):
        one, two = (np.asarray(generator.standard_normal(shape), np.float32) for _ in range(2))
        assert tally.add(4, {"y": one}, {"y": two}).all()
        missed += float(np.square(one.astype(np.float64) - two).sum())
        whole += float(np.square(one.astype(np.float64)).sum())
    found = tally.result()
    assert found is not None
    assert found.value == pytest.approx(math.sqrt(missed / whole) if whole else 0.0)
    assert found.interval is not None


def test_what_was_zero_has_no_size() -> None:
    zero = np.zeros((4, 2), np.float32)
    assert error_of(zero, zero) == RelativeError("y", 0.0, (0.0, 0.0), 0.0)
    assert error_of(zero, zero + 1).value == math.inf
    assert error_of(maps(1, 0), maps(1, 0)) == RelativeError("y", 0.0, None, 0.0)


def test_small_numbers_are_judged_by_themselves() -> None:
    """Boxes in pixels beside scores, along the second axis or the last; batches count together."""
    generator = np.random.default_rng(0)
    boxes = 300.0 * generator.random((12, 4, 50))
    scores = generator.random((12, 6, 50))
    before = np.concatenate([boxes, scores], axis=1).astype(np.float32)
    after = np.concatenate([boxes * 1.002, 0.4 * scores], axis=1).astype(np.float32)
    for axis in (1, 2):
        first, second = (np.ascontiguousarray(np.moveaxis(each, 1, axis)) for each in (before, after))
        tally = ErrorTally({"y": Division(axis, np.repeat([0, 1], [4, 6]))})
        for at in (0, 5):
            tally.add(len(first[at : at + 5]), {"y": first[at : at + 5]}, {"y": second[at : at + 5]})
        found = tally.result()
        assert found is not None
        assert (found.output, found.part) == ("y", SmallNumbers(axis, 6, 10, 4))
        assert found.value == pytest.approx(0.6, rel=1e-5)
        assert found.interval == pytest.approx((0.6, 0.6), rel=1e-5)
        whole = error_of(first, second)
        assert whole.part is None
        assert whole.value < 0.01
    # Where the large ones are worse, the whole tells it.
    tally = ErrorTally({"y": Division(1, np.repeat([0, 1], [4, 6]))})
    tally.add(12, {"y": before}, {"y": np.concatenate([0.5 * before[:, :4], before[:, 4:]], axis=1)})
    found = tally.result()
    assert found is not None
    assert (found.value, found.part) == (pytest.approx(0.5, rel=1e-4), None)


def test_of_several_kinds_the_worst_is_told() -> None:
    before = np.random.default_rng(0).random((6, 5, 8)) * np.array([300.0, 300.0, 3.0, 3.0, 0.1])[:, None]
    for wrong, part in (([2, 3], SmallNumbers(1, 2, 5, 2)), ([4], SmallNumbers(1, 1, 5, 4))):
        after = before.copy()
        after[:, wrong] *= 0.8
        tally = ErrorTally({"y": Division(1, np.array([0, 0, 1, 1, 2]))})
        tally.add(6, {"y": before}, {"y": after})
        found = tally.result()
        assert found is not None
        assert (found.value, found.part) == (pytest.approx(0.2), part)


def test_small_numbers_of_a_batch_that_does_not_tell_samples_apart() -> None:
    before = np.array([[300.0, 1.0], [200.0, 0.5]], np.float32)[:, :, None]
    tally = ErrorTally({"y": Division(1, np.array([0, 1]))})
    for _ in range(2):
        tally.add(5, {"y": before}, {"y": before * np.array([1.0, 0.5], np.float32)[:, None]})
    found = tally.result()
    assert found is not None
    assert (found.value, found.part) == (pytest.approx(0.5), SmallNumbers(1, 1, 2, 1))
