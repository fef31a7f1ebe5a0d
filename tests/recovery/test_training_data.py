"""Samples on disk, views of images, and how far outputs are from the original's."""

from __future__ import annotations

import math
import tempfile
from io import FileIO
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch.nn import functional

from onnxcompress.errors import DataError
from onnxcompress.graph import Model
from onnxcompress.passes.base import LABELS
from onnxcompress.passes.recovery import sample_files
from onnxcompress.passes.recovery.augmentation import Views, is_image, random_views
from onnxcompress.passes.recovery.output_errors import (
    class_scores,
    compared_outputs,
    divergence,
    label_losses,
    log_probabilities,
    relative_error,
)
from onnxcompress.passes.recovery.outputs import Output
from onnxcompress.passes.recovery.sample_files import SampleFiles
from onnxcompress.passes.recovery.training_data import TrainingData, fitted_keys, split_off
from tests.runtime.networks import proto_of

FULL = Path("/dev/full")
DRAWN = np.random.default_rng(0)


@pytest.mark.skipif(not FULL.exists(), reason="needs a device that is always full")
def test_a_disk_that_others_fill_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: FileIO(FULL, "wb+"))
    with SampleFiles("data") as files, pytest.raises(DataError, match=r"temporary files fill the disk of .*TMPDIR"):
        files.add([{"x": np.zeros((1, 3, 8, 8), np.float32)}])


def test_samples_come_back_in_any_order_and_in_their_types() -> None:
    pixels = DRAWN.integers(0, 256, (7, 3, 8, 8)).astype(np.float32)
    tokens = DRAWN.integers(0, 9, (7, 4))
    with SampleFiles("data") as files:
        first = files.add([{"x": pixels[:3], "t": tokens[:3]}, {"x": pixels[3:5], "t": tokens[3:5]}])
        second = files.add([{"x": pixels[5:], "t": tokens[5:]}])
        assert (first.tolist(), second.tolist()) == ([0, 1, 2, 3, 4], [5, 6])
        read = files.read(np.array([6, 0, 6]))
    np.testing.assert_array_equal(read["x"], pixels[[6, 0, 6]])  # whole numbers up to 2048 are exact in half precision
    np.testing.assert_array_equal(read["t"], tokens[[6, 0, 6]])
    assert read["x"].dtype == np.float32
    assert read["t"].dtype == np.int64


def test_values_beyond_half_precision_are_kept_whole() -> None:
    values = np.array([[1e6, 1.0]], np.float32)
    with SampleFiles("data") as files:
        files.add([{"x": values}])
        np.testing.assert_array_equal(files.read(np.array([0]))["x"], values)


@pytest.mark.parametrize("scales", [(1e-8, 1e-8), (1.0, 70_000.0)])
def test_values_that_half_precision_would_lose_are_kept_whole(scales: tuple[float, float]) -> None:
    values = DRAWN.random((2, 4, 3, 8, 8), np.float32) * np.array(scales, np.float32)[:, None, None, None, None]
    with SampleFiles("data") as files:
        files.add([{"x": values[0]}, {"x": values[1]}])
        read = files.read(np.arange(8))["x"].reshape(values.shape)
    coarsest = 1e-3 * values.max((1, 2, 3, 4), keepdims=True)
    assert bool((np.abs(read - values) <= coarsest).all())
    np.testing.assert_array_equal(read[1], values[1])


def test_values_that_differ_little_stay_apart() -> None:
    values = DRAWN.random((6, 1, 8, 8), np.float32) + 4096
    with SampleFiles("data") as files:
        files.add([{"x": values}])
        np.testing.assert_array_equal(files.read(np.arange(6))["x"], values)


def test_pixels_take_half_the_room() -> None:
    pixels = (DRAWN.integers(0, 256, (8, 3, 8, 8)) / 255 - 0.45) / 0.22
    with SampleFiles("data") as files:
        files.add([{"x": pixels.astype(np.float32)}])
        read = files.read(np.arange(8))["x"]
    np.testing.assert_array_equal(read, pixels.astype(np.float16).astype(np.float32))


def test_samples_that_cannot_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    with SampleFiles("data") as files, pytest.raises(DataError, match="data: no samples"):
        files.add([])
    with SampleFiles("data") as files, pytest.raises(DataError, match="'x' holds NaN or infinity, at samples from 1"):
        files.add([{"x": np.zeros((1, 2), np.float32)}, {"x": np.full((1, 2), np.inf, np.float32)}])
    with SampleFiles("data") as files, pytest.raises(DataError, match="resize and crop"):
        files.add([{"x": np.zeros((1, 3, 8, 8), np.float32)}, {"x": np.zeros((1, 3, 9, 8), np.float32)}])
    monkeypatch.setattr(sample_files, "_DISK_SHARE", 0.0)
    with SampleFiles("data") as files, pytest.raises(DataError, match="--samples"):
        files.add([{"x": np.zeros((1, 2), np.float32)}])


def test_a_part_is_split_off_by_the_seed() -> None:
    trained, held_out = split_off(np.arange(50), 0.1, 0)
    assert len(held_out) == 5
    assert sorted([*trained, *held_out]) == list(range(50))
    assert held_out.tolist() != split_off(np.arange(50), 0.1, 1)[1].tolist()
    assert [len(part) for part in split_off(np.arange(2), 0.01, 0)] == [1, 1]
    with pytest.raises(DataError, match="at least 2"):
        split_off(np.arange(1), 0.5, 0)


@pytest.mark.parametrize(("count", "held_out"), [(2, 1), (9, 4), (40, 20), (65, 30), (300, 30), (1000, 100)])
def test_of_few_samples_more_judge(count: int, held_out: int) -> None:
    assert [len(part) for part in split_off(np.arange(count), 0.1, 0, least=30)] == [count - held_out, held_out]


def test_samples_that_are_known_judge_last() -> None:
    known = np.arange(50) < 30
    assert split_off(np.arange(50), 0.2, 0, known=known)[1].min() >= 30
    trained, held_out = split_off(np.arange(50), 0.5, 0, known=known)
    assert set(range(30, 50)) < set(held_out)
    assert (len(held_out), sorted([*trained, *held_out])) == (25, list(range(50)))


def test_known_samples_judge_only_where_there_are_few_others() -> None:
    """A start that was fitted to them is better there than anywhere else: nothing that is trained then wins."""
    for count, others, judging in ((400, 50, 50), (400, 100, 80), (100, 20, 30)):
        known = np.arange(count) >= others
        held_out = split_off(np.arange(count), 0.1, 0, least=max(30, count // 5), known=known)[1]
        assert (len(held_out), np.count_nonzero(~known[held_out])) == (judging, min(others, judging))


def test_what_a_refit_holds_out_is_not_known_to_it() -> None:
    pixels = DRAWN.random((50, 1, 4, 4), np.float32)
    with SampleFiles("data") as files:
        files.add([{"x": pixels, LABELS: np.arange(50)}])
        fitted = fitted_keys(lambda: iter([{"x": pixels[10:20]}, {"x": pixels[20:30]}]))
        known = np.flatnonzero([key in fitted for key in files.keys])
    assert known.tolist() == [*range(10, 14), *range(15, 19), *range(20, 24), *range(25, 29)]


def test_labels_stay_with_their_samples() -> None:
    pixels = np.arange(10, dtype=np.float32).reshape(10, 1, 1, 1) * np.ones((1, 1, 8, 8), np.float32)
    with SampleFiles("data") as files:
        positions = files.add([{"x": pixels, LABELS: np.arange(10)}])
        data = TrainingData(files, positions, positions[:4], torch.device("cpu"), None)
        assert data.has_labels
        assert data.image_input == "x"
        feeds, labels = data.views(np.array([7, 2]), Views(), torch.Generator().manual_seed(0))
        assert labels is not None
        assert feeds["x"][:, 0, 0, 0].tolist() == labels.tolist() == [7, 2]
        assert [len(feeds["x"]) for feeds, _ in data.batches(data.held_out, 3)] == [3, 1]


def test_a_fixed_batch_is_filled_up() -> None:
    with SampleFiles("data") as files:
        positions = files.add([{"x": np.zeros((10, 2), np.float32)}])
        data = TrainingData(files, positions, positions[:3], torch.device("cpu"), 4)
        assert (len(data.trained), len(data.held_out)) == (12, 4)
        assert [len(feeds["x"]) for feeds, _ in data.batches(data.trained, 100)] == [4, 4, 4]


def test_some_samples_are_those_that_judge_and_others_from_everywhere() -> None:
    with SampleFiles("data") as files:
        positions = files.add([{"x": np.zeros((20, 2), np.float32)}])
        data = TrainingData(files, positions[4:], positions[:4], torch.device("cpu"), None)
        assert data.some(3).tolist() == [0, 1, 2]
        assert data.some(8).tolist() == [0, 1, 2, 3, 4, 8, 12, 16]
        assert sorted(data.some(100)) == list(range(20))
        assert data.count == 20


@pytest.mark.parametrize(("fixed", "processes", "batch", "step"), [(4, 1, 10, 12), (4, 3, 10, 12), (3, 2, 7, 12)])
def test_a_step_is_whole_batches_of_the_model_in_each_process(
    fixed: int, processes: int, batch: int, step: int
) -> None:
    with SampleFiles("data") as files:
        positions = files.add([{"x": np.zeros((20, 2), np.float32)}])
        data = TrainingData(files, positions[5:], positions[:5], torch.device("cpu"), fixed, processes)
        assert data.step(batch) == step
        assert len(data.trained) % (fixed * processes) == 0
        assert data.counts == {"trained": 15, "held_out": 5}
        assert TrainingData(files, positions, positions, torch.device("cpu"), None, processes).step(batch) == batch


def test_a_digest_tells_other_samples_and_other_labels() -> None:
    def digest(pixels: float, label: int) -> str:
        with SampleFiles("data") as files:
            files.add([{"x": np.full((4, 2), pixels, np.float32), LABELS: np.full(4, label)}])
            return files.digest()

    assert digest(0.5, 1) == digest(0.5, 1)
    assert len({digest(0.5, 1), digest(0.25, 1), digest(0.5, 2)}) == 3


def image() -> torch.Tensor:
    return torch.arange(2 * 3 * 8 * 10, dtype=torch.float32).reshape(2, 3, 8, 10)


def test_mirrored_views_are_exact() -> None:
    images = image().repeat(8, 1, 1, 1)
    views = random_views(images, Views(mirror=True), torch.Generator().manual_seed(0))
    same = (views == images).flatten(1).all(1)
    mirrored = (views == images.flip(3)).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 2 <= int(mirrored.sum()) <= 14


def test_shifted_views_move_by_whole_pixels() -> None:
    images = image()[:1].repeat(16, 1, 1, 1) + 1.0
    views = random_views(images, Views(mirror=False, shift=0.2), torch.Generator().manual_seed(0))
    padded = functional.pad(images[:1], (4, 4, 4, 4))
    windows = padded.unfold(2, 8, 1).unfold(3, 10, 1)[0]  # every shift of up to four pixels
    for view in views:
        differences = (windows - view[:, None, None]).abs().amax((0, 3, 4))
        assert differences.min() < 1e-3
    assert len({tuple(view.flatten().tolist()) for view in views}) > 4


def test_zoomed_views_show_a_part_enlarged() -> None:
    ramp = torch.linspace(-1, 1, 32).expand(1, 1, 32, 32).repeat(20, 1, 1, 1)
    views = random_views(ramp, Views(mirror=False, zoom=0.25), torch.Generator().manual_seed(0))
    ranges = views[:, 0, 16].amax(1) - views[:, 0, 16].amin(1)
    assert ranges.max() <= 2.0 + 1e-6
    assert ranges.min() < 1.4
    assert views.min() >= -1.0


def test_views_depend_on_the_generator_only() -> None:
    views = Views(zoom=0.5, stretch=1.3, shift=0.1)
    first, second = (random_views(image(), views, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(random_views(image(), Views(mirror=False), torch.Generator()), image())


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [((3, 32, 32), True), ((1, 8, 8), True), ((16, 32, 32), False), ((3, 4, 4), False), ((9,), False)],
)
def test_what_is_an_image(shape: tuple[int, ...], wanted: bool) -> None:
    assert is_image(shape) is wanted


def test_divergence_is_of_the_distributions_whatever_the_scores_are() -> None:
    logits = torch.from_numpy(DRAWN.normal(size=(2, 5, 7)))
    probabilities = logits.softmax(2)
    p, q = probabilities[0], probabilities[1]
    expected = (p * (p / q).log()).sum(1).float()
    assert torch.allclose(divergence(logits[1], logits[0]), expected, atol=1e-6)
    assert torch.allclose(divergence(q, p), expected, atol=1e-6)
    assert divergence(p, p).abs().max() < 1e-6
    assert bool(log_probabilities(torch.tensor([[0.0, 1.0]])).isfinite().all())


def test_classes_apart_are_taught_each_by_itself() -> None:
    p, q = (torch.from_numpy(DRAWN.uniform(0.05, 0.95, (5, 7))) for _ in range(2))
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(1).float()
    assert torch.allclose(divergence(q, p, apart=True), expected, rtol=1e-4)
    labels = torch.arange(5)
    rows = torch.arange(5)
    others = (1 - p).log().sum(1) - (1 - p)[rows, labels].log()
    assert torch.allclose(label_losses(p, labels, apart=True), -(p[rows, labels].log() + others).float(), rtol=1e-4)
    # Of certain ones neither is infinite, and equal ones do not diverge.
    certain = torch.tensor([[0.0, 1.0, 1.0]])
    assert divergence(certain, certain, apart=True).item() == pytest.approx(0.0, abs=1e-4)
    assert bool(label_losses(certain, torch.tensor([0]), apart=True).isfinite())


@pytest.mark.parametrize("moved", [False, True])
def test_scores_of_a_last_sigmoid_are_apart(moved: bool) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Sigmoid", ["c"], ["p"])]
    nodes += [helper.make_node("Flatten", ["p"], ["y"])] if moved else []
    weights = {"w": np.ones((3, 2, 1, 1), np.float32)}
    (name, shape) = ("y", ("n", 3)) if moved else ("p", ("n", 3, 1, 1))
    floats = TensorProto.FLOAT
    model = Model.from_proto(proto_of(nodes, {"x": (floats, ("n", 2, 1, 1))}, {name: (floats, shape)}, weights))
    assert compared_outputs(model, model) == (Output(name, name, apart=True),)


def test_relative_error() -> None:
    t = torch.tensor([3.0, 4.0])
    assert relative_error(torch.zeros(2), t).item() == 1.0
    assert relative_error(t, t).item() == 0.0
    assert relative_error(torch.zeros(2), torch.zeros(2)).item() == 0.0
    assert math.isfinite(relative_error(t, torch.zeros(2)).item())


def test_scores_of_a_last_softmax_are_compared_before_it() -> None:
    model = Model.load("models/googlenet-digits.onnx")
    (output,) = compared_outputs(model, model)
    assert output.compared == output.name == "logits"
    from tests.recovery.small_classifier import original

    (output,) = compared_outputs(original(), original())
    assert output.name == "prob"
    assert output.compared != "prob"
    (output,) = compared_outputs(original(), model)  # another network has no such tensor
    assert output.compared == "prob"


def test_what_classifies() -> None:
    assert class_scores(torch.zeros(2, 5, 1, 1)).shape == (2, 5)  # type: ignore[union-attr]
    assert class_scores(torch.zeros(2, 5, 4, 4)) is None
    assert class_scores(torch.zeros(2, 1)) is None
