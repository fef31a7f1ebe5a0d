"""Views that the original does not recognise are left out, whatever teaches: labels, its answers, or its blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from onnxcompress.passes.base import LABELS, Pass, PassContext
from onnxcompress.passes.recovery.augmentation import Views
from onnxcompress.passes.recovery.finetuning import FineTuning, FineTuningConfig
from onnxcompress.passes.recovery.reconstruction import Reconstruction, ReconstructionConfig
from onnxcompress.passes.recovery.sample_files import SampleFiles
from onnxcompress.passes.recovery.strange_views import Recognition
from onnxcompress.passes.recovery.training_data import TrainingData
from tests.recovery.small_classifier import original, pruned, samples

NOT_MIRRORED = "images are not mirrored in training: the original does not recognise mirrored ones"
NOT_SHIFTED = "images are not shifted in training: the original does not recognise shifted ones"
FINE_TUNING = FineTuningConfig(epochs=1, batch=32, device="cpu")


@pytest.mark.parametrize(
    ("done", "labels"),
    [
        (FineTuning(FINE_TUNING), True),
        (FineTuning(FINE_TUNING), False),
        (FineTuning(replace(FINE_TUNING, loss="distill")), True),
        (Reconstruction(ReconstructionConfig(epochs=1, batch=32, device="cpu")), False),
    ],
)
def test_stripes_of_one_half_are_not_mirrored(done: Pass, labels: bool) -> None:
    """A standing stripe is of another class in the other half."""
    model, provenance = pruned()
    notes: list[Mapping[str, Any]] = []
    context = PassContext(
        training=samples(200, 5, labels=labels),
        calibration=samples(200, 5),
        original=original(),
        provenance=provenance,
        note=notes.append,
    )
    done.apply(model, done.plan(model, context), context)
    assert NOT_MIRRORED in notes[0]["notes"]


@pytest.mark.parametrize("labelled", [True, False])
def test_only_what_is_recognised_stays(labelled: bool) -> None:
    """Of eight columns the brightest is the class; of the second network the brightest row, which no mirror moves."""
    drawn = np.random.default_rng(0)
    images = drawn.random((40, 1, 8, 8), np.float32)

    def columns(feeds: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return feeds["x"].sum((1, 2))

    def rows(feeds: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return feeds["x"].sum((1, 3))

    for scores, kept, notes in (
        (columns, Views(mirror=False, shift=0.0), [NOT_MIRRORED, NOT_SHIFTED]),
        (rows, Views(mirror=True, shift=0.0), [NOT_SHIFTED]),
    ):
        labels = scores({"x": torch.from_numpy(images)}).argmax(1).numpy()
        with SampleFiles("data") as files:
            positions = files.add([{"x": images, LABELS: labels} if labelled else {"x": images}])
            data = TrainingData(files, positions[10:], positions[:10], torch.device("cpu"), None)
            recognition = Recognition(data, scores, 16, labelled=labelled)
            assert recognition.rate() == 1.0
            assert recognition.without_strange(Views(mirror=True, shift=0.5), 0) == (kept, notes)
            assert recognition.without_strange(kept, 0) == (kept, [])
