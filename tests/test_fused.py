"""Operators that onnx does not know are read as those that it knows: the same numbers, shapes, filters to prune."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcompress
from onnxcompress.errors import ModelError
from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext
from onnxcompress.passes.pruning import FilterPruning, PruningConfig
from tests.small_models import session
from tests.tiny_models import conv_net, samples

GENERATOR = np.random.default_rng(0)
DRAWN = {
    "w": GENERATOR.standard_normal((6, 6, 3, 3)),
    "b": GENERATOR.standard_normal(6),
    "g": GENERATOR.standard_normal((8, 8)),
    "row": GENERATOR.standard_normal(8),
    "z": GENERATOR.standard_normal((1, 6, 8)),
}
PADS: dict[str, Any] = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}


def shape_of(op: str) -> list[int]:
    return [6, 8] if op == "FusedGemm" else [1, 6, 8] if op.startswith("Skip") else [2, 6, 8, 8]


def model_of(
    op: str,
    inputs: list[str],
    *,
    opset: int = 13,
    domain: str = "com.microsoft",
    kind: int = TensorProto.FLOAT,
    **how: Any,
) -> onnx.ModelProto:
    """Return a model of one node from `x`, of the shape that `shape_of` tells, to `y` of the same shape."""
    x, y, total = (helper.make_tensor_value_info(name, kind, shape_of(op)) for name in ("x", "y", "total"))
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weights = [numpy_helper.from_array(v.astype(dtype), name) for name, v in DRAWN.items() if name in inputs]
    outputs = ["y", "", "", "total"] if op.startswith("Skip") else ["y"]
    node = helper.make_node(op, inputs, outputs, "fused", domain=domain, **how)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(
        helper.make_graph([node], "g", [x], [y, total][: 1 + len(outputs) // 4], weights),
        opset_imports=opsets,
        ir_version=8,
    )


CASES: dict[str, Any] = {
    "Conv": ("FusedConv", ["x", "w", "b"], PADS),
    "Relu": ("FusedConv", ["x", "w", "b"], {"activation": "Relu", **PADS}),
    "no bias": ("FusedConv", ["x", "w"], {"activation": "Tanh", **PADS}),
    "sum": ("FusedConv", ["x", "w", "b", "x"], {"activation": "Relu", **PADS}),
    "sum alone": ("FusedConv", ["x", "w", "", "x"], PADS),
    "Clip": ("FusedConv", ["x", "w", "b"], {"activation": "Clip", "activation_params": [-0.5, 2.0], **PADS}),
    "LeakyRelu": ("FusedConv", ["x", "w", "b"], {"activation": "LeakyRelu", "activation_params": [0.2], **PADS}),
    "HardSigmoid": ("FusedConv", ["x", "w"], {"activation": "HardSigmoid", "activation_params": [0.1, 0.3], **PADS}),
    "Elu": ("FusedGemm", ["x", "g", "row"], {"activation": "Elu", "activation_alpha": 0.7, "transB": 1, "beta": 0.5}),
    "Softplus": ("FusedGemm", ["x", "g", "row"], {"activation": "Softplus", "alpha": 0.5}),
    "Gelu": ("Gelu", ["x"], {}),
    "BiasGelu": ("BiasGelu", ["x", "row"], {}),
    "FastGelu": ("FastGelu", ["x", "row"], {}),
    "QuickGelu": ("QuickGelu", ["x"], {}),
    "Silu": ("QuickGelu", ["x"], {"alpha": 1.0}),
    "norm": ("SimplifiedLayerNormalization", ["x", "row"], {"domain": "", "epsilon": 0.01}),
    "centred norm": ("LayerNormalization", ["x", "row", "row"], {"domain": "", "epsilon": 0.01}),
    "norm of a sum": ("SkipLayerNormalization", ["x", "z", "row", "row", "row"], {"epsilon": 0.01}),
    "norm of a sum of two": ("SkipLayerNormalization", ["x", "z", "row", "row"], {}),
    "norm of a sum, not centred": ("SkipSimplifiedLayerNormalization", ["x", "z", "row", "row"], {"epsilon": 0.01}),
}
HALF = ["Clip", "Gelu", "BiasGelu", "FastGelu", "QuickGelu", *(case for case in CASES if "norm" in case)]


@pytest.mark.parametrize("opset", [9, 13, 18])
@pytest.mark.parametrize("case", CASES)
def test_they_compute_the_same_in_operators_of_onnx(case: str, opset: int) -> None:
    op, inputs, how = CASES[case]
    proto = model_of(op, inputs, opset=opset, **how)
    before = proto.SerializeToString(deterministic=True)
    model = Model.from_proto(proto)
    assert proto.SerializeToString(deterministic=True) == before
    assert (model.nodes[0].name, {node.domain for node in model.nodes} <= {None, ""}) == ("fused", True)
    onnx.checker.check_model(model.to_proto(), full_check=True)
    x = {"x": GENERATOR.standard_normal(shape_of(op)).astype(np.float32)}
    expected, found = (session(each).run(None, x) for each in (before, model.to_bytes()))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * np.abs(other).max())


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("case", HALF)
def test_they_compute_the_same_of_halves_whose_squares_are_none(case: str, opset: int) -> None:
    op, inputs, how = CASES[case]
    proto = model_of(op, inputs, opset=opset, kind=TensorProto.FLOAT16, **how)
    model = Model.from_proto(proto)
    assert {node.domain for node in model.nodes} <= {None, ""}
    x = {"x": (GENERATOR.standard_normal(shape_of(op)) * 300).astype(np.float16)}
    expected, found = (session(each).run(None, x) for each in (proto.SerializeToString(), model.to_bytes()))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype == np.float16
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-3 * np.abs(other).max())


def test_a_type_is_told_by_what_stands_before() -> None:
    proto = model_of("Gelu", ["x"], kind=TensorProto.FLOAT16)
    gelu = proto.graph.node[0]
    gelu.input[0] = "wide"
    proto.graph.node.append(helper.make_node("Softmax", ["cast"], ["wide"]))  # behind what reads it
    proto.graph.node.append(helper.make_node("Cast", ["x"], ["cast"], to=TensorProto.FLOAT))
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    proto.graph.value_info.append(helper.make_tensor_value_info("wide", TensorProto.FLOAT16, None))  # stale
    constants = Model.from_proto(proto).constants().values()
    assert [(t.values.dtype, t.values.size) for t in constants] == [(np.float32, 1)] * 3


@pytest.mark.parametrize(
    "proto",
    [
        model_of("FusedConv", ["x", "w", "b"], activation="ScaledTanh", activation_params=[1.0, 2.0], **PADS),
        model_of("FusedConv", ["x", "w", "b"], activation="LeakyRelu", **PADS),
        model_of("FusedGemm", ["x", "g"], activation="Relu", opset=9),
        model_of("Gelu", ["x"], kind=TensorProto.INT32),
        model_of("BiasSplitGelu", ["x", "row"]),
    ],
    ids=["unknown activation", "no parameter", "no bias before opset 11", "no known type", "not known"],
)
def test_what_cannot_be_written_stays(proto: onnx.ModelProto) -> None:
    model = Model.from_proto(proto)
    assert [(n.op, n.domain) for n in model.nodes] == [(proto.graph.node[0].op_type, "com.microsoft")]


@pytest.mark.parametrize("op", ["LayerNormalization", "SimplifiedLayerNormalization"])
def test_a_normalization_that_passes_for_one_of_onnx_and_cannot_be_written_is_refused(op: str) -> None:
    with pytest.raises(ModelError, match=f"'fused' .{op}. is no operator of ONNX's opset 13 .* before onnxruntime"):
        Model.from_proto(model_of(op, ["x", "row"], domain="", axis=1))


@pytest.mark.parametrize("opset", [18, 20])
def test_a_group_normalization_with_a_scale_for_each_group_computes_the_same_and_is_pruned(opset: int) -> None:
    """onnx refuses the operator in these opsets, onnxruntime runs it."""
    proto = conv_net()
    proto.opset_import[0].version = opset
    conv, relu = proto.graph.node[:2]
    groups = {name: GENERATOR.uniform(0.5, 2, 4).astype(np.float32) for name in ("scale", "shift")}
    proto.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in groups.items())
    inputs = [conv.output[0], "scale", "shift"]
    proto.graph.node.insert(1, helper.make_node("GroupNormalization", inputs, ["n"], "norm", num_groups=4, epsilon=0.1))
    relu = proto.graph.node[2]
    relu.input[0] = "n"
    model = Model.from_proto(proto)
    expected, found = (
        session(each).run(None, {"x": samples()})[0] for each in (proto.SerializeToString(), model.to_bytes())
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    each = FilterPruning(PruningConfig(ratio=0.5))
    result = each.apply(model, each.plan(model, PassContext()), PassContext()).model
    assert result.constants()[conv.input[1]].values.shape[0] == 8


def test_filters_are_pruned_where_every_layer_is_fused() -> None:
    proto = conv_net()
    for place in (2, 0):
        layer, relu = proto.graph.node[place], proto.graph.node[place + 1]
        layer.op_type, layer.domain = "FusedConv", "com.microsoft"
        layer.attribute.append(helper.make_attribute("activation", "Relu"))
        layer.output[0] = relu.output[0]
        del proto.graph.node[place + 1]
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model, each = Model.from_proto(proto), FilterPruning(PruningConfig(ratio=0.5))
    result = each.apply(model, each.plan(model, PassContext()), PassContext()).model
    widths = [t.values.shape[0] for t in result.constants().values() if t.values.ndim == 4]
    assert widths == [8, 8]
    assert session(result.to_bytes()).run(None, {"x": samples()})[0].shape == (len(samples()), 4)


def test_a_blocked_layout_that_was_saved_is_told() -> None:
    proto = conv_net()
    proto.opset_import.append(helper.make_opsetid("com.microsoft.nchwc", 1))
    del proto.graph.node[1:]
    proto.graph.node.extend(
        helper.make_node(op, [read], [made], op, domain="com.microsoft.nchwc")
        for op, read, made in (("ReorderInput", "x", "blocked"), ("ReorderOutput", "blocked", "plain"))
    )
    proto.graph.node[0].input[0], proto.graph.node[0].output[0] = "plain", "y"
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 16, 8, 8]))
    result = onnxcompress.compress(proto, prune=0.5, latency=False, verify=False)
    told = "ReorderInput, ReorderOutput tell of a model that onnxruntime saved in its own blocked layout"
    assert any(told in warning for warning in result.report.warnings)
