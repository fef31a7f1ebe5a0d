"""What teaches in fine-tuning, and when it keeps what it came to: what it won is more than chance explains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch

from onnxcompress.graph import Model
from onnxcompress.passes.recovery import training
from onnxcompress.passes.recovery.block_errors import Pair
from onnxcompress.passes.recovery.finetuning import doubted
from onnxcompress.passes.recovery.training import is_better
from tests.recovery.small_classifier import accuracy, images, original, pruned, samples
from tests.recovery.test_finetuning import CONFIG, fine_tune, refitted, training_data


def test_what_chance_may_turn_falls_with_the_number_of_judges() -> None:
    assert [doubted(judges) for judges in (5, 30, 60, 120)] == [16.0, 16.0, 4.0, 1.0]


def test_a_network_that_errs_little_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer than 16 of its answers are wrong: that so many may have turned by chance is not said of 200 judges."""
    doubts: list[float] = []

    def recorded(before: torch.Tensor, after: torch.Tensor, doubt: float = 0.0) -> bool:
        doubts.append(doubt)
        return is_better(before, after, doubt)

    monkeypatch.setattr(training, "is_better", recorded)
    seed = 22
    start = refitted(300, seed)
    result, outcome = fine_tune(
        CONFIG, start, training=samples(1200, seed, labels=True), calibration=samples(300, seed)
    )
    assert outcome["samples"] == {"trained": 1000, "held_out": 200}
    assert doubts[-1] == doubted(200) < 1.0
    before, after = outcome["score"]
    assert after < before
    assert 200 * (1.0 - accuracy(start)) < 16
    assert accuracy(result.model) > accuracy(start) + 0.01


def with_sigmoid(model: Model) -> Model:
    """Return a classifier whose last Softmax is a Sigmoid: the most likely class of the same scores."""
    proto = model.to_proto()
    (last,) = (node for node in proto.graph.node if node.op_type == "Softmax")
    last.op_type = "Sigmoid"
    del last.attribute[:]
    return Model.from_proto(proto)


@pytest.mark.parametrize("loss", ["labels", "both", "distill"])
def test_classes_apart_are_learnt_each_by_itself(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = training_data(monkeypatch)
    models = with_sigmoid(pruned()[0]), with_sigmoid(original())
    result, outcome = fine_tune(replace(CONFIG, loss=loss), models[0], original=models[1])
    pixels, labels = (array[judged[0].held_out] for array in images(300, 5))
    q, p = (onnxruntime.InferenceSession(m.to_bytes()).run(None, {"input": pixels})[0] for m in models)
    q, p = (each.astype(np.float64).clip(1e-6, 1 - 1e-6) for each in (q, p))
    y = np.eye(4)[labels]
    wrong = (q.argmax(1) != labels).mean()
    of_labels = -(y * np.log(q) + (1 - y) * np.log(1 - q)).sum(1).mean()
    away = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(1).mean()
    wanted = {"labels": wrong + 0.01 * of_labels, "both": wrong + 0.5 * (of_labels + away), "distill": away}
    assert outcome["score"][0] == pytest.approx(wanted[loss], rel=1e-3)
    assert accuracy(result.model) > 0.85


def test_from_labels_alone_the_original_has_no_part_in_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: Pair, feeds: object, *, apart: bool = False) -> None:
        raise AssertionError("the original ran in a step")

    monkeypatch.setattr(Pair, "compared", never)
    fine_tune(replace(CONFIG, epochs=1, loss="labels"))
