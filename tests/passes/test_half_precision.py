"""Half precision beside float32: what is kept there is computed there, from node to node and out of the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext, PassResult
from onnxcompress.passes.quantization import Float16Conversion
from tests.small_models import build, node, run_all

RNG = np.random.default_rng(0)
SHAPE = ("n", 6, 8, 8)


def data(samples: int = 4) -> dict[str, Any]:
    return {"x": np.random.default_rng(1).standard_normal((samples, 6, 8, 8)).astype(np.float32)}


def converted(model: Model, *exclude: str, calibrated: bool = True) -> PassResult:
    context = PassContext(calibration=(lambda: iter([data()])) if calibrated else None, exclude=exclude)
    each = Float16Conversion()
    return each.apply(model, each.plan(model, context), context)


def kernel(out: int = 6, size: float = 1.0) -> np.ndarray:
    return (size * RNG.standard_normal((out, 6, 1, 1))).astype(np.float32)


CONSTANTS = {"large": kernel(size=3e4), "small": np.array(1e-6, np.float32), "w": kernel(4)}
LARGE_INSIDE = [
    node("Conv", ["x", "large"], "a", name="a"),
    node("Sigmoid", ["a"], "gate", name="gate"),
    node("Mul", ["a", "gate"], "b", name="b"),
    node("Mul", ["b", "small"], "c", name="c"),
    node("Conv", ["c", "w"], "y", name="y"),
]


@pytest.mark.parametrize("outputs", [("y",), ("y", "b"), ("b", "c")])
def test_values_that_float16_does_not_hold_pass_between_nodes_in_float32(outputs: tuple[str, ...]) -> None:
    model = build(LARGE_INSIDE, CONSTANTS, shape=SHAPE, outputs=outputs)
    result = converted(model)
    assert [each.node for each in result.plan.skipped] == ["a", "gate", "b", "c"]
    wanted, seen = run_all(model, data()), run_all(result.model, data())
    assert np.abs(wanted["b"]).max() > 1e5
    for name in outputs:
        np.testing.assert_allclose(seen[name], wanted[name], rtol=0, atol=2e-3 * np.abs(wanted[name]).max())
    assert {seen[name].dtype for name in "abc"} == {np.dtype(np.float32)}  # under the names that they had
    assert sum(each.op == "Cast" for each in result.model.nodes) == 1 + ("y" in outputs)


def test_what_is_read_in_both_precisions_is_rounded_for_one_reader_alone() -> None:
    nodes = [
        node("Conv", ["x", "v"], "a", name="kept"),
        node("Relu", ["a"], "b", name="kept too"),
        node("Neg", ["a"], "c", name="kept as well"),
        node("Conv", ["a", "w"], "y", name="half"),
    ]
    model = build(nodes, {"v": kernel(), "w": kernel(4)}, shape=SHAPE, outputs=("a", "b", "c", "y"))
    result = converted(model, "^kept", calibrated=False)
    assert [each["node"] for each in result.plan.decisions] == ["half"]
    wanted, seen = run_all(model, data()), run_all(result.model, data())
    for name in ("a", "b", "c"):
        assert np.array_equal(seen[name], wanted[name])
    np.testing.assert_allclose(seen["y"], wanted["y"], rtol=0, atol=0.02)
    assert not np.array_equal(seen["y"], wanted["y"])
    assert result.model.signature() == model.signature()


def test_a_branch_reads_around_it_what_it_is_written_for() -> None:
    shape = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    branch = helper.make_graph([node("Neg", ["a"], "inner", name="inside")], "branch", [], [shape])
    other = helper.make_graph([node("Abs", ["a"], "outer", name="outside")], "other", [], [shape])
    other.output[0].name = "outer"
    nodes = [
        node("Conv", ["x", "v"], "a", name="kept"),
        node("Relu", ["a"], "b", name="kept too"),
        node("If", ["yes"], "c", name="if", then_branch=branch, else_branch=other),
        node("Add", ["b", "c"], "y", name="half"),
    ]
    model = build(nodes, {"v": kernel(), "yes": np.array(True)}, shape=SHAPE)
    result = converted(model, "^kept", calibrated=False)
    wanted, seen = run_all(model, data()), run_all(result.model, data())
    np.testing.assert_allclose(seen["y"], wanted["y"], rtol=0, atol=0.02)


def test_casts_that_the_model_came_with_stay() -> None:
    nodes = [
        node("Conv", ["x", "v"], "a", name="kept"),
        node("Cast", ["a"], "rounded", name="kept: down", to=10),
        node("Cast", ["rounded"], "b", name="kept: up", to=1),
        node("Conv", ["b", "w"], "y", name="half"),
    ]
    model = build(nodes, {"v": kernel(), "w": kernel(4)}, shape=SHAPE)
    result = converted(model, "^kept", calibrated=False)
    seen = run_all(result.model, data())
    assert [each.op for each in result.model.nodes].count("Cast") == 4
    assert np.array_equal(seen["rounded"], run_all(model, data())["rounded"])


def test_an_operator_that_takes_float32_alone_stays() -> None:
    nodes = [node("Conv", ["x", "v"], "a", name="first"), node("Celu", ["a"], "b", name="celu", alpha=0.5)]
    model = build([*nodes, node("Conv", ["b", "w"], "y", name="last")], {"v": kernel(), "w": kernel(4)}, shape=SHAPE)
    result = converted(model)
    assert [(each.node, each.reason) for each in result.plan.skipped] == [("celu", "Celu has no half-precision form")]
    wanted, seen = run_all(model, data())["y"], run_all(result.model, data())["y"]
    np.testing.assert_allclose(seen, wanted, rtol=0, atol=3e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("reduction", ["none", "add", "max"])
def test_scattered_updates_run(reduction: str) -> None:
    nodes = [
        node("Conv", ["x", "v"], "a", name="first"),
        node("ScatterND", ["a", "places", "updates"], "b", name="scatter", reduction=reduction),
        node("Conv", ["b", "w"], "y", name="last"),
    ]
    updates = RNG.standard_normal((2, 6, 8, 8)).astype(np.float32)
    constants = {"v": kernel(), "w": kernel(4), "places": np.array([[1], [3]]), "updates": updates}
    model = build(nodes, constants, opset=18, shape=SHAPE)
    result = converted(model)
    assert ("scatter" in {each["node"] for each in result.plan.decisions}) == (reduction == "none")
    wanted, seen = run_all(model, data())["y"], run_all(result.model, data())["y"]
    np.testing.assert_allclose(seen, wanted, rtol=0, atol=5e-3 * np.abs(wanted).max())


def test_squares_of_an_lrn_do_not_overflow() -> None:
    from onnxcompress.analysis.lrn import with_banded_lrn

    nodes = [
        node("Conv", ["x", "v"], "a", name="first"),
        node("LRN", ["a"], "b", name="n", size=3, alpha=0.3),
        node("Conv", ["b", "w"], "y", name="last"),
    ]
    model = with_banded_lrn(build(nodes, {"v": kernel(size=200.0), "w": kernel(4)}, shape=SHAPE))
    result = converted(model, calibrated=False)
    wanted, seen = run_all(model, data())["y"], run_all(result.model, data())["y"]
    np.testing.assert_allclose(seen, wanted, rtol=0, atol=5e-3 * np.abs(wanted).max())


def quantised_net(opset: int = 13) -> Model:
    """Two convolutions in eight bits as an export after a training writes them, and a third one in float."""
    q = ["scale", "zero"]
    nodes = [
        node("QuantizeLinear", ["x", *q], "x8", name="x8"),
        node("DequantizeLinear", ["x8", *q], "xd", name="xd"),
        node("Transpose", ["xd"], "xt", name="first moved", perm=[0, 1, 3, 2]),
        node("Conv", ["xt", "v"], "a", name="first"),
        node("Relu", ["a"], "r", name="first cut"),
        node("QuantizeLinear", ["r", *q], "r8", name="r8"),
        node("DequantizeLinear", ["r8", *q], "rd", name="rd"),
        node("Conv", ["rd", "w"], "y", name="last"),
    ]
    constants = {"v": kernel(), "w": kernel(4), "scale": np.array(0.02, np.float32), "zero": np.array(128, np.uint8)}
    return build(nodes, constants, shape=SHAPE, opset=opset)


@pytest.mark.parametrize("opset", [13, 21])
def test_what_comes_in_eight_bits_is_not_converted(opset: int) -> None:
    model = quantised_net(opset)
    told: list[Any] = []
    each, context = Float16Conversion(), PassContext(note=told.append)
    result = each.apply(model, each.plan(model, context), context)
    assert [decision["node"] for decision in result.plan.decisions] == ["last"]
    reasons = {skipped.node: skipped.reason for skipped in result.plan.skipped}
    assert "quantised already" in reasons["x8"]
    assert "between DequantizeLinear and QuantizeLinear" in reasons["first"]
    assert "its 7 nodes of eight bits stay as they are; 1 nodes" in told[0]["notes"][0]
    wanted, seen = run_all(model, data()), run_all(result.model, data())
    assert np.array_equal(seen["r8"], wanted["r8"])
    np.testing.assert_allclose(seen["y"], wanted["y"], rtol=0, atol=0.02)


def test_what_is_in_half_precision_stays_as_it_is() -> None:
    half = converted(build(LARGE_INSIDE[:1], {"large": kernel()}, shape=SHAPE)).model
    again = converted(Model.from_bytes(half.to_bytes()))
    assert again.plan.decisions == ()
    assert again.model.to_bytes() == half.to_bytes()


@pytest.mark.parametrize("kept", ["^first", "^second", "^(first|third)"])
def test_the_rest_of_a_model_that_was_converted_in_part_follows(kept: str) -> None:
    nodes = [
        node("Conv", ["x", "u"], "a", name="first"),
        node("Conv", ["a", "v"], "b", name="second"),
        node("Conv", ["b", "w"], "y", name="third"),
    ]
    model = build(nodes, {"u": kernel(), "v": kernel(), "w": kernel(4)}, shape=SHAPE)
    part = converted(model, kept, calibrated=False).model
    result = converted(Model.from_bytes(part.to_bytes()), calibrated=False)
    weights = [each.inputs[1].values.dtype for each in result.model.nodes if each.op == "Conv"]
    assert weights == [np.dtype(np.float16)] * 3
    wanted, seen = run_all(model, data())["y"], run_all(result.model, data())["y"]
    np.testing.assert_allclose(seen, wanted, rtol=0, atol=5e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("order", [[1, 0, 2], [1, 2, 0], [0, 2, 1], [2, 1, 0]])
@pytest.mark.parametrize("left", [False, True])
def test_a_product_behind_a_transpose_of_the_first_axis_does_not_end_the_process(
    order: list[int], left: bool, tmp_path: Path
) -> None:
    """onnxruntime takes the Transpose into the product as it loads the model, and crashed."""
    given = np.random.default_rng(2).standard_normal((3, 4, 5)).astype(np.float32)
    inner = given.transpose(order).shape[1 if left else 2]
    constants = {"w": RNG.standard_normal((7, inner) if left else (inner, 7)).astype(np.float32)}
    nodes = [node("Transpose", ["x"], "t", perm=order), node("MatMul", ["w", "t"] if left else ["t", "w"], "y")]
    model = build(nodes, constants, shape=(3, 4, 5))
    half = converted(model, calibrated=False).model
    half.save(tmp_path / "half.onnx")
    np.save(tmp_path / "x.npy", given)
    load = "import numpy, onnxruntime, sys; s = onnxruntime.InferenceSession(sys.argv[1] + '/half.onnx');"
    run = "numpy.save(sys.argv[1] + '/y.npy', s.run(None, {'x': numpy.load(sys.argv[1] + '/x.npy')})[0])"
    subprocess.run([sys.executable, "-c", load + run, str(tmp_path)], check=True, capture_output=True)
    wanted = run_all(model, {"x": given})["y"]
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), wanted, rtol=0, atol=5e-3 * np.abs(wanted).max())
    assert any(each.op == "LeakyRelu" for each in half.nodes) == (order[0] == 1)
