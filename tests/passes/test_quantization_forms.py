"""Operators in eight bits in all the forms that they may have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext, PassResult
from onnxcompress.passes.quantization import Int8Config, Int8Quantization, verify_quantization
from tests.small_models import branch, build, choice, node, repeated_sum, run_all, session

RNG = np.random.default_rng(0)
X = RNG.standard_normal((16, 12)).astype(np.float32)
WEIGHT = RNG.standard_normal((12, 5)).astype(np.float32)


def quantised(model: Model, *, symmetric: bool = False) -> PassResult:
    context = PassContext(calibration=lambda: iter([{"x": X}]))
    each = Int8Quantization(Int8Config(symmetric=symmetric))
    return each.apply(model, each.plan(model, context), context)


def gemm(bias: Any, *, rows: int | str = "n", **attributes: Any) -> Model:
    constants = {"w": WEIGHT.T.copy() if attributes.get("transB") else WEIGHT, "c": np.asarray(bias, np.float32)}
    return build([node("Gemm", ["x", "w", "c"], "y", name="gemm", **attributes)], constants, shape=(rows, 12))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("attributes", [{}, {"alpha": 0.3}, {"beta": 4.0}, {"alpha": 2.0, "beta": 0.0, "transB": 1}])
@pytest.mark.parametrize("bias", [3.0, [3.0], [[3.0]], [3.0, -2.0, 1.0, 0.5, 4.0], [[3.0, -2.0, 1.0, 0.5, 4.0]]])
def test_every_form_is_quantised(bias: Any, attributes: dict[str, Any], symmetric: bool) -> None:
    model = gemm(bias, **attributes)
    result = quantised(model, symmetric=symmetric)
    assert [decision["node"] for decision in result.plan.decisions] == ["gemm"]
    wanted, seen = (run_all(each, {"x": X})["y"] for each in (model, result.model))
    optimised = session(result.model.to_bytes(), optimised=True).run(["y"], {"x": X})[0]
    for values in (seen, optimised):
        assert np.linalg.norm(values - wanted) < 0.03 * np.linalg.norm(wanted)
    verify_quantization(model, result, {"x": X})


@pytest.mark.parametrize("bias", [np.arange(16.0)[:, None], RNG.standard_normal((16, 5))])
def test_a_bias_that_differs_from_row_to_row_stays_in_float(bias: np.ndarray) -> None:
    result = quantised(gemm(bias, rows=16))
    assert [(each.node, each.reason) for each in result.plan.skipped] == [("gemm", "its bias differs from row to row")]


def test_what_several_gemms_share_serves_each_in_its_own_form() -> None:
    constants = {"w": RNG.standard_normal((12, 12)).astype(np.float32), "c": RNG.standard_normal(12).astype(np.float32)}
    nodes = [
        node("Gemm", ["x", "w", "c"], "a", alpha=0.5, beta=2.0),
        node("Gemm", ["a", "w", "c"], "b"),
        node("Gemm", ["b", "w", "c"], "y", beta=0.5),
    ]
    model = build(nodes, constants, shape=("n", 12))
    result = quantised(model)
    wanted, seen = (run_all(each, {"x": X})["y"] for each in (model, result.model))
    assert np.linalg.norm(seen - wanted) < 0.05 * np.linalg.norm(wanted)


def test_a_pad_of_some_axes_is_one_of_all() -> None:
    constants = {
        "v": RNG.standard_normal((8, 4, 1, 1)).astype(np.float32),
        "w": RNG.standard_normal((4, 8, 1, 1)).astype(np.float32),
        "lengths": np.array([1, 1, 0, 1]),
        "axes": np.array([2, -1]),
    }
    nodes = [
        node("Conv", ["x", "v"], "a", name="first"),
        node("Pad", ["a", "lengths", "", "axes"], "b", name="pad", mode="edge"),
        node("AveragePool", ["b"], "c", name="pool", kernel_shape=[2, 2]),
        node("Conv", ["c", "w"], "y", name="last"),
    ]
    model = build(nodes, constants, opset=21, shape=("n", 4, 8, 8))
    images = {"x": RNG.standard_normal((4, 4, 8, 8)).astype(np.float32)}
    context = PassContext(calibration=lambda: iter([images]))
    each = Int8Quantization(Int8Config())
    result = each.apply(model, each.plan(model, context), context)
    assert "pad" in {decision["node"] for decision in result.plan.decisions}
    wanted = run_all(model, images)["y"]
    seen = session(result.model.to_bytes(), optimised=True).run(["y"], images)[0]
    assert np.linalg.norm(seen - wanted) < 0.05 * np.linalg.norm(wanted)


def test_what_holds_no_numbers_stays_as_it_is() -> None:
    constants = {
        "w": RNG.standard_normal((12, 12)).astype(np.float32),
        "v": RNG.standard_normal((12, 5)).astype(np.float32),
        "sizes": np.array([12, 0]),
    }
    nodes = [
        node("MatMul", ["x", "w"], "a", name="first"),
        node("Split", ["a", "sizes"], "kept", "rest", name="split", axis=1),
        node("Relu", ["rest"], "r", name="rectified"),
        node("Concat", ["kept", "r"], "c", name="join", axis=1),
        node("MatMul", ["c", "v"], "y", name="last"),
    ]
    result = quantised(build(nodes, constants, shape=("n", 12)))
    assert {decision["node"] for decision in result.plan.decisions} == {"first", "last"}
    reasons = {each.node: each.reason for each in result.plan.skipped}
    assert reasons["split"] == reasons["join"] == "it reads or writes what held no numbers on the calibration data"


@pytest.mark.parametrize("rectifier", ["Relu", "Clip"])
def test_what_a_branch_reads_of_a_layer_is_not_rectified(rectifier: str) -> None:
    constants = {
        "w": RNG.standard_normal((12, 12)).astype(np.float32),
        "v": RNG.standard_normal((12, 5)).astype(np.float32),
        "yes": np.array(True),
        "zero": np.array(0.0, np.float32),
    }
    bounds = ["zero"] if rectifier == "Clip" else []
    nodes = [
        node("MatMul", ["x", "w"], "a", name="first"),
        node(rectifier, ["a", *bounds], "r", name="rectifier"),
        choice(branch(node("Sub", ["r", "a"], "b")), branch(node("Abs", ["a"], "other"))),
        node("MatMul", ["c", "v"], "y", name="last"),
    ]
    model = build(nodes, constants, shape=("n", 12))
    result = quantised(model)
    assert {decision["node"] for decision in result.plan.decisions} == {"first", "last"}
    wanted, seen = (run_all(each, {"x": X})["y"] for each in (model, result.model))
    assert np.linalg.norm(seen - wanted) < 0.05 * np.linalg.norm(wanted)


LOADS = """
import sys
import onnxruntime as ort
ort.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
"""


@pytest.mark.parametrize("mover", [("Slice", ["low", "high"], {}), ("MaxPool", [], {"kernel_shape": [2, 2]})])
@pytest.mark.parametrize("squeezed", [False, True])
def test_what_a_loop_reads_stays_where_it_is(mover: Any, squeezed: bool, tmp_path: Path) -> None:
    """onnxruntime ends the process where it moves a DequantizeLinear behind what a sub-graph reads."""
    (op, others, attributes), read = mover, "m" if squeezed else "moved"
    constants = {
        "w": RNG.standard_normal((8, 4, 1, 1)).astype(np.float32),
        "yes": np.array(True),
        "low": np.array([0, 1, 1]),
        "high": np.array([9, 3, 7]),
        "axis": np.array([4]),
        "times": np.array(2),
        "row": np.array([1, -1]),
    }
    nodes = [
        node("Conv", ["x", "w"], "y", name="layer"),
        node(op, ["x", *others], "moved", name="moved", **attributes),
        *([node("Unsqueeze", ["moved", "axis"], "m", name="wider")] if squeezed else []),
        repeated_sum(read, read, "c"),
        node("Reshape", ["c", "row"], "z"),
    ]
    model = build(nodes, constants, shape=("n", 4, 8, 8), outputs=("y", "z"))
    images = {"x": RNG.standard_normal((4, 4, 8, 8)).astype(np.float32)}
    context = PassContext(calibration=lambda: iter([images]))
    each = Int8Quantization(Int8Config())
    result = each.apply(model, each.plan(model, context), context).model
    (tmp_path / "quantised.onnx").write_bytes(result.to_bytes())
    command = [sys.executable, "-c", LOADS, str(tmp_path / "quantised.onnx")]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    before, after = (run_all(each, images)["z"] for each in (model, result))
    np.testing.assert_allclose(after, before, rtol=0, atol=0.1)


@pytest.mark.parametrize("rectifier", ["Relu", "Clip"])
def test_an_output_that_is_rectified_keeps_its_range(rectifier: str) -> None:
    constants = {"w": WEIGHT, "v": RNG.standard_normal((5, 5)).astype(np.float32), "zero": np.array(0.0, np.float32)}
    nodes = [
        node("MatMul", ["x", "w"], "a", name="first"),
        node(rectifier, ["a", *(["zero"] if rectifier == "Clip" else [])], "r", name="rectifier"),
        node("MatMul", ["r", "v"], "y", name="last"),
    ]
    model = build(nodes, constants, shape=("n", 12), outputs=("y", "r", "a"))
    result = quantised(model)
    wanted, seen = (run_all(each, {"x": X}) for each in (model, result.model))
    for name in ("y", "r", "a"):
        assert np.linalg.norm(seen[name] - wanted[name]) < 0.05 * np.linalg.norm(wanted[name])
