"""Softmax along another axis than the last: the same by a maximum and a sum, once all else is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcompress
from onnxcompress.errors import RecipeError
from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext, Plan
from onnxcompress.passes.cleanup import Lowering
from onnxcompress.passes.race import RaceResult
from tests.passes.cleanup_models import CPU, WON, assert_close, clean, ops, outputs, reasons, weight, won
from tests.small_models import build, node

SHAPE = ("n", 6, 5, 4)
WRITTEN = ["ReduceMax", "Sub", "Exp", "ReduceSum", "Div"]
TOLERANCE = 1e-5


def lowered(model: Model, context: PassContext = WON) -> tuple[Model, Plan]:
    return clean(model, context=context, kind=Lowering)


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
@pytest.mark.parametrize("axis", [0, 1, -3, 2])
@pytest.mark.parametrize(
    ("op", "written"), [("Softmax", WRITTEN), ("LogSoftmax", ["ReduceMax", "Sub", "Exp", "ReduceSum", "Log", "Sub"])]
)
def test_one_axis_of_several(op: str, written: list[str], axis: int, opset: int) -> None:
    model = build([node(op, ["x"], "y", name="scores", axis=axis)], opset=opset, shape=SHAPE)
    cleaned, plan = lowered(model)
    assert ops(cleaned) == written
    (decision,) = plan.decisions
    assert (decision["step"], decision["node"], decision["axis"]) == ("softmax", "scores", axis % 4)
    onnx.checker.check_model(cleaned.to_proto(), full_check=True)
    assert_close(model, cleaned, TOLERANCE)


def test_large_scores_and_masked_ones_are_no_overflow() -> None:
    model = build([node("Softmax", ["x"], "y", axis=1)], shape=("n", 3, 1, 2))
    cleaned, _ = lowered(model)
    values = np.array([[[[1e4, -np.inf]], [[1e4 - 1, 3e38]], [[-1e4, 3e38]]]], np.float32)
    np.testing.assert_allclose(outputs(cleaned, {"x": values})[0], outputs(model, {"x": values})[0], rtol=1e-6)


@pytest.mark.parametrize("opset", [9, 12, 17])
def test_transposes_around_it_go_along(opset: int) -> None:
    nodes = [
        node("Relu", ["x"], "r", name="before"),
        node("Transpose", ["r"], "t", name="turned", perm=[0, 3, 2, 1]),
        node("Softmax", ["t"], "s", name="scores", axis=3),
        node("Transpose", ["s"], "y", name="back", perm=[0, 3, 2, 1]),
    ]
    model = build(nodes, opset=opset, shape=SHAPE)
    cleaned, plan = lowered(model)
    assert ops(cleaned) == ["Relu", *WRITTEN]
    assert plan.decisions[0]["nodes"] == ["turned", "scores", "back"]
    assert_close(model, cleaned, TOLERANCE)


TURNED = node("Transpose", ["x"], "t", perm=[0, 3, 2, 1])
LAST = node("Softmax", ["t"], "s", axis=3)


@pytest.mark.parametrize(
    ("nodes", "settings"),
    [
        ([node("Softmax", ["x"], "y", axis=-1)], {}),
        ([node("Softmax", ["x"], "y", axis=1)], {"shape": ("n", 6, 1, 1)}),
        ([node("Softmax", ["x"], "y", axis=1)], {"opset": 12}),
        ([TURNED, LAST, node("Transpose", ["s"], "y", perm=[0, 3, 1, 2])], {}),
        ([TURNED, LAST, node("Transpose", ["s"], "y", perm=[0, 3, 2, 1])], {"outputs": ("y", "s")}),
        ([TURNED, LAST, node("Transpose", ["s"], "y", perm=[0, 3, 2, 1])], {"outputs": ("y", "t")}),
        ([TURNED, LAST, node("Transpose", ["s"], "y", perm=[0, 3, 2, 1]), node("Neg", ["t"], "n")], {}),
        ([node("Cast", ["x"], "t", to=10), node("Softmax", ["t"], "y", axis=1)], {}),
    ],
)
def test_what_works_along_the_last_axis_stays(nodes: list[onnx.NodeProto], settings: dict[str, Any]) -> None:
    model = build(nodes, **{"shape": SHAPE, "outputs": ("y",), **settings})
    cleaned, plan = lowered(model)
    assert ops(cleaned) == ops(model)
    assert not plan.decisions


def test_a_lost_race_none_and_exclude_leave_it() -> None:
    model = build([node("Softmax", ["x"], "y", name="scores", axis=1)], shape=SHAPE)
    lost = PassContext(race=lambda before, after: (RaceResult(CPU, 0.9, (0.8, 1.0)),))
    for context, why in (
        (lost, "0.90 x on CPU"),
        (PassContext(), "not timed"),
        (PassContext(race=won, exclude=("scores",)), "excluded"),
    ):
        cleaned, plan = lowered(model, context)
        assert ops(cleaned) == ["Softmax"]
        assert why in reasons(plan)["scores"]


def test_a_plan_of_another_model_is_refused() -> None:
    decision = {"step": "softmax", "round": 1, "node": "scores", "op": "Softmax", "nodes": ["scores"], "axis": 1}
    other = build([node("Softmax", ["x"], "y", name="scores", axis=3)], shape=SHAPE)
    with pytest.raises(RecipeError, match="'scores' by a maximum and a sum, which has no such form"):
        Lowering().apply(other, Plan("lowering", (decision,)), PassContext())


def segmentation() -> Model:
    nodes = [
        node("Conv", ["x", "w"], "c", name="first", pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c", "s", "b", "b", "s"], "n", name="normal"),
        node("Relu", ["n"], "r", name="bend"),
        node("Conv", ["r", "v"], "z", name="second"),
        node("Softmax", ["z"], "y", name="scores", axis=1),
    ]
    constants = {"w": weight(32, 6, 3, 3), "v": weight(3, 32, 1, 1), "s": np.ones(32, np.float32)}
    return build(nodes, {**constants, "b": np.zeros(32, np.float32)}, shape=("n", 6, 24, 24))


@pytest.fixture
def races_won(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcompress.pipeline.compress.race_on", lambda *given, **named: won)


OPTIONS: dict[str, Any] = {"prune": 0.25, "tucker": "ratio=0.5", "recover": "refit", "round_to": 1, "threads": 1}


def batches() -> Any:
    values = np.random.default_rng(0).standard_normal((60, 6, 24, 24)).astype(np.float32)
    return lambda: iter([{"x": values}])


@pytest.mark.usefixtures("races_won")
def test_it_comes_behind_compression_and_its_gain_is_not_compressions(tmp_path: Path) -> None:
    proto, plan = segmentation().to_proto(), tmp_path / "plan.json"
    result = onnxcompress.compress(proto, calib=batches(), save_plan=plan, repeat=20, **OPTIONS)
    names = [stage.pass_name for stage in result.report.stages]
    assert names == ["cleanup", "prune", "tucker", "refit", "lowering"]
    assert ops(result.model)[-5:] == WRITTEN
    step, share = result.report.stages[-1].steps
    assert (share.step, share.changes) == ("share", 0)
    assert (step.step, step.changes, step.why) == ("softmax", 1, "1.30 x on CPU, timed in the network")
    assert result.report.latency[0].credit is not None
    assert [check.pass_name for check in result.report.self_checks][-1] == "lowering"
    replayed = onnxcompress.compress(proto, calib=batches(), plan=plan, latency=False)
    assert replayed.model.to_bytes() == result.model.to_bytes()


@pytest.mark.usefixtures("races_won")
def test_its_gain_is_clean_ups_where_nothing_else_was_to_clean() -> None:
    nodes = [node("Conv", ["x", "w"], "z", name="only"), node("Softmax", ["z"], "y", name="scores", axis=1)]
    model = build(nodes, {"w": weight(8, 6, 3, 3)}, shape=("n", 6, 8, 8))
    report = onnxcompress.compress(model.to_proto(), tucker="ratio=0.5", round_to=1, threads=1, repeat=20).report
    assert [(stage.pass_name, bool(stage.decisions)) for stage in report.stages] == [
        ("cleanup", False),
        ("tucker", True),
        ("lowering", True),
    ]
    assert report.latency[0].credit is not None


def test_another_model_of_the_run_gets_what_it_has() -> None:
    model = segmentation()
    _, plan = lowered(model)
    assert ops(Lowering().again(model, plan))[-5:] == WRITTEN
    nodes = [node("Softmax", ["x"], "s", name="scores", axis=-1), node("Softmax", ["s"], "y", name="others", axis=1)]
    other = build(nodes, shape=SHAPE)
    assert ops(Lowering().again(other, plan)) == ["Softmax", "Softmax"]


@pytest.mark.usefixtures("races_won")
def test_clean_up_in_two_parts_is_clean_up() -> None:
    report = onnxcompress.compress(segmentation().to_proto(), threads=1, repeat=20).report
    assert [stage.pass_name for stage in report.stages] == ["cleanup", "lowering"]
    assert all(stage.decisions for stage in report.stages)
    assert report.latency[0].credit is None
    assert "nothing but clean-up, which is exact, was asked for" in " ".join(report.warnings)


@pytest.mark.usefixtures("races_won")
@pytest.mark.parametrize(("option", "expected"), [("auto", True), ("auto,-softmax", False), ("off", False)])
def test_it_is_a_step_of_clean_up(option: str, expected: bool) -> None:
    result = onnxcompress.compress(segmentation().to_proto(), cleanup=option, threads=1, repeat=20)
    assert ("Softmax" not in ops(result.model)) == expected


@pytest.mark.usefixtures("races_won")
@pytest.mark.parametrize(("kind", "written"), [("int8", True), ("fp16", False)])
def test_quantised_models_keep_probabilities_in_float(kind: str, written: bool) -> None:
    proto = segmentation().to_proto()
    result = onnxcompress.compress(proto, calib=batches(), data=batches(), quantize=kind, threads=1, repeat=20)
    assert (ops(result.model)[-5:] == WRITTEN) == written
    accuracy = result.report.accuracy
    assert accuracy is not None
    assert (accuracy.relative_error or 1.0) < 0.05
