"""What a recurrent layer reads leaves with the inputs of all its gates. Its state stays; an unrolled cell's leaves."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxcompress.analysis.channels import ChannelAnalysis, find_groups
from onnxcompress.graph import Model
from tests.passes.test_pruning_graphs import Constants, conv, prune, shapes, weight
from tests.small_models import build, node

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
HIDDEN = 5


def text_reader(op: str, directions: int, *, state: bool = False, computed: bool = False) -> Model:
    """Return two convolutions, a mean over the height, and a recurrent layer that reads the columns of (N, 6, 8, 8)."""
    rows = GATES[op] * HIDDEN
    constants: Constants = {
        "w": weight(directions, rows, 8),
        "r": weight(directions, rows, HIDDEN),
        "b": weight(directions, 2 * rows),
    }
    nodes = [
        conv("first", "x", constants, 6, 12),
        node("Relu", ["first"], "positive"),
        conv("second", "positive", constants, 12, 8),
        node("ReduceMean", ["second"], "columns", axes=[2], keepdims=0),
        node("Transpose", ["columns"], "steps", perm=[2, 0, 1]),
        node("Abs", ["w"], "w2") if computed else node("Identity", ["steps"], "same"),
    ]
    inputs = ["steps", "w2" if computed else "w", "r", "b"]
    if state:
        nodes += [
            conv("third", "x", constants, 6, HIDDEN),
            node("ReduceMean", ["third"], "start", axes=[2, 3], keepdims=0),
            node("Unsqueeze", ["start", "axis"], "h0"),
        ]
        constants["axis"] = [0]
        inputs += ["", "h0"]
    direction = "bidirectional" if directions == 2 else "forward"
    nodes.append(helper.make_node(op, inputs, ["y"], "recurrent", hidden_size=HIDDEN, direction=direction))
    return build(nodes, constants, shape=("n", 6, 8, 8))


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("op", GATES)
def test_inputs_of_all_gates_leave_with_the_filters(op: str, directions: int) -> None:
    pruned = prune(text_reader(op, directions))
    assert shapes(pruned) == {"first": (6, 6, 1, 1), "second": (4, 6, 1, 1)}
    (own,) = (n for n in pruned.nodes if n.op == op)
    rows = GATES[op] * HIDDEN
    assert [tuple(t.shape) for t in own.inputs[1:4]] == [
        (directions, rows, 4),
        (directions, rows, HIDDEN),
        (directions, 2 * rows),
    ]
    assert own.attrs["hidden_size"] == HIDDEN


def test_what_becomes_the_state_stays() -> None:
    groups = find_groups(ChannelAnalysis(text_reader("GRU", 1, state=True)), frozenset())
    by_producer = {producer: group for group in groups.groups for producer in group.producers}
    assert set(by_producer["third"].frozen.values()) == {"reaches 'recurrent' as a state of GRU"}
    assert by_producer["second"].prunable.all()


def test_a_computed_weight_keeps_the_filters() -> None:
    groups = find_groups(ChannelAnalysis(text_reader("LSTM", 1, computed=True)), frozenset())
    by_producer = {producer: group for group in groups.groups for producer in group.producers}
    assert set(by_producer["second"].frozen.values()) == {"reaches 'recurrent': LSTM with a computed weight"}
    assert by_producer["first"].prunable.all()


@pytest.mark.parametrize("opset", [9, 17])
@pytest.mark.parametrize("maker", ["ConstantOfShape", "Expand"])
def test_a_convolutional_cell_that_starts_from_one_number_is_pruned(maker: str, opset: int) -> None:
    """Two steps of a recurrent cell, unrolled, its first state made for whatever batch comes (ConvLSTM, ConvGRU)."""
    constants: Constants = {"zero": [0], "lengths": [8, 8, 8], "start": np.array([0.5], np.float32)}
    value = helper.make_tensor("value", TensorProto.FLOAT, [1], [0.5])
    nodes = [
        node("Shape", ["x"], "shape"),
        node("Gather", ["shape", "zero"], "batch"),
        node("Concat", ["batch", "lengths"], "target", axis=0),
        node("Expand", ["start", "target"], "h0")
        if maker == "Expand"
        else node("ConstantOfShape", ["target"], "h0", value=value),
    ]
    for before, after in (("h0", "h1"), ("h1", "h2")):
        nodes += [
            node("Concat", ["x", before], f"both {after}", axis=1),
            helper.make_node("Conv", [f"both {after}", "cell.w", "cell.b"], [f"new {after}"], f"cell {after}"),
            node("Sigmoid", [f"new {after}"], f"gate {after}"),
            node("Mul", [f"gate {after}", before], f"old {after}"),
            node("Add", [f"old {after}", f"new {after}"], after),
        ]
    constants |= {"cell.w": weight(8, 14, 1, 1), "cell.b": weight(8)}
    nodes.append(conv("out", "h2", constants, 8, 3))
    pruned = prune(build(nodes, constants, shape=("n", 6, 8, 8), opset=opset))
    assert shapes(pruned) == {"cell h1": (4, 10, 1, 1), "cell h2": (4, 10, 1, 1), "out": (3, 4, 1, 1)}
