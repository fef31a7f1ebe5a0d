"""Samples of a layer: which images are fitted to, which only judge, and that rows and targets stay together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext
from onnxcompress.passes.recovery import refit_samples
from onnxcompress.passes.recovery.refit_layers import RefitLayer, find_refit_layers
from onnxcompress.passes.recovery.refit_samples import LayerRows, shares_rows
from onnxcompress.passes.recovery.refit_solve import held_out
from tests.tiny_models import conv_net


def some_layers() -> list[RefitLayer]:
    model = Model.from_proto(conv_net())
    return find_refit_layers(model, model, PassContext())[0]


LAYER = some_layers()[0]


def a_layer_rows(images: int, rows: np.ndarray, layers: int = 1) -> LayerRows:
    return LayerRows(LAYER, images, len(rows), layers)


def rows_of(images: int, positions: int) -> np.ndarray:
    """Rows (images x positions, 2) that say where they come from."""
    image, position = np.divmod(np.arange(images * positions), positions)
    return np.stack([image, position], axis=1).astype(np.float32)


@pytest.mark.parametrize(("images", "count"), [(4, 0), (5, 1), (11, 2), (250, 50), (400, 50), (500, 50), (5000, 500)])
def test_a_fifth_is_held_out_and_of_many_images_a_tenth(images: int, count: int) -> None:
    assert held_out(images).shape == (images,)
    assert held_out(images).sum() == count


@pytest.mark.parametrize("batch", [1, 3, 11])
def test_every_so_manieth_image_judges_and_the_others_are_fitted_to(batch: int) -> None:
    images, positions = 11, 4
    rows = rows_of(images, positions)
    gathered = a_layer_rows(images, rows)
    for at in range(0, images, batch):
        part = rows[at * positions : (at + batch) * positions]
        gathered.add(len(part) // positions, part)
    assert gathered.nbytes == 9 * positions * rows.shape[1] * 4
    training, judging = gathered.samples(LAYER, rows)
    assert judging is not None
    held = [4, 9]
    assert sorted({int(image) for image in judging.inputs[:, 0]}) == held
    assert sorted({int(image) for image in training.inputs[:, 0]}) == [i for i in range(images) if i not in held]
    assert len(training.inputs) + len(judging.inputs) == len(rows)
    for part in (training, judging):
        np.testing.assert_array_equal(part.inputs, part.targets)
    assert gathered.nbytes == 0


def test_some_positions_of_each_image_are_enough_to_judge_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refit_samples, "_JUDGED_ROWS", 8)
    images, positions = 10, 9
    rows = rows_of(images, positions)
    gathered = a_layer_rows(images, rows)
    gathered.add(images, rows)
    training, judging = gathered.samples(LAYER, rows)
    assert judging is not None
    assert len(training.inputs) == 8 * positions
    np.testing.assert_array_equal(judging.inputs, judging.targets)
    for image in (4, 9):
        own = judging.inputs[judging.inputs[:, 0] == image, 1]
        assert list(own) == [0, 2, 4, 6]


@pytest.mark.parametrize(("images", "rows"), [(4, rows_of(4, 2)), (5, rows_of(1, 3))])
def test_few_images_and_rows_that_belong_to_no_image_are_fitted_to(images: int, rows: np.ndarray) -> None:
    """Four images, of which none is held out; three rows of five images, behind a Reshape that mixes the batch."""
    gathered = a_layer_rows(images, rows)
    gathered.add(images, rows)
    training, judging = gathered.samples(LAYER, rows)
    assert judging is None
    np.testing.assert_array_equal(training.inputs, rows)
    np.testing.assert_array_equal(training.targets, rows)


def test_layers_that_read_the_same_have_their_rows_together_until_the_last_has_asked() -> None:
    images, positions = 10, 3
    rows = rows_of(images, positions)
    gathered = a_layer_rows(images, rows, layers=2)
    gathered.add(images, rows)
    (first, first_judging), whole = gathered.samples(LAYER, rows), gathered.nbytes
    second, second_judging = gathered.samples(replace(LAYER, follows_relu=not LAYER.follows_relu), 2 * rows)
    assert (whole, gathered.nbytes) == (first.inputs.nbytes, 0)
    assert first.known is second.known
    assert first.inputs is second.inputs
    assert first_judging is not None
    assert second_judging is not None
    assert first_judging.inputs is second_judging.inputs
    assert first.relu is first_judging.relu is not second.relu
    np.testing.assert_array_equal(second.targets, 2 * first.targets)
    np.testing.assert_array_equal(second_judging.targets, 2 * first_judging.targets)


def test_layers_share_rows_of_the_same_patches_alone() -> None:
    one, others = LAYER, some_layers()[1:]
    assert shares_rows(one) == shares_rows(replace(one, node="another", output="elsewhere"))
    assert all(shares_rows(one) != shares_rows(other) for other in others)
    for change in ({"kernel_shape": (5, 5)}, {"input": "other"}, {"attributes": {"strides": [2, 2]}}, {"spans": 1}):
        assert shares_rows(one) != shares_rows(replace(one, **change))
