"""Models of one convolution, with whatever attributes, and what onnxruntime makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext, PassResult
from onnxcompress.passes.tucker import (
    SvdConfig,
    SvdDecomposition,
    TuckerConfig,
    TuckerDecomposition,
    parse_svd_spec,
    parse_tucker_spec,
)

ELEMENT_TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.float64): TensorProto.DOUBLE,
}


def model_of(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, np.ndarray],
    shape: Sequence[int | str],
    *,
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
    element_type: int = TensorProto.FLOAT,
) -> Model:
    """A model of input `x`; the ranks of its outputs are inferred."""
    x = helper.make_tensor_value_info("x", element_type, shape)
    weights = [numpy_helper.from_array(values, name) for name, values in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], [], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    known = {info.name: info for info in inferred.graph.value_info}
    proto.graph.output.extend(known[name] for name in outputs)
    return Model.from_proto(proto)


def conv_model(
    weight: np.ndarray,
    shape: Sequence[int | str],
    *,
    op: str = "Conv",
    bias: bool = True,
    opset: int = 17,
    **attributes: Any,
) -> Model:
    """`conv` on an input of a shape; the bias, if any, is not zero."""
    constants = {"w": weight}
    if bias:
        groups = attributes.get("group", 1)
        filters = weight.shape[1] * groups if op == "ConvTranspose" else weight.shape[0]
        constants["b"] = np.linspace(-1, 1, filters).astype(weight.dtype)
    node = helper.make_node(op, ["x", *constants], ["y"], name="conv", **attributes)
    return model_of([node], constants, shape, opset=opset, element_type=ELEMENT_TYPES[weight.dtype])


def weight_of(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    return values.astype(dtype)


def input_of(*shape: int, seed: int = 1, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def run(model: Model, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def tucker(model: Model, spec: str, context: PassContext = PassContext(), **config: Any) -> PassResult:  # noqa: B008
    each = TuckerDecomposition(TuckerConfig(parse_tucker_spec(spec), **config))
    return each.apply(model, each.plan(model, context), context)


def svd(model: Model, spec: str, context: PassContext = PassContext()) -> PassResult:  # noqa: B008
    each = SvdDecomposition(SvdConfig(parse_svd_spec(spec)))
    return each.apply(model, each.plan(model, context), context)


def difference(expected: np.ndarray, seen: np.ndarray) -> float:
    """Largest difference relative to the range of what is expected."""
    assert expected.shape == seen.shape
    return float(np.abs(expected - seen).max() / np.ptp(expected))


def only_reason(result: PassResult) -> str:
    """Why the one convolution was left alone."""
    assert not result.modified
    (skipped,) = result.plan.skipped
    return skipped.reason
