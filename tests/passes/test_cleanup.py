"""The clean-up as a pipeline, and its smallest rules: what does nothing goes, names of inputs and outputs stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxcompress.errors import RecipeError
from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext, Plan
from onnxcompress.passes.cleanup import STEPS, Cleanup, CleanupConfig
from tests.passes.cleanup_models import assert_same_bits, clean, ops, reasons
from tests.small_models import build, node

OPSETS = [9, 11, 13, 18, 23]


def dropout(opset: int, source: str, *outputs: str, training: bool | None = None) -> tuple[Any, dict[str, Any]]:
    if opset < 12:
        return node("Dropout", [source], *outputs, ratio=0.5), {}
    constants: dict[str, Any] = {"ratio": np.array(0.5, np.float32)}
    inputs = [source, "ratio"]
    if training is not None:
        constants["training"] = np.array(training)
        inputs.append("training")
    return node("Dropout", inputs, *outputs), constants


@pytest.mark.parametrize("opset", OPSETS)
def test_identity_and_dropout_go_and_the_output_keeps_its_name(opset: int) -> None:
    drop, constants = dropout(opset, "b", "c")
    nodes = [node("Identity", ["x"], "a"), node("Relu", ["a"], "b"), drop, node("Identity", ["c"], "y")]
    model = build(nodes, constants, opset=opset)
    cleaned, plan = clean(model)
    assert ops(cleaned) == ["Relu"]
    assert [t.name for t in cleaned.graph.outputs] == ["y"]
    assert [(d["step"], d["op"]) for d in plan.decisions] == [
        ("identity", op) for op in ("Identity", "Dropout", "Identity")
    ]
    assert_same_bits(model, cleaned)


def test_input_passed_straight_to_an_output_stays() -> None:
    model = build([node("Identity", ["x"], "y"), node("Relu", ["x"], "z")], outputs=["y", "z"])
    cleaned, plan = clean(model)
    assert ops(cleaned) == ["Identity", "Relu"]
    assert reasons(plan) == {
        "Identity_0": "identity: its output 'y' must keep its name and its input 'x' is computed by no node"
    }
    assert not plan.decisions


def test_two_outputs_that_are_one_tensor_stay_two() -> None:
    nodes = [node("Relu", ["x"], "y"), node("Identity", ["y"], "m"), node("Identity", ["m"], "z")]
    model = build(nodes, outputs=["y", "z"])
    cleaned, plan = clean(model)
    assert ops(cleaned) == ["Relu", "Identity"]
    assert len(plan.decisions) == 1
    assert "and so must its input 'y'" in reasons(plan)["Identity_2"]
    assert_same_bits(model, cleaned)


def test_readers_of_a_renamed_tensor_follow() -> None:
    nodes = [node("Relu", ["x"], "a"), node("Identity", ["a"], "y"), node("Add", ["a", "a"], "z")]
    model = build(nodes, outputs=["y", "z"])
    cleaned, _ = clean(model)
    assert ops(cleaned) == ["Relu", "Add"]
    assert_same_bits(model, cleaned)


@pytest.mark.parametrize(
    ("training", "outputs", "reason"), [(True, ("y",), "training mode"), (None, ("y", "m"), "mask 'm'")]
)
def test_dropout_stays_where_it_does_something(training: bool | None, outputs: tuple[str, ...], reason: str) -> None:
    drop, constants = dropout(13, "x", *outputs, training=training)
    nodes = [drop] if len(outputs) == 1 else [drop, node("Cast", ["m"], "mask", to=TensorProto.FLOAT)]
    model = build(nodes, constants, outputs=["y"] if len(outputs) == 1 else ["y", "mask"])
    cleaned, plan = clean(model)
    assert ops(cleaned)[0] == "Dropout"
    assert reason in reasons(plan)["Dropout_0"]


def test_dropout_with_training_off_or_an_unread_mask_goes() -> None:
    drop, constants = dropout(13, "r", "y", "m", training=False)
    model = build([node("Relu", ["x"], "r"), drop], constants, outputs=["y"])
    cleaned, _ = clean(model)
    assert ops(cleaned) == ["Relu"]
    assert_same_bits(model, cleaned)


@pytest.mark.parametrize("opset", OPSETS)
def test_operators_that_do_nothing_go(opset: int) -> None:
    constants: dict[str, Any] = {"shape": np.array([-1, 6, 4, 4], np.int64)}
    pad: dict[str, Any] = {"pads": [0] * 8}
    if opset >= 11:
        constants["pads"], pad = np.zeros(8, np.int64), {}
    nodes = [
        node("Relu", ["x"], "r"),
        node("Cast", ["r"], "a", to=TensorProto.FLOAT),
        node("Reshape", ["a", "shape"], "b"),
        node("Transpose", ["b"], "c", perm=[0, 1, 2, 3]),
        node("Concat", ["c"], "d", axis=1),
        node("Pad", ["d", *(["pads"] if opset >= 11 else [])], "e", **pad),
        node("Sum", ["e"], "f"),
        node("Neg", ["f"], "y"),
    ]
    model = build(nodes, constants, opset=opset, shape=("n", 6, 4, 4))
    cleaned, plan = clean(model)
    assert ops(cleaned) == ["Relu", "Neg"]
    assert len(plan.decisions) == 6
    assert_same_bits(model, cleaned, n=2)


@pytest.mark.parametrize(
    ("last", "shape", "constants"),
    [
        (node("Cast", ["r"], "y", to=TensorProto.DOUBLE), ("n", 6, 4, 4), {}),
        (node("Transpose", ["r"], "y"), ("n", 6, 4, 4), {}),
        (node("Transpose", ["r"], "y", perm=[0, 1, 3, 2]), ("n", 6, 4, 4), {}),
        (node("Reshape", ["r", "s"], "y"), ("n", 6, "h", 4), {"s": np.array([-1, 6, 4, 4])}),
        (node("Reshape", ["r", "s"], "y"), ("n", 6, 4, 2), {"s": np.array([-1, 6, 2, 4])}),
        (node("Flatten", ["r"], "y"), ("n", 6, 4, 4), {}),
        (node("Concat", ["r", "r"], "y", axis=1), ("n", 6, 4, 4), {}),
        (node("Pad", ["r", "p"], "y"), ("n", 6, 4, 4), {"p": np.array([0, 0, 0, 0, 0, 0, 1, 0])}),
        (node("Pad", ["r", "p"], "y"), ("n", 6, 4, 4), {"p": np.array([0, 0, 1, 0, 0, 0, -1, 0])}),
    ],
)
def test_operators_that_do_something_stay(last: Any, shape: tuple[Any, ...], constants: dict[str, Any]) -> None:
    model = build([node("Relu", ["x"], "r"), last], constants, shape=shape)
    cleaned, plan = clean(model)
    assert ops(cleaned) == ops(model)
    assert not plan.decisions


def test_what_a_sub_graph_reads_keeps_its_name() -> None:
    branch = helper.make_graph(
        [node("Neg", ["captured"], "r")], "b", [], [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)]
    )
    nodes = [
        node("Identity", ["x"], "captured"),
        node("ReduceMax", ["x"], "m", keepdims=0),
        node("Cast", ["m"], "flag", to=TensorProto.BOOL),
        node("If", ["flag"], "i", then_branch=branch, else_branch=branch),
        node("Relu", ["i"], "y"),
    ]
    model = build(nodes, shape=(1, 6, 2, 2))
    cleaned, plan = clean(model)
    assert ops(cleaned) == ops(model)
    assert "must keep its name" in reasons(plan)["Identity_0"]


def test_unused_nodes_go_with_what_they_read() -> None:
    nodes = [node("Relu", ["x"], "y"), node("Neg", ["x"], "a"), node("Abs", ["a"], "b")]
    model = build(nodes, outputs=["y"])
    cleaned, plan = clean(model)
    assert ops(cleaned) == ["Relu"]
    assert [(d["step"], d["op"]) for d in plan.decisions] == [("unused", "Neg"), ("unused", "Abs")]
    assert ops(clean(model, "identity", "fold", "batchnorm")[0]) == ops(model)


def test_every_step_can_be_switched_off() -> None:
    weight = np.ones((4, 6, 1, 1), np.float32)
    nodes = [
        node("Identity", ["x"], "a"),
        node("Transpose", ["w"], "wt", perm=[1, 0, 2, 3]),
        node("Conv", ["a", "wt"], "c"),
        node("BatchNormalization", ["c", *"sbmv"], "y"),
        node("Neg", ["a"], "unread"),
        node("Shape", ["x"], "s0"),
        node("Gather", ["s0", "first"], "n"),
        node("Concat", ["n", "rest"], "target", axis=0),
        node("Reshape", ["x", "target"], "z"),
    ]
    constants = {name: np.full(4, 0.5, np.float32) for name in "sbmv"}
    constants |= {"first": np.array([0]), "rest": np.array([-1]), "w": weight.transpose(1, 0, 2, 3)}
    nodes += [node("LRN", ["x"], "l", size=3), node("Conv", ["x", "wide"], "p"), node("Conv", ["p", "narrow"], "q")]
    constants |= {"wide": np.ones((40, 6, 1, 1), np.float32), "narrow": np.ones((4, 40, 1, 1), np.float32)}
    nodes += [node("Mul", ["q", "two"], "scaled"), node("Relu", ["l"], "r"), node("Min", ["r", "six"], "bounded")]
    constants |= {"two": np.float32(2.0), "six": np.float32(6.0)}
    nodes += [node("Pad", ["r", "pads"], "wider"), node("MaxPool", ["wider"], "largest", kernel_shape=[2, 2])]
    constants |= {"pads": np.array([0, 0, 1, 0, 0, 0, 0, 0])}
    nodes += [
        node("SplitToSequence", ["x", "half"], "parts", axis=1),
        node("SequenceAt", ["parts", "first_part"], "part"),
    ]
    constants |= {"half": np.array(3), "first_part": np.array(0)}
    nodes += [node("Transpose", ["l"], "t", perm=[0, 2, 1, 3]), node("Transpose", ["t"], "turned", perm=[0, 2, 3, 1])]
    model = build(nodes, constants, outputs=["y", "z", "bounded", "scaled", "largest", "part", "turned"])
    done = {decision["step"] for decision in clean(model)[1].decisions}
    # These take what wins a race, and here there is none; the last ones come when all else is done.
    assert done == set(STEPS) - {"blocked", "conv2d", "softmax", "share"}
    for step in STEPS:
        others = tuple(s for s in STEPS if s != step)
        assert {d["step"] for d in clean(model, *others)[1].decisions} <= done - {step}
        assert {d["step"] for d in clean(model, step)[1].decisions} <= {step}
    unchanged = Cleanup(CleanupConfig(())).plan(model, PassContext())
    assert unchanged == Plan("cleanup")
    assert not Cleanup(CleanupConfig(())).apply(model, unchanged, PassContext()).modified


def test_a_computed_target_is_settled_unless_two_lengths_are_open() -> None:
    nodes = [
        node("Shape", ["x"], "s"),
        node("Split", ["s"], "n", "c", "h", "w", axis=0),
        node("Gather", ["s", "spatial"], "hw"),
        node("ReduceProd", ["hw"], "area"),
        node("Gather", ["s", "first"], "batch"),
        node("Concat", ["batch", "groups", "area"], "flat", axis=0),
        node("Reshape", ["x", "flat"], "y"),
        node("Concat", ["w", "h", "groups", "n"], "odd", axis=0),
        node("Reshape", ["x", "odd"], "z"),
    ]
    constants = {"spatial": np.array([2, 3]), "first": np.array([0]), "groups": np.array([6])}
    model = build(nodes, constants, outputs=["y", "z"])
    cleaned, plan = clean(model)
    settled = [d for d in plan.decisions if d["step"] == "reshape"]
    assert [(d["node"], d["computed"], d["target"]) for d in settled] == [("Reshape_6", "flat", [0, 6, -1])]
    assert reasons(plan) == {
        "Reshape_8": "reshape: more than one length of its target 'odd' is not known before the run"
    }
    assert ops(cleaned) == ["Shape", "Split", "Reshape", "Concat", "Reshape"]
    for sizes in ({"n": 1, "h": 4, "w": 5}, {"n": 3, "h": 6, "w": 2}):
        assert_same_bits(model, cleaned, **sizes)


def test_excluded_nodes_are_left_alone() -> None:
    drop, constants = dropout(13, "a", "b")
    drop.name, identity = "keep/drop", node("Identity", ["x"], "a")
    model = build([identity, drop, node("Relu", ["b"], "y")], constants)
    cleaned, plan = clean(model, context=PassContext(exclude=("^keep/",)))
    assert ops(cleaned) == ["Dropout", "Relu"]
    assert reasons(plan) == {"keep/drop": "identity: 'keep/drop' is excluded by --exclude"}


def test_steps_and_plans_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RecipeError, match="unknown step 'polish', expected some of identity, fold"):
        CleanupConfig(("polish",))
    model = build([node("Relu", ["x"], "y")])
    for decision in ({"node": "gone", "step": "identity"}, {"node": "gone", "step": "polish"}):
        with pytest.raises(RecipeError, match=r"^plan: "):
            Cleanup().apply(model, Plan("cleanup", ({"round": 1, **decision},)), PassContext())


@pytest.mark.parametrize("symbol", ["length", ""])
def test_declared_output_shapes_may_be_vaguer_than_what_cleaning_reveals(symbol: str) -> None:
    nodes = [
        node("Relu", ["x"], "r"),
        node("Shape", ["r"], "s"),
        node("ReduceProd", ["s"], "count", keepdims=0),
        node("Unsqueeze", ["count", "zero"], "target"),
        node("Reshape", ["r", "target"], "y"),
    ]
    model = build(nodes, {"zero": np.array([0])}, shape=(2, 6, 4, 4))
    proto = model.to_proto()
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.output[0].type.tensor_type.shape.dim.add().dim_param = symbol
    model = Model.from_proto(proto)
    cleaned, _ = clean(model)
    assert ops(cleaned) == ["Relu", "Reshape"]
    assert_same_bits(model, cleaned)


LAYERS = ("Identity", "Dropout", "Cast", "Reshape", "Transpose", "Relu", "Neg", "Concat")


@given(
    layers=st.lists(st.tuples(st.sampled_from(LAYERS), st.integers(0, 9)), min_size=1, max_size=8),
    seen=st.sets(st.integers(0, 8), max_size=3),
)
def test_random_graphs_keep_every_output_bit(layers: list[tuple[str, int]], seen: set[int]) -> None:
    nodes, tensors = [], ["x"]
    for number, (op, source) in enumerate(layers):
        inputs = [tensors[-1 - source % min(len(tensors), 2)]]
        attributes: dict[str, Any] = {
            "Cast": {"to": TensorProto.FLOAT},
            "Transpose": {"perm": [0, 1, 2, 3] if source % 2 else [0, 1, 3, 2]},
            "Concat": {"axis": 1},
        }.get(op, {})
        if op == "Reshape":
            inputs.append("same")
        nodes.append(node(op, inputs, f"t{number}", **attributes))
        tensors.append(f"t{number}")
    outputs = sorted({tensors[1 + i % len(layers)] for i in seen} | {tensors[-1]})
    model = build(nodes, {"same": np.array([-1, 6, 4, 4])}, shape=("n", 6, 4, 4), outputs=outputs)
    cleaned, _ = clean(model)
    assert len(cleaned.nodes) <= len(model.nodes)
    assert_same_bits(model, cleaned, n=2)
