"""An output of boxes in pixels and scores from 0 to 1: every measure of what is lost counts both."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcompress
from onnxcompress.cli import main
from onnxcompress.evaluation.relative_error import SmallNumbers
from onnxcompress.graph import Model
from onnxcompress.passes.base import LABELS, PassContext
from onnxcompress.passes.recovery.allocation_samples import spread
from onnxcompress.passes.recovery.output_weights import output_weights
from tests.small_models import run_all
from tests.tiny_models import BOXES, SCORES, conv_net, detector_net, samples

CALIB = [{"x": samples(300, seed=5)}]
IMAGES = samples(80, seed=2)
OPTIONS: dict[str, Any] = {"calib": CALIB, "data": [{"x": IMAGES}], "latency": False, "round_to": 1}


def answers(model: Model | onnx.ModelProto) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and scores, float64."""
    tensors = run_all(model if isinstance(model, Model) else Model.from_proto(model), {"x": IMAGES})
    found = tensors["found"].astype(np.float64)
    return found[:, :BOXES], found[:, BOXES:]


def errors(model: Model) -> list[float]:
    """Relative errors of boxes and of scores."""
    pairs = zip(answers(detector_net()), answers(model), strict=True)
    return [float(np.linalg.norm(one - two) / np.linalg.norm(one)) for one, two in pairs]


def variations() -> list[float]:
    """Of boxes and of scores the sum of squares about the mean over the samples that weights are of, for one sample."""
    seen = [run_all(Model.from_proto(detector_net()), each)["found"] for each in spread(lambda: CALIB, 48)]
    found = np.concatenate(seen).astype(np.float64)
    return [float(own.var(axis=0).sum()) for own in (found[:, :BOXES], found[:, BOXES:])]


def test_both_kinds_are_spared() -> None:
    """A budget over the layers of both heads: one output of both is compressed much as two outputs are."""
    joined = onnxcompress.compress(detector_net(), target={"macs": 0.7}, **OPTIONS)
    apart = onnxcompress.compress(detector_net(joined=False), target={"macs": 0.7}, **OPTIONS)
    boxes, scores = errors(joined.model)
    assert 0.0 < scores < 3.0 * boxes
    for name in ("boxes_head", "scores_head"):
        ranks = [
            [d.get("rank_out") for d in plan.decisions if d["node"] == name]
            for result in (joined, apart)
            for plan in result.plan.plans
            if plan.pass_name == "allocate"
        ]
        assert ranks[0] == ranks[1]


def test_the_report_tells_the_error_of_the_small_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original, changed = detector_net(), detector_net()
    for tensor in changed.graph.initializer:
        if tensor.name == "w_scores":
            tensor.CopyFrom(onnx.numpy_helper.from_array(0.5 * onnx.numpy_helper.to_array(tensor), tensor.name))
    onnx.save(original, tmp_path / "a.onnx")
    onnx.save(changed, tmp_path / "b.onnx")
    np.savez(tmp_path / "data.npz", x=IMAGES)
    words = ["compare", str(tmp_path / "a.onnx"), str(tmp_path / "b.onnx"), "--data", str(tmp_path / "data.npz")]
    words += ["--no-latency", "--report", str(tmp_path / "r.json")]
    assert main([*words, "--max-error", "5"]) == 3
    accuracy = json.loads((tmp_path / "r.json").read_text())["accuracy"]
    one, two = (answers(each)[1] for each in (original, changed))
    assert accuracy["relative_error"] == pytest.approx(np.linalg.norm(one - two) / np.linalg.norm(one), rel=1e-5)
    assert accuracy["relative_error_output"] == "found"
    assert accuracy["relative_error_part"] == {"axis": 1, "count": SCORES, "length": BOXES + SCORES, "first": BOXES}
    assert f"small numbers ({SCORES} of {BOXES + SCORES} along axis 1, from {BOXES} on)" in capsys.readouterr().out


def test_a_search_keeps_the_limit_for_both() -> None:
    result = onnxcompress.compress(detector_net(), tucker="auto", max_error=20.0, **OPTIONS)
    assert result.passed
    assert max(errors(result.model)) <= 0.2
    found = result.report.accuracy
    assert found is not None
    assert found.relative_error == pytest.approx(max(errors(result.model)), rel=1e-3)
    assert found.relative_error_part in (None, SmallNumbers(1, SCORES, BOXES + SCORES, BOXES))


def test_training_counts_both() -> None:
    torch = pytest.importorskip("torch")
    from onnxcompress.passes.recovery.block_errors import make_pair

    original, context = Model.from_proto(detector_net()), PassContext(calibration=lambda: CALIB)
    model = onnxcompress.compress(detector_net(), tucker="ratio=0.4", recover="none", **OPTIONS).model
    pair = make_pair(model, (), torch.device("cpu"), replace(context, original=original))
    with torch.no_grad():
        _, found = pair.compared({"x": torch.from_numpy(IMAGES)})
    missed = [
        np.square(one - two).sum() / len(IMAGES) for one, two in zip(answers(original), answers(model), strict=True)
    ]
    wanted = np.mean([one / variation for one, variation in zip(missed, variations(), strict=True)])
    assert float(found.outputs) == pytest.approx(wanted, rel=1e-3)
    # Processes that train together know the training data alone: the same weights come of these in all of them.
    training = PassContext(original=original, training=lambda: [{"x": IMAGES, LABELS: np.zeros(len(IMAGES))}])
    first, other = (
        make_pair(model, (), torch.device("cpu"), each).weights["found"]
        for each in (training, replace(training, calibration=lambda: CALIB))
    )
    assert torch.equal(first, other)
    assert not torch.equal(first, pair.weights["found"])


def test_taylor_counts_what_only_small_numbers_read() -> None:
    """Filters that only the score head reads are worth as much as those that only the box head reads."""
    pytest.importorskip("torch")
    model = detector_net()
    for tensor in model.graph.initializer:
        if tensor.name in ("w_boxes", "w_scores"):
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[:, 8:] *= tensor.name == "w_scores"
            values[:, :8] *= tensor.name == "w_boxes"
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    options = {**OPTIONS, "prune": 0.5, "importance": "taylor", "recover": "none"}
    result = onnxcompress.compress(model, **options)
    (plan,) = [plan for plan in result.plan.plans if plan.pass_name == "prune"]
    (removed,) = [d["removed"]["second"] for d in plan.decisions if "second" in d["removed"]]
    assert 2 <= sum(channel >= 8 for channel in removed) <= 6


def test_weights_are_of_outputs_that_do_not_classify() -> None:
    model = Model.from_proto(detector_net())
    weights_of = partial(output_weights, calibration=lambda: CALIB)
    weights = weights_of(model, ["found", "boxes"])
    assert {name: own.shape for name, own in weights.items()} == {"found": (1, BOXES + SCORES, 1), "boxes": (1, 1, 1)}
    boxes, scores = weights["found"][0, :BOXES, 0], weights["found"][0, BOXES:, 0]
    for own, variation in zip((boxes, scores), variations(), strict=True):
        np.testing.assert_allclose(own * variation, 0.5, rtol=1e-4)
    assert weights_of(Model.from_proto(conv_net()), ["y"]) == {}


def test_what_is_added_to_every_answer_changes_no_weight() -> None:
    """Boxes at the places of their anchors are judged as the offsets that the network finds."""
    plain, anchored = detector_net(), detector_net()
    for tensor in anchored.graph.initializer:
        if tensor.name == "b_boxes":
            tensor.CopyFrom(onnx.numpy_helper.from_array(50.0 + onnx.numpy_helper.to_array(tensor), tensor.name))
    offsets, boxes = (
        output_weights(Model.from_proto(each), ["found"], calibration=lambda: CALIB)["found"]
        for each in (plain, anchored)
    )
    np.testing.assert_allclose(boxes, offsets, rtol=1e-3)
