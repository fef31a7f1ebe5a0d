"""Small ONNX models written node by node, and what onnxruntime makes of them without its optimiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from onnxcompress.graph import Model


def node(op: str, inputs: Sequence[str], *outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), list(outputs), **attributes)


def _tensor(name: str, value: Any) -> TensorProto:
    """Return a constant; of the integers of ml_dtypes as well, which old releases of onnx do not write."""
    array = np.asarray(value)
    if array.dtype.kind != "V" or not hasattr(TensorProto, array.dtype.name.upper()):
        return onnx.numpy_helper.from_array(array, name)
    kind = getattr(TensorProto, array.dtype.name.upper())
    return helper.make_tensor(name, kind, array.shape, array.astype(np.float32).ravel())


def build(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, Any] | None = None,
    *,
    opset: int = 17,
    shape: Sequence[int | str | None] = ("n", 6, "h", "w"),
    outputs: Sequence[str] = (),
) -> Model:
    """Return a model of float input `x`; without `outputs`, of the last node's output."""
    wanted = outputs or nodes[-1].output[:1]
    graph = helper.make_graph(
        [*nodes, *(node("Shape", [name], f"shape of {name}") for name in wanted)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"shape of {name}", TensorProto.INT64, [None]) for name in wanted],
        [_tensor(name, value) for name, value in (constants or {}).items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    known = {info.name: info for info in onnx.shape_inference.infer_shapes(proto).graph.value_info}
    del graph.output[:], graph.node[len(nodes) :]
    for name in wanted:
        if name in known and known[name].type.tensor_type.HasField("shape"):
            graph.output.append(known[name])
        else:  # the checker wants outputs of known rank
            graph.node.append(node("Size", [name], f"size of {name}"))
            graph.output.append(helper.make_tensor_value_info(f"size of {name}", TensorProto.INT64, []))
    del proto.graph.node[:], proto.graph.output[:]
    proto.graph.node.extend(graph.node)
    proto.graph.output.extend(graph.output)
    return Model.from_proto(proto)


def value(name: str, kind: int = TensorProto.FLOAT, shape: Sequence[int] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def branch(*nodes: onnx.NodeProto, weights: Mapping[str, Any] | None = None) -> onnx.GraphProto:
    """Return a sub-graph that reads the tensors around it and gives what its last node does."""
    made = [onnx.numpy_helper.from_array(np.asarray(own, np.float32), name) for name, own in (weights or {}).items()]
    return helper.make_graph(nodes, "branch", [], [value(nodes[-1].output[0])], made)


def choice(then: onnx.GraphProto, other: onnx.GraphProto, name: str = "if", output: str = "c") -> onnx.NodeProto:
    """Return an If by the constant `yes`."""
    return node("If", ["yes"], output, name=name, then_branch=then, else_branch=other)


def repeated_sum(start: str, summand: str, output: str) -> onnx.NodeProto:
    """Return a Loop by the constants `times` and `yes` that adds a tensor from around it; inference knows no shape."""
    body = helper.make_graph(
        [node("Identity", ["go"], "go on"), node("Add", ["state", summand], "next")],
        "body",
        [value("step", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("state")],
        [value("go on", TensorProto.BOOL, []), value("next")],
    )
    return node("Loop", ["times", "yes", start], output, name="loop", body=body)


def session(content: bytes, *, optimised: bool = False) -> ort.InferenceSession:
    options = ort.SessionOptions()
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run_all(model: Model, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return every tensor that a node of the model computes, by onnxruntime without its optimiser."""
    proto = model.to_proto()
    listed = {info.name for info in proto.graph.output}
    names = [name for n in proto.graph.node for name in n.output if name]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in listed)
    live = session(proto.SerializeToString())
    found = [output.name for output in live.get_outputs()]
    return dict(zip(found, live.run(None, dict(inputs)), strict=True))


def lrn_network(size: int | str = 20) -> Model:
    """Identity, Conv, LRN, Conv on an image of 3 channels, (n, 3, size, size)."""
    random = np.random.default_rng(0)
    weights = {"w": random.standard_normal((32, 3, 3, 3)), "v": random.standard_normal((16, 32, 3, 3))}
    nodes = [
        node("Identity", ["x"], "i", name="nothing"),
        node("Conv", ["i", "w"], "a", name="first"),
        node("LRN", ["a"], "b", name="norm", size=5, alpha=0.5),
        node("Conv", ["b", "v"], "y", name="second"),
    ]
    constants = {name: weight.astype(np.float32) for name, weight in weights.items()}
    return build(nodes, constants, shape=("n", 3, size, size))


def windows_net(size: int) -> Model:
    """Return a MatMul of images `x` (N, 3, size, size) cut into four windows each, the rows of its batch."""
    nodes = [
        node("Transpose", ["x"], "last", perm=[0, 2, 3, 1]),
        node("Reshape", ["last", "windows"], "rows"),
        node("MatMul", ["rows", "w"], "y"),
    ]
    weight = np.random.default_rng(3).standard_normal((3, 4)).astype(np.float32)
    constants = {"w": weight, "windows": np.array([-1, size * size // 4, 3])}
    return build(nodes, constants, shape=("n", 3, size, size))
