"""Numbers of several kinds in one output: where each kind lies, and how errors of all weigh."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.linalg.sizes import Sizes

Rows = np.ndarray


def sizes_of(array: Rows, batch: int = 5) -> Sizes:
    sizes = Sizes()
    for at in range(0, len(array), batch):
        sizes.add(array[at : at + batch], len(array[at : at + batch]))
    return sizes


def boxes_and_scores(count: int = 12, places: int = 50) -> Rows:
    """(N, 4 + 6, places)."""
    generator = np.random.default_rng(0)
    boxes, scores = 300.0 * generator.random((count, 4, places)), generator.random((count, 6, places))
    return np.concatenate([boxes, scores], axis=1).astype(np.float32)


@pytest.mark.parametrize("axis", [1, 2])
def test_the_small_numbers_are_found(axis: int) -> None:
    array = np.moveaxis(boxes_and_scores(), 1, axis)
    division = sizes_of(array).division()
    assert division is not None
    assert division.axis == axis
    np.testing.assert_array_equal(division.kinds, np.arange(10) >= 4)
    (small,) = division.smaller
    np.testing.assert_array_equal(small, np.arange(10) >= 4)


@pytest.mark.parametrize("axis", [1, 2])
def test_probabilities_are_a_kind_beside_other_small_numbers(axis: int) -> None:
    """Boxes in pixels, scores and coefficients of masks, as a network that segments what it detects joins them."""
    boxes, scores = np.split(boxes_and_scores(), [4], axis=1)
    coefficients = 8.0 * np.random.default_rng(1).standard_normal((12, 8, 50))
    array = np.moveaxis(np.concatenate([boxes, 1e-3 + 0.1 * scores, coefficients], axis=1), 1, axis)
    division = sizes_of(array).division()
    assert division is not None
    assert division.axis == axis
    np.testing.assert_array_equal(division.kinds, np.repeat([0, 2, 1], [4, 6, 8]))
    assert [int(each.sum()) for each in division.smaller] == [8, 6]
    parts = np.split(np.square(array.astype(np.float64)), [4, 10], axis=axis)
    weights = np.broadcast_to(sizes_of(array).weights(), array.shape)
    for part, weight in zip(parts, np.split(weights, [4, 10], axis=axis), strict=True):
        assert (weight * part).sum() / len(array) == pytest.approx(1 / 3)


def test_probabilities_and_coefficients_alone_are_two_kinds() -> None:
    scores, coefficients = 0.2 * boxes_and_scores()[:, 4:], np.random.default_rng(1).standard_normal((12, 8, 50))
    division = sizes_of(np.concatenate([coefficients, scores], axis=1)).division()
    assert division is not None
    np.testing.assert_array_equal(division.kinds, np.repeat([0, 1], [8, 6]))
    # Numbers as large, or that are often 0 as behind a Relu, are no other kind.
    for others, kinds in (
        (4.5 * scores, 1),
        (np.where(scores < 0.02, 0.0, scores), 1),
        (np.where(scores < 0.0005, 0.0, scores), 2),
    ):
        division = sizes_of(np.concatenate([coefficients, others], axis=1)).division()
        assert (1 if division is None else 1 + int(division.kinds.max())) == kinds


@pytest.mark.parametrize("axis", [1, 2])
def test_an_error_is_the_mean_of_both_kinds(axis: int) -> None:
    before = np.moveaxis(boxes_and_scores(), 1, axis)
    noise = np.moveaxis(np.random.default_rng(1).standard_normal((12, 10, 50)), 1, axis)
    noise *= np.moveaxis(np.where(np.arange(10)[:, None] < 4, 20.0, 0.3), 0, axis - 1)
    weights = sizes_of(before).weights()
    kinds = [np.split(each, [4], axis=axis) for each in (before.astype(np.float64), noise)]
    errors = [np.square(missed).sum() / np.square(whole).sum() for whole, missed in zip(*kinds, strict=True)]
    assert (weights * np.square(noise)).sum() / len(before) == pytest.approx(np.mean(errors))


@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 1), (6, 1, 9), (6,), (6, 3, 9), (6, 0, 9), (6, 5, 0)])
def test_numbers_of_one_size_have_one_weight(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).standard_normal(shape)
    sizes = sizes_of(array)
    assert sizes.division() is None
    weights = sizes.weights()
    assert weights.shape == (1,) * len(shape)
    assert (weights * np.square(array)).sum() / len(array) == pytest.approx(1.0 if array.size else 0.0)


def test_what_is_not_there_is_not_a_kind() -> None:
    """Numbers from 0 to 1, such as the probabilities of classes that no picture shows."""
    array = np.random.default_rng(0).random((8, 10, 5))
    array[:, 3:] *= 1e-4
    assert sizes_of(array).division() is None
    assert sizes_of(1.1 * array / array.max()).division() is not None


def test_along_places_numbers_fade() -> None:
    """A map that is empty towards its edges is of one kind; so is what only lacks a gap."""
    fading = np.exp(-0.3 * np.abs(np.arange(60) - 30.0))
    array = 50.0 * fading * np.random.default_rng(0).random((8, 1, 20, 60))
    assert sizes_of(array).division() is None
    kinds = boxes_and_scores() - 0.5  # no probabilities
    assert sizes_of(kinds).division() is not None
    kinds[:, 4:9] *= np.array([100.0, 30.0, 10.0, 5.0, 2.0])[:, None]
    assert sizes_of(kinds).division() is None


@pytest.mark.parametrize("shape", [(8, 30, 7, 7), (8, 3, 7, 7, 30), (8, 7, 7, 30), (8, 7, 30)])
def test_kinds_may_be_more_than_places(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).random(shape)
    axis = shape.index(30)
    np.moveaxis(array, axis, -1)[..., :4] *= 300.0
    division = sizes_of(array).division()
    assert division is not None
    assert (division.axis, int(division.kinds.sum())) == (axis, 26)


def test_zeros_are_not_a_kind() -> None:
    array = boxes_and_scores()
    array[:, 4:] = 0.0
    sizes = sizes_of(array)
    assert sizes.division() is None
    assert sizes_of(np.zeros((4, 3, 5))).weights().item() == 0.0


def test_along_an_axis_of_varying_length_there_are_no_kinds() -> None:
    sizes, energy = Sizes(), 0.0
    for length in (5, 6, 5):
        array = np.random.default_rng(0).standard_normal((2, length, 9))
        array[:, 0] *= 1000.0
        sizes.add(array, 2)
        energy += float(np.square(array).sum())
    assert sizes.division() is None
    assert sizes.weights() == pytest.approx(6 / energy)


def test_numbers_that_are_not_finite_weigh_nothing() -> None:
    array = boxes_and_scores()
    for value in (np.inf, np.nan):
        array[3, 1, 7] = value
        assert sizes_of(array).weights().item() == 0.0


def spread_of(array: Rows, batches: list[int]) -> Sizes:
    sizes = Sizes(about_mean=True)
    for part in np.split(array, np.cumsum(batches)[:-1]):
        sizes.add(part, len(part))
    return sizes


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("batches", [[12], [5, 5, 2], [1] * 12])
def test_about_the_mean_what_every_sample_has_weighs_nothing(axis: int, batches: list[int]) -> None:
    """Boxes at the places of their anchors; the kinds are those of the sizes, whatever the batches are."""
    array = boxes_and_scores().astype(np.float64)
    array[:, :4] = array[:, :4] / 100.0 + 1e4 * np.random.default_rng(1).random((4, 50))
    array = np.moveaxis(array, 1, axis)
    sizes = spread_of(array, batches)
    division = sizes.division()
    assert division is not None
    np.testing.assert_array_equal(division.kinds, np.arange(10) >= 4)
    weights = np.broadcast_to(sizes.weights(), array.shape)
    for kind in np.split(weights * np.square(array - array.mean(axis=0)), [4], axis=axis):
        assert kind.sum() / len(array) == pytest.approx(0.5, rel=1e-9)
    raw = sizes_of(array).weights()
    assert raw.shape == sizes.weights().shape
    assert weights[0].max() > 1e5 * raw.min()


@pytest.mark.parametrize("shape", [(6,), (6, 7), (6, 3, 9)])
def test_a_large_mean_cancels_no_digits(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).standard_normal(shape)
    weights = [spread_of(array + mean, [4, 2]).weights().item() for mean in (0.0, 1e5)]
    assert weights[0] == pytest.approx(len(array) / np.square(array - array.mean(axis=0)).sum(), rel=1e-12)
    assert spread_of(array + 1e4, [4, 2]).weights().item() == pytest.approx(weights[0], rel=1e-9)
    # So little of so much is no more than the rounding of float32.
    assert weights[1] == pytest.approx(len(array) / np.square(array + 1e5).sum())


def test_what_never_varies_is_judged_by_its_size() -> None:
    """One sample, the same one again, and a kind of numbers that is constant beside another that is not."""
    one = boxes_and_scores(1)
    for array in (one, np.repeat(one, 5, axis=0)):
        np.testing.assert_allclose(spread_of(array, [1] * len(array)).weights(), sizes_of(array).weights())
    array = boxes_and_scores()
    array[:, :4] = array[0, :4]
    about, raw = spread_of(array, [5, 7]).weights().ravel(), sizes_of(array).weights().ravel()
    np.testing.assert_allclose(about[:4], raw[:4])
    assert (about[4:] > 2.0 * raw[4:]).all()


def test_where_samples_are_not_told_apart_batches_are() -> None:
    """(steps, B, features), with B of three samples."""
    array = 5.0 + np.random.default_rng(0).standard_normal((4, 7, 3, 2))
    sizes = Sizes(about_mean=True)
    for each in array:
        sizes.add(each, 3)
    assert sizes.weights().item() == pytest.approx(12 / np.square(array - array.mean(axis=0)).sum())
    sizes.add(array[0, :5], 3)  # of another length: there is no mean
    energy = np.square(array).sum() + np.square(array[0, :5]).sum()
    assert sizes.weights().item() == pytest.approx(15 / energy)


def test_about_the_mean_numbers_that_are_not_finite_weigh_nothing() -> None:
    array = boxes_and_scores()
    for value in (np.inf, np.nan):
        array[3, 1, 7] = value
        assert spread_of(array, [5, 7]).weights().item() == 0.0
