"""One-dimensional convolutions in two dimensions: exact, only where a race is won, with all that stands between."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import onnxcompress
from onnxcompress.errors import RecipeError
from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext, Plan
from onnxcompress.passes.cleanup import Cleanup
from onnxcompress.passes.race import RaceResult
from tests.fuzz import standard
from tests.passes.cleanup_models import CPU, WON, assert_close, clean, ops, reasons, weight, won
from tests.small_models import build, node

SHAPE = ("n", 6, 20)
TOLERANCE = 1e-5


def shapes_of(model: Model, op: str) -> list[tuple[int, ...]]:
    return [each.inputs[1].shape for each in model.nodes if each.op == op]


def test_a_chain_becomes_planes_between_two_borders() -> None:
    nodes = [
        node("Conv", ["x", "w", "b"], "a", name="first", kernel_shape=[3], strides=[2], dilations=[2], pads=[1, 2]),
        node("Relu", ["a"], "r", name="between"),
        node("MaxPool", ["r"], "m", name="pool", kernel_shape=[3], strides=[2], pads=[1, 1]),
        node("Conv", ["m", "v"], "y", name="last", auto_pad="SAME_UPPER", group=2),
    ]
    constants = {"w": weight(8, 6, 3), "b": weight(8), "v": weight(4, 4, 5)}
    model = build(nodes, constants, shape=SHAPE)
    cleaned, plan = clean(model, context=WON)
    assert ops(cleaned) == ["Unsqueeze", "Conv", "Relu", "MaxPool", "Conv", "Squeeze"]
    assert shapes_of(cleaned, "Conv") == [(8, 6, 1, 3), (4, 4, 1, 5)]
    (decision,) = plan.decisions
    assert (decision["step"], decision["nodes"]) == ("conv2d", ["first", "between", "pool", "last"])
    attributes = {each.name: dict(each.attrs) for each in cleaned.nodes}
    assert attributes["first"] == {"kernel_shape": [1, 3], "strides": [1, 2], "dilations": [1, 2], "pads": [0, 1, 0, 2]}
    assert attributes["pool"] == {"kernel_shape": [1, 3], "strides": [1, 2], "pads": [0, 1, 0, 1]}
    assert_close(model, cleaned, TOLERANCE)


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_all_that_stands_between_goes_along(opset: int) -> None:
    nodes = [
        node("Conv", ["x", "w"], "a", name="first"),
        node("BatchNormalization", ["a", "s", "s", "s", "s"], "n", name="normal"),
        node("PRelu", ["n", "slope"], "r", name="slope"),
        node("Pad", ["r", "pads"], "p", name="pad", mode="reflect"),
        node("Conv", ["p", "v"], "c", name="second"),
        node("Add", ["c", "x"], "sum", name="residual"),
        node("Mul", ["per_place", "sum"], "scaled", name="scaled"),
        node("Concat", ["scaled", "a", "more"], "joined", name="joined", axis=-2),
        node("ConvTranspose", ["joined", "t"], "up", name="up", strides=[2], output_padding=[1]),
        node("GlobalAveragePool", ["up"], "g", name="mean"),
        node("Flatten", ["g"], "y", name="flat"),
    ]
    constants = {
        "w": weight(6, 6, 1),
        "v": weight(6, 6, 4),
        "s": np.abs(weight(6)) + 0.5,
        "slope": weight(6, 1),
        "per_place": weight(6, 20),
        "more": weight(3, 2, 20),
        "t": weight(14, 5, 3),
        "pads": np.array([0, 0, 1, 0, 0, 2], np.int64),
    }
    model = build(nodes, constants, opset=opset, shape=(3, 6, 20))
    cleaned, plan = clean(model, "conv2d", context=WON)
    assert [each for each in ops(cleaned) if each in ("Unsqueeze", "Squeeze")] == ["Unsqueeze", "Squeeze"]
    assert plan.decisions[0]["nodes"] == [each.name for each in model.nodes if each.op not in ("Flatten", "Size")]
    assert_close(model, cleaned, TOLERANCE)


def test_old_opsets_have_pads_and_axes_as_attributes() -> None:
    nodes = [
        node("Conv", ["x", "w"], "a", name="first"),
        node("Pad", ["a"], "p", name="pad", pads=[0, 0, 2, 0, 0, 1], mode="edge"),
        node("Conv", ["p", "w"], "y", name="second"),
    ]
    model = build(nodes, {"w": weight(6, 6, 3)}, opset=9, shape=SHAPE)
    cleaned, _ = clean(model, context=WON)
    assert ops(cleaned) == ["Unsqueeze", "Conv", "Pad", "Conv", "Squeeze"]
    assert [each.attrs["pads"] for each in cleaned.nodes if each.op == "Pad"] == [[0, 0, 0, 2, 0, 0, 0, 1]]
    assert_close(model, cleaned, TOLERANCE)


def test_what_others_read_has_both_forms() -> None:
    nodes = [
        node("Conv", ["x", "w"], "a", name="first"),
        node("Conv", ["a", "w"], "y", name="second"),
        node("Transpose", ["a"], "z", name="turned", perm=[0, 2, 1]),
    ]
    model = build(nodes, {"w": weight(6, 6, 1)}, shape=SHAPE, outputs=("y", "z", "a"))
    cleaned, _ = clean(model, context=WON)
    assert ops(cleaned) == ["Unsqueeze", "Conv", "Squeeze", "Conv", "Squeeze", "Transpose"]
    assert len({id(each.inputs[1]) for each in cleaned.nodes if each.op == "Conv"}) == 1
    assert_close(model, cleaned, TOLERANCE)


def test_what_no_convolution_stands_before_stays_as_it_is() -> None:
    nodes = [
        node("Relu", ["x"], "r", name="before"),
        node("MatMul", ["r", "m"], "t", name="tokens"),
        node("Add", ["t", "r"], "y", name="sum"),
    ]
    cleaned, plan = clean(build(nodes, {"m": weight(20, 20)}, shape=SHAPE), context=WON)
    assert ops(cleaned) == ["Relu", "MatMul", "Add"]
    assert not plan.decisions


def test_a_lost_race_and_none_leave_it() -> None:
    model = build([node("Conv", ["x", "w"], "y", name="first")], {"w": weight(8, 6, 3)}, shape=SHAPE)
    lost = PassContext(race=lambda before, after: (RaceResult(CPU, 0.9, (0.8, 1.0)),))
    for context in (lost, PassContext()):
        cleaned, plan = clean(model, context=context)
        assert ops(cleaned) == ["Conv"]
        assert "left as it is" in reasons(plan)["first"]


def test_excluded_nodes_stay_in_one_dimension() -> None:
    nodes = [node("Conv", ["x", "w"], "a", name="first"), node("Conv", ["a", "w"], "y", name="second")]
    model = build(nodes, {"w": weight(6, 6, 3)}, shape=SHAPE)
    cleaned, plan = clean(model, context=PassContext(race=won, exclude=("second",)))
    assert ops(cleaned) == ["Unsqueeze", "Conv", "Squeeze", "Conv"]
    assert "excluded" in reasons(plan)["second"]
    assert_close(model, cleaned, TOLERANCE)


def test_a_plan_of_another_model_is_refused() -> None:
    plan = Plan("cleanup", ({"step": "conv2d", "round": 1, "node": "first", "op": "Conv", "nodes": ["first"]},))
    flat = build([node("Conv", ["x", "w"], "y", name="first")], {"w": weight(8, 6, 3, 3)}, shape=("n", 6, 9, 9))
    with pytest.raises(RecipeError, match="writes 'first' in two dimensions"):
        Cleanup().apply(flat, plan, PassContext())


def test_compression_goes_on_in_two_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        node("Conv", ["x", "w"], "a", name="first", pads=[2, 2]),
        node("Relu", ["a"], "r", name="between"),
        node("Conv", ["r", "v"], "c", name="second", pads=[2, 2]),
        node("GlobalAveragePool", ["c"], "y", name="mean"),
    ]
    model = build(nodes, {"w": weight(32, 6, 5), "v": weight(32, 32, 5)}, shape=SHAPE)
    monkeypatch.setattr("onnxcompress.pipeline.compress.race_on", lambda *given, **named: won)
    data = {"x": np.random.default_rng(0).standard_normal((200, 6, 20)).astype(np.float32)}
    options: dict[str, Any] = {"prune": 0.25, "tucker": "ratio=0.5", "recover": "refit", "round_to": 1}
    result = onnxcompress.compress(model.to_proto(), calib=lambda: iter([data]), **options)
    assert len(shapes_of(result.model, "Conv")) > 2
    assert all(len(shape) == 4 for shape in shapes_of(result.model, "Conv"))
    assert (result.report.compression.macs or 0.0) > 1.5


@pytest.mark.slow
def test_the_standards_examples_are_the_same_in_two_dimensions() -> None:
    rewritten = 0
    for example in standard.examples():
        network = None
        if example.inputs[example.position].ndim == 3 and "affine_grid" not in example.name:
            network = standard.between_convolutions(example, constants=True)
        if network is None or network.model.opset_import[0].version < 7:
            continue
        try:
            model = Model.from_proto(network.model)
        except onnxcompress.errors.ModelError:
            continue
        plan = Cleanup().plan(model, WON)
        rewritten += any(decision["step"] == "conv2d" for decision in plan.decisions)
        given = standard.run(Cleanup().apply(model, plan, WON).model.to_proto(), network.feeds)
        assert not network.differing(given), example.name
    assert rewritten > 600


def test_a_graph_of_planes_is_valid_onnx() -> None:
    model = build([node("Conv", ["x", "w"], "y", name="first")], {"w": weight(8, 6, 3)}, shape=SHAPE)
    onnx.checker.check_model(clean(model, context=WON)[0].to_proto(), full_check=True)
