"""Constants folded to the bits that would have been computed, and nothing folded that makes the file bigger."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from onnxcompress.errors import ModelError, RecipeError
from onnxcompress.passes.base import PassContext, Plan
from onnxcompress.passes.cleanup import Cleanup, fold
from tests.passes.cleanup_models import assert_same_bits, clean, ops, reasons
from tests.small_models import build, node


def random(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("axis", [2, 1])
def test_a_contradiction_that_folding_brings_to_light_is_the_models(axis: int) -> None:
    """A map of ones, 7 long where 8 are needed, behind shape arithmetic that shape inference does not follow."""
    wide = [1, 6, 8, 8]
    wide[axis] -= 1
    nodes = [
        node("Slice", ["ramp", "first", "last", "zero"], "target"),
        node("Expand", ["one", "target"], "ones"),
        node("Add", ["x", "ones"], "y"),
        node("Conv", ["x", "w"], "z"),
    ]
    constants = {"ramp": np.array(wide), "first": np.array([0]), "last": np.array([4]), "zero": np.array([0])}
    constants |= {"one": np.ones(1, np.float32), "w": random(2, 6, 1, 1)}
    model = build(nodes, constants, shape=(1, 6, 8, 8), outputs=["y", "z"])
    with pytest.raises(ModelError, match="contradicts itself"):
        clean(model)


def test_a_contradiction_of_computed_lengths_is_the_models() -> None:
    """A matrix with 120 rows for vectors of 100 that become so wide at run time only."""
    pytest.importorskip("onnx", "1.18", reason="onnx 1.17 does not see it in the clean model either")
    nodes = [
        node("Shape", ["x"], "lengths"),
        node("Slice", ["lengths", "zero", "one"], "batch"),
        node("Concat", ["batch", "rest"], "target", axis=0),
        node("Reshape", ["x", "target"], "flat"),
        node("Gemm", ["flat", "w"], "y"),
    ]
    constants = {"zero": np.array([0]), "one": np.array([1]), "rest": np.array([-1]), "w": random(120, 5)}
    model = build(nodes, constants, opset=13, shape=("n", 4, 5, 5))
    with pytest.raises(ModelError, match="contradicts itself, and onnxruntime does not run it"):
        clean(model)


@pytest.mark.parametrize("opset", [9, 13, 18, 23])
def test_weight_arithmetic_folds_to_the_very_bits(opset: int) -> None:
    axes: dict[str, Any] = {"axes": [1, 2, 3]} if opset < 18 else {}
    nodes = [
        node("ReduceL2", ["v", *(["axes"] if opset >= 18 else [])], "norm", **axes),
        node("Div", ["v", "norm"], "direction"),
        node("Mul", ["direction", "g"], "w"),
        node("Exp", ["c"], "e"),
        node("Sqrt", ["e"], "bias"),
        node("Conv", ["x", "w", "bias"], "y"),
    ]
    constants: dict[str, Any] = {"v": random(8, 6, 3, 3), "g": random(8, 1, 1, 1), "c": random(8)}
    if opset >= 18:
        constants["axes"] = np.array([1, 2, 3])
    model = build(nodes, constants, opset=opset)
    cleaned, plan = clean(model)
    assert ops(cleaned) == ["Conv"]
    assert {d["from"] for d in plan.decisions} == {"constants"}
    assert_same_bits(model, cleaned, h=6, w=7)


def test_large_weights_are_turned_but_not_unpacked() -> None:
    packed = random(64, 256).astype(np.float16)
    nodes = [
        node("Transpose", ["w"], "wt", perm=[1, 0]),
        node("MatMul", ["x", "wt"], "a"),
        node("Cast", ["half"], "full", to=TensorProto.FLOAT),
        node("MatMul", ["a", "full"], "b"),
        node("Expand", ["one", "shape"], "ones"),
        node("MatMul", ["b", "ones"], "y"),
    ]
    constants = {"w": random(64, 128), "half": packed, "one": random(1), "shape": np.array([256, 32])}
    model = build(nodes, constants, shape=("n", 128))
    cleaned, plan = clean(model)
    assert ops(cleaned) == ["MatMul", "Cast", "MatMul", "Expand", "MatMul"]
    assert {node: reason for node, reason in reasons(plan).items() if reason.startswith("fold: ")} == {
        "Cast_2": "fold: its output of 65536 bytes is larger than may be stored for 32768 bytes of input",
        "Expand_4": "fold: its output of 32768 bytes is larger than may be stored for 20 bytes of input",
    }
    assert_same_bits(model, cleaned)


def test_outputs_above_the_limit_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold, "MAX_FOLDED_BYTES", 100)
    model = build([node("Tanh", ["w"], "m"), node("Add", ["x", "m"], "y")], {"w": random(6, 5, 5)}, shape=(1, 6, 5, 5))
    cleaned, plan = clean(model)
    assert ops(cleaned) == ["Tanh", "Add"]
    assert "its output of 600 bytes is larger" in reasons(plan)["Tanh_0"]


def test_absurd_sizes_are_not_allocated() -> None:
    nodes = [
        node("ConstantOfShape", ["huge"], "zeros"),
        node("ReduceSum", ["zeros"], "total", keepdims=0),
        node("Add", ["x", "total"], "y"),
    ]
    model = build(nodes, {"huge": np.array([2**20, 2**20, 2**10])})
    cleaned, plan = clean(model)
    assert ops(cleaned) == ops(model)
    assert "larger than may be stored" in reasons(plan)["ConstantOfShape_0"]


def test_random_and_quantised_nodes_stay() -> None:
    nodes = [
        node("RandomNormalLike", ["w"], "random", seed=1.0),
        node("DequantizeLinear", ["q", "scale"], "unpacked"),
        node("Sum", ["random", "unpacked"], "sum"),
        node("Conv", ["x", "sum"], "y"),
    ]
    constants = {
        "w": random(6, 6, 1, 1),
        "q": np.ones((6, 6, 1, 1), np.int8),
        "scale": np.array(0.5, np.float32),
    }
    model = build(nodes, constants)
    cleaned, plan = clean(model)
    assert ops(cleaned) == ops(model)
    assert reasons(plan) == {
        "RandomNormalLike_0": "fold: RandomNormalLike may be random",
        "DequantizeLinear_1": "fold: quantised weights stay packed",
    }


def test_constant_graph_outputs_keep_their_node() -> None:
    nodes = [node("Neg", ["w"], "a"), node("Abs", ["a"], "constant"), node("Relu", ["x"], "y")]
    model = build(nodes, {"w": random(3)}, outputs=["y", "constant"])
    cleaned, plan = clean(model)
    assert ops(cleaned) == ["Abs", "Relu"]
    assert "'constant' is a graph output" in reasons(plan)["Abs_1"]
    assert_same_bits(model, cleaned)


def test_bfloat16_that_onnxruntime_cannot_compute_stays_and_the_rest_folds() -> None:
    bfloat16 = onnx.helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
    nodes = [
        node("Sin", ["half"], "a"),
        node("Cast", ["a"], "b", to=TensorProto.FLOAT),
        node("Neg", ["w"], "c"),
        node("Sum", ["x", "b", "c"], "y"),
    ]
    model = build(nodes, {"half": random(4).astype(bfloat16), "w": random(4)}, opset=22, shape=(2, 4))
    cleaned, plan = clean(model)
    assert ops(cleaned) == ["Sin", "Cast", "Sum"]
    assert "cannot be computed beforehand" in reasons(plan)["Sin_0"]
    assert "reads 'a', which cannot be computed beforehand" in reasons(plan)["Cast_1"]


def test_several_outputs_and_static_shapes_fold_together() -> None:
    nodes = [
        node("Split", ["w", "sizes"], "first", "second", axis=0),
        node("Shape", ["x"], "s"),
        node("Slice", ["s", "one", "two"], "channels"),
        node("Tile", ["first", "channels"], "tiled"),
        node("Add", ["x", "tiled"], "a"),
        node("Mul", ["a", "second"], "y"),
    ]
    constants = {"w": random(7, seed=3), "sizes": np.array([1, 6]), "one": np.array([1]), "two": np.array([2])}
    model = build(nodes, constants, shape=("n", 6))
    cleaned, plan = clean(model)
    assert ops(cleaned) == ["Add", "Mul"]
    assert {d["node"]: d["from"] for d in plan.decisions if d["step"] == "fold"} == {
        "Split_0": "constants",
        "Slice_2": "shape arithmetic",
        "Tile_3": "constants",
    }
    assert {d["node"] for d in plan.decisions if d["step"] == "unused"} == {"Shape_1"}
    assert_same_bits(model, cleaned)


def test_a_plan_of_another_model_is_refused() -> None:
    model = build([node("Neg", ["w"], "m"), node("Add", ["x", "m"], "y")], {"w": random(6)}, shape=(2, 6))
    other = build([node("Neg", ["x"], "m"), node("Add", ["x", "m"], "y")], shape=(2, 6))
    plan = Cleanup().plan(model, PassContext())
    with pytest.raises(RecipeError, match=r"^plan: clean-up folds node 'Neg_0', which is not constant"):
        Cleanup().apply(other, plan, PassContext())
    static = Plan("cleanup", ({**plan.decisions[0], "from": "shape arithmetic"},))
    with pytest.raises(RecipeError, match=r"^plan: clean-up folds 'm', which is not constant"):
        Cleanup().apply(other, static, PassContext())


OPERATORS: list[Callable[[list[str], str], onnx.NodeProto]] = [
    lambda a, o: node("Add", a[:2], o),
    lambda a, o: node("Mul", a[:2], o),
    lambda a, o: node("Tanh", a[:1], o),
    lambda a, o: node("Transpose", a[:1], o, perm=[1, 0]),
    lambda a, o: node("MatMul", a[:2], o),
    lambda a, o: node("Softmax", a[:1], o, axis=-1),
    lambda a, o: node("Where", ["mask", *a[:2]], o),
    lambda a, o: node("LogSoftmax", a[:1], o, axis=0),
    lambda a, o: node("Clip", [a[0], "", "one"], o),
]


@given(
    steps=st.lists(
        st.tuples(st.integers(0, len(OPERATORS) - 1), st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=10
    ),
    outputs=st.sets(st.integers(0, 9), max_size=2),
)
def test_random_arithmetic_keeps_every_bit(steps: list[tuple[int, int, int]], outputs: set[int]) -> None:
    nodes, tensors = [], ["x", "u", "v"]
    for number, (operator, *sources) in enumerate(steps):
        inputs = [tensors[source % len(tensors)] for source in sources]
        nodes.append(OPERATORS[operator](inputs, f"t{number}"))
        tensors.append(f"t{number}")
    constants = {
        "u": random(4, 4),
        "v": random(4, 4, seed=1),
        "mask": np.eye(4, dtype=np.bool_),
        "one": np.array(0.5, np.float32),
    }
    wanted = sorted({tensors[3 + i % len(steps)] for i in outputs} | {tensors[-1]})
    model = build(nodes, constants, shape=(4, 4), outputs=wanted)
    cleaned, _ = clean(model)
    assert_same_bits(model, cleaned)
