"""Which tensors have a shape that the data decide."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcompress.analysis.data_shapes import data_shapes
from tests.small_models import build, node

CONSTANTS = {
    "k": np.array([3]),
    "zero": np.array([0]),
    "six": np.array([6]),
    "flat": np.array([-1]),
    "places": np.array([[0], [1]]),
    "on": np.array(True),
}


def branch(op: str) -> onnx.NodeProto:
    """Return an If of two such branches, which read `a` from outside."""
    info = helper.make_tensor_value_info("n", TensorProto.INT64, None)
    graphs = [helper.make_graph([node(op, ["a"], "n")], "branch", [], [info]) for _ in range(2)]
    return node("If", ["on"], "y", then_branch=graphs[0], else_branch=graphs[1])


@pytest.mark.parametrize(
    ("nodes", "shaped"),
    [
        ([node("NonZero", ["a"], "b"), node("Transpose", ["b"], "y")], {"b", "y"}),
        ([node("Unique", ["a"], "y")], {"y"}),
        (
            [node("Greater", ["a", "a"], "b"), node("Reshape", ["b", "flat"], "c"), node("Compress", ["a", "c"], "y")],
            {"y"},
        ),
        ([node("TopK", ["a", "k"], "y", "places_of")], set()),
        (
            [
                node("ReduceMax", ["a"], "b", keepdims=0),
                node("Cast", ["b"], "c", to=TensorProto.INT64),
                node("Reshape", ["c", "flat"], "d"),
                node("TopK", ["a", "d"], "y", "places_of"),
            ],
            {"y", "places_of"},
        ),
        # As long as a shape says, whatever the data hold.
        ([node("Shape", ["a"], "b"), node("ConstantOfShape", ["b"], "c"), node("NonZero", ["c"], "y")], set()),
        ([node("Shape", ["a"], "b"), node("Reshape", ["a", "b"], "y")], set()),
        # The number of what was found is data, and so is what is as long as it.
        ([node("NonZero", ["a"], "b"), node("Shape", ["b"], "c"), node("ConstantOfShape", ["c"], "y")], {"b", "y"}),
        ([node("NonZero", ["a"], "b"), node("Shape", ["b"], "y")], {"b"}),
        (
            [
                node("NonZero", ["a"], "b"),
                node("Gather", ["b", "zero"], "c"),
                node("ReduceMax", ["c"], "y", keepdims=0),
            ],
            {"b", "c"},
        ),
        (
            [
                node("NonZero", ["a"], "b"),
                node("Transpose", ["b"], "c", perm=[1, 0]),
                node("GatherND", ["a", "c"], "d"),
                node("ScatterND", ["a", "c", "d"], "y"),
            ],
            {"b", "c", "d"},
        ),
        ([branch("NonZero")], {"y"}),
        ([branch("Size")], set()),
    ],
)
def test_what_the_data_decide(nodes: list[onnx.NodeProto], shaped: set[str]) -> None:
    model = build([node("Relu", ["x"], "a"), *nodes], CONSTANTS, shape=("n", 6))
    assert data_shapes(model).shaped == shaped
