"""Operators of which eight-bit kernels make something else, and results that nothing reads in eight bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext, PassResult
from onnxcompress.passes.quantization import Int8Quantization
from tests.small_models import build, node, run_all, session

RNG = np.random.default_rng(0)
X = RNG.standard_normal((8, 6, 17, 17)).astype(np.float32)
W1, W2 = (RNG.standard_normal((8, inputs, 3, 3)).astype(np.float32) * 0.2 for inputs in (6, 8))


def quantised(model: Model, x: Any) -> PassResult:
    context = PassContext(calibration=lambda: iter([{"x": x}]))
    each = Int8Quantization()
    return each.apply(model, each.plan(model, context), context)


def missed(model: Model, result: PassResult, x: Any, output: str = "y") -> float:
    """Return the error of the quantised model, as onnxruntime runs it, relative to the output's size."""
    wanted = run_all(model, {"x": x})[output]
    (seen,) = session(result.model.to_bytes(), optimised=True).run([output], {"x": x})
    return float(np.linalg.norm(seen - wanted) / np.linalg.norm(wanted))


SCALES = {"scales": np.array([1, 1, 2, 2], np.float32)}
POOL = {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": 1}


@pytest.mark.parametrize(
    ("between", "constants", "stays"),
    [
        (node("Resize", ["b", "", "scales"], "m", name="m", mode="cubic"), SCALES, True),
        (node("Resize", ["b", "", "scales"], "m", name="m", mode="linear"), SCALES, False),
        (node("AveragePool", ["b"], "m", name="m", pads=[1, 1, 1, 1], **POOL), {}, True),
        (node("AveragePool", ["b"], "m", name="m", kernel_shape=[3, 3], dilations=[1, 1]), {}, False),
        (node("AveragePool", ["b"], "m", name="m", kernel_shape=[3, 3], dilations=[2, 2]), {}, True),
        (node("Clip", ["b", "low"], "m", name="m"), {"low": np.float32(0.5)}, True),
        (node("Clip", ["b", "low"], "m", name="m"), {"low": np.float32(-0.1)}, False),
        (node("Clip", ["b", "", "high"], "m", name="m"), {"high": np.float32(-0.5)}, True),
    ],
    ids=["cubic", "linear", "counted", "pool", "dilated", "above", "around", "below"],
)
def test_what_kernels_make_something_else_of_stays_in_float(
    between: onnx.NodeProto, constants: Any, stays: bool
) -> None:
    nodes = [node("Conv", ["x", "w1"], "b", name="b"), between, node("Conv", ["m", "w2"], "y", name="y")]
    model = build(nodes, {"w1": W1, "w2": W2, **constants}, opset=19, shape=("n", 6, 17, 17))
    result = quantised(model, X)
    chosen = {decision["node"] for decision in result.plan.decisions}
    assert chosen == ({"b", "y"} if stays else {"b", "m", "y"})
    assert stays or all(each.op != "LeakyRelu" for each in result.model.nodes)  # nothing keeps it from eight bits
    assert missed(model, result, X) < 0.05


def test_bounds_that_are_computed_are_kept() -> None:
    nodes = [
        node("Conv", ["x", "w1"], "b", name="b"),
        node("ReduceMean", ["x"], "mean", keepdims=0),
        node("Clip", ["b", "mean"], "m", name="m"),
        node("Conv", ["m", "w2"], "y", name="y"),
    ]
    model = build(nodes, {"w1": W1, "w2": W2}, shape=(8, 6, 17, 17))
    result = quantised(model, X)
    assert {skipped.node: skipped.reason for skipped in result.plan.skipped}["m"] == "its bounds are computed"
    assert missed(model, result, X) < 0.03


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_results_of_products_that_float_reads_are_not_rounded(op: str) -> None:
    """Of inputs that lie as those of the calibration data do, they may lie beyond what was seen there."""
    nodes = [
        node("Flatten", ["x"], "f"),
        node("Relu", ["f"], "r"),
        node(op, ["r", "w"], "a", name="a"),
        node("Softplus", ["a"], "s"),
        node(op, ["r", "v"], "y", name="y"),
    ]
    w, v = (RNG.standard_normal((12, 5)).astype(np.float32) for _ in range(2))
    model = build(nodes, {"w": w, "v": v}, shape=("n", 12), outputs=["s", "y"])
    x = np.abs(RNG.standard_normal((32, 12)).astype(np.float32))
    result = quantised(model, x)
    made = {name: each.op for each in result.model.nodes for name in (t.name for t in each.outputs)}
    assert made["y"] == op
    assert made[next(each for each in result.model.nodes if each.op == "Softplus").inputs[0].name] == op
    for output in ("s", "y"):
        assert missed(model, result, x, output) < 0.02
    extreme = ((v[:, :1] > 0).T * np.quantile(x, 0.99)).astype(np.float32)
    assert run_all(model, {"x": extreme})["y"].max() > 1.3 * run_all(model, {"x": x})["y"].max()
    assert missed(model, result, extreme) < 0.03


def test_a_result_that_eight_bits_read_is_rounded() -> None:
    nodes = [node("MatMul", ["x", "w"], "a", name="a"), node("MatMul", ["a", "v"], "y", name="y")]
    w, v = (RNG.standard_normal((12, 12)).astype(np.float32) for _ in range(2))
    model = build(nodes, {"w": w, "v": v}, shape=("n", 12))
    x = RNG.standard_normal((32, 12)).astype(np.float32)
    result = quantised(model, x)
    first, second = (each for each in result.model.nodes if each.op == "MatMul")
    assert [reader.op for reader in first.outputs[0].outputs] == ["QuantizeLinear"]
    assert [tensor.name for tensor in second.outputs] == ["y"]
    assert missed(model, result, x) < 0.02


@pytest.mark.skipif(onnx.defs.onnx_opset_version() < 28, reason="this onnx knows no opset 28")
def test_an_opset_whose_conversions_runtimes_lack_is_lowered_where_that_changes_nothing() -> None:
    for op, lowered in (("Relu", 27), ("DepthToSpace", 28)):
        own = {"blocksize": 2} if op == "DepthToSpace" else {}
        nodes = [node("Conv", ["x", "w1"], "b", name="b"), node(op, ["b"], "y", **own)]
        given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 6, 17, 17])
        made = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        graph = helper.make_graph(nodes, "g", [given], [made], [onnx.numpy_helper.from_array(W1, "w1")])
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 28)], ir_version=13)
        model = Model.from_proto(onnx.shape_inference.infer_shapes(proto))
        each = Int8Quantization()
        ranges = {"x": [-4.0, 4.0], "b": [-4.0, 4.0]}
        decision = {"kind": "int8", "node": "b", "op": "Conv", "activations": "uint8", "ranges": ranges}
        plan = type(each.plan(model, PassContext(exclude=(".*",), calibration=list)))("int8", (decision,))
        assert each.apply(model, plan, PassContext()).model.opset == lowered
