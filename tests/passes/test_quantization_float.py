"""What `--quantize int8` leaves in float: for the time it would take, where nothing would be gained, and for good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext, PassResult
from onnxcompress.passes.quantization import Float16Conversion, Int8Quantization, int8
from tests.small_models import build, node, run_all

DATA = {"x": np.random.default_rng(1).standard_normal((4, 32, 8, 8)).astype(np.float32)}
CONTEXT = PassContext(calibration=lambda: iter([DATA]))


@pytest.fixture(autouse=True)
def _signed_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same plans on every machine."""
    monkeypatch.setattr(int8, "saturates_signed_weights", lambda provider: False)


def kernel(*shape: int) -> np.ndarray:
    return (np.random.default_rng(2).standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def quantised(model: Model, context: PassContext = CONTEXT) -> PassResult:
    each = Int8Quantization()
    return each.apply(model, each.plan(model, context), context)


def between(filters: int, channels: int, groups: int, tail: Sequence[str] = ()) -> Model:
    """Return a convolution `middle` and what stands behind it, between two 1x1 convolutions."""
    behind = [node(op, [f"m{at}"], f"m{at + 1}", name=f"tail {at}") for at, op in enumerate(tail)]
    constants = {"v": kernel(channels * groups, 32, 1, 1), "w": kernel(filters, channels, 3, 3)}
    constants["u"] = kernel(8, filters, 1, 1)
    nodes = [
        node("Conv", ["x", "v"], "a", name="first"),
        node("Conv", ["a", "w"], "m0", name="middle", group=groups),
        *behind,
        node("Conv", [f"m{len(tail)}", "u"], "y", name="last"),
    ]
    return build(nodes, constants, shape=("n", 32, 8, 8))


def run_operators(model: Model, folder: Path) -> list[str]:
    """The operators that onnxruntime really runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    return [each.op_type for each in onnx.load(options.optimized_model_filepath).graph.node]


NARROW = {"multiplier": (32, 1, 16), "two": (16, 2, 8), "to one": (8, 4, 8), "eight": (32, 8, 4)}


@pytest.mark.parametrize("tail", [(), ("Relu",), ("LeakyRelu",)])
@pytest.mark.parametrize("sizes", NARROW.values(), ids=NARROW)
def test_a_convolution_of_narrow_groups_computes_in_float_on_a_cpu(
    sizes: tuple[int, int, int], tail: tuple[str, ...], tmp_path: Path
) -> None:
    model = between(*sizes, tail=tail)
    result = quantised(model)
    reasons = {each.node: each.reason for each in result.plan.skipped}
    assert reasons["middle"].endswith("a CPU is faster in float")
    assert [d["node"] for d in result.plan.decisions if d["op"] == "Conv"] == ["first", "last"]
    operators = run_operators(result.model, tmp_path)
    assert operators.count("QLinearConv") == 2
    assert sum(op in ("Conv", "FusedConv") for op in operators) == 1


@pytest.mark.parametrize("sizes", [(32, 1, 32), (32, 32, 1), (32, 16, 2)], ids=["depthwise", "dense", "wide"])
def test_others_do_not(sizes: tuple[int, int, int]) -> None:
    assert not quantised(between(*sizes)).plan.skipped
    narrow = between(*NARROW["two"])
    assert not quantised(narrow, replace(CONTEXT, providers=("CUDAExecutionProvider",))).plan.skipped


@pytest.mark.parametrize("tail", [(), ("Relu",)])
def test_an_excluded_layer_is_not_quantised_by_the_runtime_either(tail: tuple[str, ...], tmp_path: Path) -> None:
    model = between(32, 32, 1, tail)
    result = quantised(model, replace(CONTEXT, exclude=("^middle$",)))
    assert run_operators(result.model, tmp_path).count("QLinearConv") == 2
    seen, wanted = (run_all(each, DATA) for each in (result.model, model))
    np.testing.assert_allclose(seen["y"], wanted["y"], rtol=0, atol=0.1)


def test_only_layers_between_conversions_are_shielded() -> None:
    model = between(32, 32, 1)
    (shield,) = (n for n in quantised(model, replace(CONTEXT, exclude=("middle",))).model.nodes if n.op == "LeakyRelu")
    assert shield.attrs["alpha"] == 1.0
    for excluded in (("first",), ("last",)):
        assert "LeakyRelu" not in [n.op for n in quantised(model, replace(CONTEXT, exclude=excluded)).model.nodes]


def test_what_gains_nothing_and_hands_values_on_to_float_is_left_in_float() -> None:
    nodes = [
        node("Conv", ["x", "w"], "a", name="layer"),
        node("Relu", ["a"], "b", name="its rectifier"),
        node("MaxPool", ["b"], "c", name="pool", kernel_shape=[2, 2]),
        node("Relu", ["c"], "d", name="no layer's rectifier"),
        node("Conv", ["d", "v"], "e", name="kept"),
        node("Conv", ["b", "u"], "f", name="other layer"),
        node("Reshape", ["f", "flat"], "g", name="flat"),
        node("MaxPool", ["b"], "p", name="pool of both", kernel_shape=[2, 2]),
        node("Conv", ["p", "u"], "q", name="third layer"),
        node("Add", ["e", "q"], "s", name="sum with float"),
        node("Mul", ["q", "two"], "t", name="scale"),
        node("GlobalAveragePool", ["t"], "m", name="mean"),
    ]
    constants: dict[str, Any] = {"w": kernel(16, 32, 1, 1), "v": kernel(4, 16, 1, 1), "u": kernel(4, 16, 1, 1)}
    constants |= {"flat": np.array([0, -1], np.int64), "two": np.array(2.0, np.float32)}
    model = build(nodes, constants, shape=("n", 32, 8, 8), outputs=("g", "s", "m"))
    plan = quantised(model, replace(CONTEXT, exclude=("kept",))).plan
    assert {each.node: each.reason for each in plan.skipped} == {
        "pool": "what reads it stays in float",
        "no layer's rectifier": "what reads it stays in float",
        "kept": "excluded (--exclude)",
        "flat": "what reads it stays in float",
        "sum with float": "what reads it stays in float",
    }


def test_a_pool_in_float_is_not_quantised_by_the_runtime_either(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w"], "a", name="layer"),
        node("MaxPool", ["a"], "b", name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Softmax", ["b"], "y", name="last", axis=1),
    ]
    model = build(nodes, {"w": kernel(16, 32, 1, 1)}, shape=("n", 32, 8, 8))
    result = quantised(model)
    operators = run_operators(result.model, tmp_path)
    assert operators.count("MaxPool") == 1
    assert operators.index("DequantizeLinear") < operators.index("MaxPool")
    seen, wanted = (run_all(each, DATA)["y"] for each in (result.model, model))
    np.testing.assert_allclose(seen, wanted, rtol=0, atol=0.02)


def test_few_calibration_samples_are_told() -> None:
    model = build([node("Conv", ["x", "w"], "y", name="layer")], {"w": kernel(16, 32, 1, 1)}, shape=("n", 32, 8, 8))
    notes: list[Any] = []
    for samples in (1, 16):
        batch = {"x": np.resize(DATA["x"], (samples, 32, 8, 8))}
        Int8Quantization().plan(model, replace(CONTEXT, calibration=lambda own=batch: iter([own]), note=notes.append))
    (note,) = notes
    assert "took its ranges from 1 calibration sample: give 16 or more" in note["notes"][0]


def test_what_comes_in_eight_bits_or_in_half_precision_stays_and_is_told() -> None:
    nodes = [node("Conv", ["x", "w"], "a", name="first"), node("Conv", ["a", "v"], "y", name="last")]
    constants = {"w": kernel(16, 32, 1, 1), "v": kernel(16, 16, 1, 1)}
    given = build(nodes, constants, shape=("n", 32, 8, 8))
    whole = quantised(given)
    for exclude, converted, others in (
        (("last",), ["last"], "1 nodes beside these were converted"),
        ((), [], "nothing"),
    ):
        part = quantised(given, replace(CONTEXT, exclude=exclude)).model
        notes: list[Any] = []
        again = quantised(Model.from_bytes(part.to_bytes()), replace(CONTEXT, note=notes.append))
        assert [decision["node"] for decision in again.plan.decisions] == converted
        (note,) = notes
        assert note["notes"][0].startswith("--quantize int8: the model is quantised already, and its ")
        assert others in note["notes"][0]
    seen, wanted = (run_all(each.model, DATA)["y"] for each in (again, whole))
    assert np.array_equal(seen, wanted)
    half = Float16Conversion()
    halved = half.apply(given, half.plan(given, PassContext()), PassContext()).model
    notes = []
    assert Int8Quantization().plan(halved, replace(CONTEXT, note=notes.append)).decisions == ()
    assert "2 layers compute in half precision and stay as they are" in notes[0]["notes"][0]
