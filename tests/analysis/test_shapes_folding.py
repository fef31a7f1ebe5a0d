"""Folding what shape arithmetic knows, and random shape arithmetic, against onnxruntime."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxcompress.analysis.shapes import fold_static_values
from tests.analysis.test_shapes import BATCH, HEIGHT, WIDTH, check_against_runtime
from tests.small_models import build, node, session


def test_fold_removes_what_is_static_and_changes_no_bit() -> None:
    nodes = [
        node("Shape", ["x"], "s"),
        node("Gather", ["s", "i0"], "n"),
        node("Gather", ["s", "i1"], "c"),
        node("Div", ["c", "two"], "half"),
        node("Concat", ["n", "two", "half", "rest"], "target", axis=0),
        node("Reshape", ["x", "target"], "grouped"),
        node("Transpose", ["grouped"], "turned", perm=[0, 2, 1, 3]),
        node("Shape", ["turned"], "s2"),
        node("Gather", ["s2", "i1"], "half2"),
        node("Mul", ["half2", "two"], "c2"),
        node("Concat", ["n", "c2", "rest"], "target2", axis=0),
        node("Reshape", ["turned", "target2"], "y"),
    ]
    constants = {
        "i0": np.array([0], np.int64),
        "i1": np.array([1], np.int64),
        "two": np.array([2], np.int64),
        "rest": np.array([-1], np.int64),
    }
    model = build(nodes, constants, outputs=["y"])
    folded = model.copy()
    assert fold_static_values(folded) == 9
    assert [n.op for n in folded.nodes] == ["Reshape", "Transpose", "Reshape"]
    # The batch is copied (0), the last length follows (-1).
    assert [n.inputs[1].values.tolist() for n in folded.nodes if n.op == "Reshape"] == [[0, 2, 3, -1], [0, 6, -1]]
    assert len(model.nodes) == len(nodes)
    folded.check()
    feed = {"x": np.random.default_rng(0).standard_normal((BATCH, 6, HEIGHT, WIDTH)).astype(np.float32)}
    before, after = (session(m.to_bytes()).run(["y"], feed)[0] for m in (model, folded))
    assert before.tobytes() == after.tobytes()
    assert fold_static_values(folded) == 0


def test_fold_keeps_graph_outputs_and_what_sub_graphs_read() -> None:
    branch = helper.make_graph(
        [node("Neg", ["captured"], "r")],
        "b",
        [],
        [helper.make_tensor_value_info("r", TensorProto.INT64, [4])],
    )
    nodes = [
        node("Shape", ["x"], "captured"),
        node("Shape", ["x"], "s"),
        node("Cast", ["s"], "flags", to=TensorProto.BOOL),
        node("Gather", ["flags", "i"], "flag"),
        node("If", ["flag"], "y", then_branch=branch, else_branch=branch),
    ]
    model = build(nodes, {"i": np.array(1, np.int64)}, shape=(1, 6, 2, 2), outputs=["y", "s"])
    folded = model.copy()
    assert fold_static_values(folded) == 2
    folded.refresh_shapes()
    folded.check()
    feed = {"x": np.zeros((1, 6, 2, 2), np.float32)}
    for before, after in zip(*(session(m.to_bytes()).run(["y", "s"], feed) for m in (model, folded)), strict=True):
        assert before.tobytes() == after.tobytes()


OPERATORS: list[Callable[[str, str], list[onnx.NodeProto]]] = [
    lambda a, o: [node("Gather", [a, "index"], o)],
    lambda a, o: [node("Slice", [a, "i0", "i2"], o)],
    lambda a, o: [node("Concat", [a, "pair"], o, axis=0)],
    lambda a, o: [node("Mul", [a, "i2"], o)],
    lambda a, o: [node("Div", [a, "i2"], o)],
    lambda a, o: [node("Add", [a, "i0"], o)],
    lambda a, o: [node("Sub", ["i2", a], o)],
    lambda a, o: [node("Max", [a, "i2"], o)],
    lambda a, o: [node("ReduceProd", [a], o)],
    lambda a, o: [node("Equal", [a, "minus"], f"{o}_c"), node("Where", [f"{o}_c", "i2", a], o)],
    lambda a, o: [node("Cast", [a], f"{o}_f", to=TensorProto.FLOAT), node("Cast", [f"{o}_f"], o, to=TensorProto.INT64)],
    lambda a, o: [node("Concat", [a, a], f"{o}_t", axis=0), node("Split", [f"{o}_t"], f"{o}_p", o, axis=0)],
    lambda a, o: [node("Squeeze", [a], f"{o}_s"), node("Reshape", [f"{o}_s", "minus"], o)],
]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    steps=st.lists(st.tuples(st.integers(0, len(OPERATORS) - 1), st.integers(0, 20)), min_size=1, max_size=10),
    static=st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_random_shape_arithmetic_claims_nothing_false(steps: list[tuple[int, int]], static: list[bool]) -> None:
    size = (2, 6, 5, 1)
    nodes, available = [node("Shape", ["x"], "t0")], ["t0"]
    for number, (operator, source) in enumerate(steps, 1):
        nodes += OPERATORS[operator](available[source % len(available)], f"t{number}")
        available.append(f"t{number}")
    constants = {
        "index": np.array([0, -1, 0], np.int64),
        "i0": np.array([0], np.int64),
        "i2": np.array([2], np.int64),
        "pair": np.array([4, -3], np.int64),
        "minus": np.array([-1], np.int64),
    }
    shape = [dim if known else f"d{axis}" for axis, (dim, known) in enumerate(zip(size, static, strict=True))]
    model = build(nodes, constants, shape=shape)
    sizes = [size, tuple(dim if known else dim + 2 for dim, known in zip(size, static, strict=True))]
    check_against_runtime(model, sizes)
    folded = model.copy()
    fold_static_values(folded)
    for current in sizes:
        feed = {"x": np.zeros(current, np.float32)}
        before, after = (session(m.to_bytes()).run(None, feed)[0] for m in (model, folded))
        assert before.tolist() == after.tolist()
