"""Operators that onnxruntime fuses, as a model has them that was saved after its optimisation, in those of ONNX.

    FusedConv(x, w, b, z)   =   activation(Conv(x, w, b) + z)          FusedGemm = activation(Gemm)
    Gelu(x)                 =   x (1 + erf(x / sqrt 2)) / 2            BiasGelu(x, b) = Gelu(x + b)
    QuickGelu(x)            =   x sigmoid(alpha x)
    SimplifiedLayerNormalization(x, s) = s x / sqrt(mean(x^2) + e), which it takes for one of ONNX
    LayerNormalization(x, s, b)        = s y / sqrt(mean(y^2) + e) + b, y = x - mean(x), before opset 17

onnx knows neither their shapes nor what they do with channels; onnxruntime fuses them again as it loads the model. What
needs a constant is left alone where the model computes in other types than float32, as nothing tells which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
import onnx

from onnxcompress.operators import is_standard

_DOMAIN = "com.microsoft"
_BOUNDS_ARE_INPUTS_SINCE = 11
_BIASES_ARE_OPTIONAL_SINCE = 11
_NORMALIZES_LAYERS_SINCE = 17
_AXES_ARE_AN_INPUT_SINCE = 18
_FLOATS = frozenset(
    getattr(onnx.TensorProto, kind) for kind in ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")
)  # between which a constant would have to choose
_PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "Softplus": (),
    "Softsign": (),
    "Elu": ("alpha",),
    "LeakyRelu": ("alpha",),
    "ThresholdedRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "Clip": ("min", "max"),
}
"""Activations that may follow a layer, and their attributes in the order in which a FusedConv lists them."""


def unfused(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with these operators written as what they are fused of; `proto` is not changed."""
    opset = _opset(proto)
    if not any(_is_fused(node, opset) for node in proto.graph.node):
        return proto
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    writer = _Writer(copied)
    nodes = [each for node in proto.graph.node for each in writer.written(node)]
    del copied.graph.node[:]
    copied.graph.node.extend(nodes)
    return copied


def _opset(proto: onnx.ModelProto) -> int:
    return max((each.version for each in proto.opset_import if is_standard(each)), default=0)


def _is_fused(node: onnx.NodeProto, opset: int) -> bool:
    """Whether a node is an operator that `_PARTS` knows, and none of ONNX in this opset."""
    of_onnx = (node.domain, node.op_type) == ("", "LayerNormalization") and opset >= _NORMALIZES_LAYERS_SINCE
    return (node.domain, node.op_type) in _PARTS and not of_onnx and not any(node.output[1:])


class _Writer:
    """Writes nodes of one model, whose constants it takes and whose names it keeps clear of."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.opset = _opset(model)
        self._graph = graph
        self._taken = {each.name for each in (*graph.input, *graph.initializer)}
        self._taken.update(name for node in graph.node for name in (*node.input, *node.output))
        kinds = {info.type.tensor_type.elem_type for info in graph.input} | {t.data_type for t in graph.initializer}
        kinds.update(a.i for node in graph.node for a in node.attribute if (node.op_type, a.name) == ("Cast", "to"))
        self.is_float32 = kinds & _FLOATS == {onnx.TensorProto.FLOAT}

    def written(self, node: onnx.NodeProto) -> Sequence[onnx.NodeProto]:
        """Return the nodes that one stands for, itself where nothing is known of it."""
        known = _is_fused(node, self.opset)
        parts = _PARTS[node.domain, node.op_type](self, node) if known else None
        if parts is None:
            return [node]
        for place, part in enumerate(parts if node.name else []):
            part.name = f"{node.name}/{part.op_type}" if place else node.name
        return parts

    def name(self, hint: str) -> str:
        """Return a name of no other tensor."""
        name = next(each for n in count() if (each := f"{hint}_{n}") not in self._taken)
        self._taken.add(name)
        return name

    def constant(self, hint: str, values: Any) -> str:
        """Return the name of a constant; numbers that are not whole are of float32."""
        name, array = self.name(hint), np.asarray(values)
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        self._graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return name

    def activation(self, op: str, values: Sequence[float], read: str, made: str) -> onnx.NodeProto | None:
        """Return the node of an activation; None of one that cannot be written."""
        names = _PARAMETERS.get(op)
        if names is None or len(values) < len(names):
            return None
        given = dict(zip(names, values, strict=False))
        if op != "Clip" or self.opset < _BOUNDS_ARE_INPUTS_SINCE:
            node = onnx.helper.make_node(op, [read], [made])
            node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in given.items())
            return node
        if not self.is_float32:
            return None
        return onnx.helper.make_node(op, [read, *(self.constant(f"{made}_{n}", v) for n, v in given.items())], [made])


def _attributes(node: onnx.NodeProto) -> dict[str, onnx.AttributeProto]:
    return {attribute.name: attribute for attribute in node.attribute}


def _fused_conv(writer: _Writer, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    given = _attributes(node)
    values = list(given["activation_params"].floats) if "activation_params" in given else []
    summand = node.input[3] if len(node.input) > 3 else ""
    return _layer(writer, node, "Conv", values, node.input[:3], summand)


def _fused_gemm(writer: _Writer, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    given = _attributes(node)
    if writer.opset < _BIASES_ARE_OPTIONAL_SINCE and not "".join(node.input[2:3]):
        return None
    op = given["activation"].s.decode(errors="replace") if "activation" in given else ""
    names = [f"activation_{name}" for name in _PARAMETERS.get(op, ())]
    return _layer(writer, node, "Gemm", [given[name].f for name in names if name in given], node.input, "")


def _layer(
    writer: _Writer, node: onnx.NodeProto, op: str, values: Sequence[float], inputs: Sequence[str], summand: str
) -> list[onnx.NodeProto] | None:
    given = _attributes(node)
    made = writer.name(f"{node.output[0]}_linear")
    layer = onnx.helper.make_node(op, inputs, [made])
    layer.attribute.extend(each for name, each in given.items() if not name.startswith("activation"))
    parts = [layer]
    if summand:
        total = writer.name(f"{node.output[0]}_sum")
        parts.append(onnx.helper.make_node("Add", [made, summand], [total]))
        made = total
    activation = given["activation"].s.decode(errors="replace") if "activation" in given else ""
    if not activation:
        parts[-1].output[0] = node.output[0]
        return parts
    last = writer.activation(activation, values, made, node.output[0])
    return None if last is None else [*parts, last]


def _gelu(writer: _Writer, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    if not writer.is_float32:
        return None
    read, out = node.input[0], node.output[0]
    parts = []
    if len(node.input) > 1 and node.input[1]:
        shifted = writer.name(f"{out}_shifted")
        parts.append(onnx.helper.make_node("Add", [read, node.input[1]], [shifted]))
        read = shifted
    scaled, erf, raised, product = (writer.name(f"{out}_{part}") for part in ("scaled", "erf", "raised", "product"))
    root, one, half = (writer.constant(f"{out}_number", value) for value in (math.sqrt(2), 1.0, 0.5))
    return [
        *parts,
        onnx.helper.make_node("Div", [read, root], [scaled]),
        onnx.helper.make_node("Erf", [scaled], [erf]),
        onnx.helper.make_node("Add", [erf, one], [raised]),
        onnx.helper.make_node("Mul", [read, raised], [product]),
        onnx.helper.make_node("Mul", [product, half], [out]),
    ]


def _quick_gelu(writer: _Writer, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    given = _attributes(node)
    alpha = given["alpha"].f if "alpha" in given else 1.702
    read, out = node.input[0], node.output[0]
    parts = []
    if alpha != 1:
        if not writer.is_float32:
            return None
        scaled = writer.name(f"{out}_scaled")
        parts.append(onnx.helper.make_node("Mul", [read, writer.constant(f"{out}_alpha", alpha)], [scaled]))
    gate = writer.name(f"{out}_gate")
    sigmoid = onnx.helper.make_node("Sigmoid", [parts[0].output[0] if parts else read], [gate])
    return [*parts, sigmoid, onnx.helper.make_node("Mul", [read, gate], [out])]


def _normalization(writer: _Writer, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    given, is_centred = _attributes(node), node.op_type == "LayerNormalization"
    is_last = "axis" not in given or given["axis"].i == -1
    if not writer.is_float32 or not is_last:
        return None
    read, out = node.input[0], node.output[0]
    parts: list[onnx.NodeProto] = []

    def add(op: str, inputs: list[str], made: str = "") -> str:
        parts.append(onnx.helper.make_node(op, inputs, [made or writer.name(f"{out}_{op}")]))
        return str(parts[-1].output[0])

    def mean(of: str) -> str:
        if writer.opset >= _AXES_ARE_AN_INPUT_SINCE:
            return add("ReduceMean", [of, writer.constant(f"{out}_axes", np.array([-1]))])
        made = add("ReduceMean", [of])
        parts[-1].attribute.append(onnx.helper.make_attribute("axes", [-1]))
        return made

    if is_centred:
        read = add("Sub", [read, mean(read)])
    epsilon = writer.constant(f"{out}_epsilon", given["epsilon"].f if "epsilon" in given else 1e-5)
    deviation = add("Sqrt", [add("Add", [mean(add("Mul", [read, read])), epsilon])])
    has_shift = len(node.input) > 2 and bool(node.input[2])
    scaled = add("Mul", [add("Div", [read, deviation]), node.input[1]], "" if has_shift else out)
    if has_shift:
        add("Add", [scaled, node.input[2]], out)
    return parts


_PARTS: Mapping[tuple[str, str], Callable[[_Writer, onnx.NodeProto], list[onnx.NodeProto] | None]] = {
    (_DOMAIN, "BiasGelu"): _gelu,
    (_DOMAIN, "FusedConv"): _fused_conv,
    (_DOMAIN, "FusedGemm"): _fused_gemm,
    (_DOMAIN, "Gelu"): _gelu,
    (_DOMAIN, "QuickGelu"): _quick_gelu,
    ("", "LayerNormalization"): _normalization,
    ("", "SimplifiedLayerNormalization"): _normalization,
}
