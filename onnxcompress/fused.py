"""Operators of onnxruntime's own, and one that ONNX took back, in operators of ONNX that the model's opset knows.

A model has onnxruntime's where it was saved after its optimisation:

    FusedConv(x, w, b, z)   =   activation(Conv(x, w, b) + z)          FusedGemm = activation(Gemm)
    Gelu(x)                 =   x (1 + erf(x / sqrt 2)) / 2            BiasGelu(x, b) = Gelu(x + b)
    QuickGelu(x)            =   x sigmoid(alpha x)
    FastGelu(x, b)          =   y (1 + tanh(sqrt(2 / pi) (y + 0.044715 y^3))) / 2, y = x + b
    SimplifiedLayerNormalization(x, s) = s x / sqrt(mean(x^2) + e), which it takes for one of ONNX
    LayerNormalization(x, s, b)        = s y / sqrt(mean(y^2) + e) + b, y = x - mean(x), before opset 17
    SkipLayerNormalization(x, z, s, b, c) = LayerNormalization(x + z + c, s, b); the sum may be an output, too

GroupNormalization of opset 18 to 20 has a scale for each group, InstanceNormalization of the groups as channels; onnx
refuses it since it has one for each channel, onnxruntime runs it.

onnx knows neither their shapes nor what they do with channels; onnxruntime fuses them again as it loads the model. What
needs a constant is left alone where nothing tells the type that it computes in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
import onnx

from onnxcompress.element_types import element_types
from onnxcompress.errors import ModelError
from onnxcompress.operators import is_standard
from onnxcompress.serialization import tensor_dtype

_DOMAIN = "com.microsoft"
_BOUNDS_ARE_INPUTS_SINCE = 11
_BIASES_ARE_OPTIONAL_SINCE = 11
_NORMALIZES_LAYERS_SINCE = 17
_AXES_ARE_AN_INPUT_SINCE = 18
_GROUP_SCALES_ARE_PER_CHANNEL_SINCE = 21
_NARROW = frozenset((onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16))
_FLOATS = _NARROW | {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE}
_SUM_IS_OUTPUT = 3
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
    """Return the model with these operators written as what they are fused of; `proto` is not changed.

    Raises:
        ModelError: one stands as an operator of ONNX, which it is not, and cannot be written.
    """
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
    of_onnx = opset >= _OF_ONNX_SINCE.get((node.domain, node.op_type), opset + 1)
    written = {0, _SUM_IS_OUTPUT} if node.op_type.startswith("Skip") else {0}
    further = any(name for place, name in enumerate(node.output) if place not in written)
    return (node.domain, node.op_type) in _PARTS and not of_onnx and not further


class _Writer:
    """Writes nodes of one model, whose constants it takes and whose names it keeps clear of."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.opset = _opset(model)
        self._graph = graph
        self._taken = {each.name for each in (*graph.input, *graph.initializer)}
        self._taken.update(name for node in graph.node for name in (*node.input, *node.output))
        self._kinds = element_types(model)

    def kind(self, node: onnx.NodeProto) -> int | None:
        """Return the type that a node computes in, by the first of its inputs whose type is known."""
        return next((kind for name in node.input if (kind := self._kinds.get(name)) in _FLOATS), None)

    def written(self, node: onnx.NodeProto) -> Sequence[onnx.NodeProto]:
        """Return the nodes that one stands for, itself where nothing is known of it."""
        known = _is_fused(node, self.opset)
        parts = _PARTS[node.domain, node.op_type](self, node) if known else None
        if parts is None and known and is_standard(node):
            raise ModelError(
                f"node '{node.name or node.output[0]}' ({node.op_type}) is no operator of ONNX's opset {self.opset} "
                f"but one of onnxruntime's that cannot be read (from another axis than the last, or of an unknown "
                f"type): give the model as it was before onnxruntime optimised it"
            )
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

    def constant(self, hint: str, values: Any, kind: int) -> str:
        """Return the name of a constant of an element type."""
        name = self.name(hint)
        self._graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values, tensor_dtype(kind)), name))
        return name

    def activation(
        self, op: str, values: Sequence[float], read: str, made: str, kind: int | None
    ) -> onnx.NodeProto | None:
        """Return the node of an activation of numbers of a type; None of one that cannot be written."""
        names = _PARAMETERS.get(op)
        if names is None or len(values) < len(names):
            return None
        given = dict(zip(names, values, strict=False))
        if op != "Clip" or self.opset < _BOUNDS_ARE_INPUTS_SINCE:
            node = onnx.helper.make_node(op, [read], [made])
            node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in given.items())
            return node
        if kind is None:
            return None
        bounds = [self.constant(f"{made}_{name}", value, kind) for name, value in given.items()]
        return onnx.helper.make_node(op, [read, *bounds], [made])


class _Parts:
    """The nodes that one fused node stands for. Of 16-bit numbers they compute in float32, as onnxruntime does."""

    @classmethod
    def of(cls, writer: _Writer, node: onnx.NodeProto) -> _Parts | None:
        """Return no nodes yet; None where no input tells the type that their constants are to have."""
        kind = writer.kind(node)
        return None if kind is None else cls(writer, node.output[0], kind)

    def __init__(self, writer: _Writer, out: str, kind: int) -> None:
        self._writer, self._out, self._kind = writer, out, kind
        self._nodes: list[onnx.NodeProto] = []
        self._is_narrow = kind in _NARROW

    def add(self, op: str, *inputs: str, made: str = "", **attributes: Any) -> str:
        """Add a node; return what it makes."""
        made = made or self._writer.name(f"{self._out}_{op}")
        self._nodes.append(onnx.helper.make_node(op, inputs, [made], **attributes))
        return made

    def number(self, value: float) -> str:
        """Return the name of a constant of the type that is computed in."""
        kind = onnx.TensorProto.FLOAT if self._is_narrow else self._kind
        return self._writer.constant(f"{self._out}_number", float(value), kind)

    def sum(self, names: Iterable[str]) -> str:
        """Return the sum of tensors of the fused node, those left out apart, in the type that is computed in."""
        first, *others = (self._wide(name) for name in names if name)
        for other in others:
            first = self.add("Add", first, other)
        return first

    def normalized(self, read: str, scale: str, shift: str, epsilon: float, is_centred: bool) -> str:
        """Normalize along the last axis, as LayerNormalization does, or without taking the mean off."""
        scale, shift = self._wide(scale), shift and self._wide(shift)
        if is_centred and self._writer.opset >= _NORMALIZES_LAYERS_SINCE:
            given = [read, scale, shift] if shift else [read, scale]
            return self.add("LayerNormalization", *given, axis=-1, epsilon=epsilon)
        if is_centred:
            read = self.add("Sub", read, self._mean(read))
        variance = self.add("Add", self._mean(self.add("Mul", read, read)), self.number(epsilon))
        scaled = self.add("Mul", self.add("Div", read, self.add("Sqrt", variance)), scale)
        return self.add("Add", scaled, shift) if shift else scaled

    def also(self, name: str, output: str) -> str:
        """Make what a node just made a further output of the fused node; return its name from now on."""
        if self._is_narrow:
            self.add("Cast", name, made=output, to=self._kind)
            return name
        self._nodes[-1].output[0] = output
        return output

    def ended(self, name: str) -> list[onnx.NodeProto]:
        """Return the nodes; what the last one made is what the fused node makes."""
        self.also(name, self._out)
        return self._nodes

    def _wide(self, name: str) -> str:
        return self.add("Cast", name, to=onnx.TensorProto.FLOAT) if self._is_narrow else name

    def _mean(self, of: str) -> str:
        if self._writer.opset >= _AXES_ARE_AN_INPUT_SINCE:
            return self.add("ReduceMean", of, self._writer.constant(f"{self._out}_axes", [-1], onnx.TensorProto.INT64))
        return self.add("ReduceMean", of, axes=[-1])


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
    last = writer.activation(activation, values, made, node.output[0], writer.kind(node))
    return None if last is None else [*parts, last]


def _gelu(writer: _Writer, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    parts = _Parts.of(writer, node)
    if parts is None:
        return None
    read = parts.sum(node.input[:2])
    raised = parts.add("Add", parts.add("Erf", parts.add("Div", read, parts.number(math.sqrt(2)))), parts.number(1))
    return parts.ended(parts.add("Mul", parts.add("Mul", read, raised), parts.number(0.5)))


def _fast_gelu(writer: _Writer, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    parts = _Parts.of(writer, node)
    if parts is None:
        return None
    read = parts.sum(node.input[:2])
    cube = parts.add("Mul", parts.add("Mul", parts.add("Mul", read, read), read), parts.number(0.044715))
    inner = parts.add("Mul", parts.add("Add", read, cube), parts.number(math.sqrt(2 / math.pi)))
    raised = parts.add("Add", parts.add("Tanh", inner), parts.number(1))
    return parts.ended(parts.add("Mul", parts.add("Mul", read, raised), parts.number(0.5)))


def _quick_gelu(writer: _Writer, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    given = _attributes(node)
    alpha = given["alpha"].f if "alpha" in given else 1.702
    parts = _Parts.of(writer, node)
    if parts is None:
        return None
    read = parts.sum(node.input[:1])
    scaled = read if alpha == 1 else parts.add("Mul", read, parts.number(alpha))
    return parts.ended(parts.add("Mul", read, parts.add("Sigmoid", scaled)))


def _normalization(writer: _Writer, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    given = _attributes(node)
    parts = _Parts.of(writer, node)
    if parts is None or ("axis" in given and given["axis"].i != -1):
        return None
    shift = node.input[2] if len(node.input) > 2 else ""
    epsilon = given["epsilon"].f if "epsilon" in given else 1e-5
    read = parts.sum(node.input[:1])
    return parts.ended(parts.normalized(read, node.input[1], shift, epsilon, node.op_type == "LayerNormalization"))


def _skip_normalization(writer: _Writer, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    given = _attributes(node)
    parts = _Parts.of(writer, node)
    if parts is None:
        return None
    is_centred = node.op_type == "SkipLayerNormalization"
    shift, bias = ([*node.input[3:], "", ""] if is_centred else ["", *node.input[3:], ""])[:2]
    epsilon = given["epsilon"].f if "epsilon" in given else 1e-12
    total = parts.sum([*node.input[:2], bias])
    if len(node.output) > _SUM_IS_OUTPUT and node.output[_SUM_IS_OUTPUT]:
        total = parts.also(total, node.output[_SUM_IS_OUTPUT])
    return parts.ended(parts.normalized(total, node.input[2], shift, epsilon, is_centred))


def _group_normalization(writer: _Writer, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    given, (read, scale, shift), out = _attributes(node), node.input[:3], node.output[0]
    shape, grouped, normalized = (writer.name(f"{out}_{part}") for part in ("shape", "grouped", "normalized"))
    groups = writer.constant(f"{out}_groups", [0, given["num_groups"].i, -1], onnx.TensorProto.INT64)
    epsilon = given["epsilon"].f if "epsilon" in given else 1e-5
    return [
        onnx.helper.make_node("Shape", [read], [shape]),
        onnx.helper.make_node("Reshape", [read, groups], [grouped]),
        onnx.helper.make_node("InstanceNormalization", [grouped, scale, shift], [normalized], epsilon=epsilon),
        onnx.helper.make_node("Reshape", [normalized, shape], [out]),
    ]


_OF_ONNX_SINCE = {
    ("", "LayerNormalization"): _NORMALIZES_LAYERS_SINCE,
    ("", "GroupNormalization"): _GROUP_SCALES_ARE_PER_CHANNEL_SINCE,
}
_PARTS: Mapping[tuple[str, str], Callable[[_Writer, onnx.NodeProto], list[onnx.NodeProto] | None]] = {
    (_DOMAIN, "BiasGelu"): _gelu,
    (_DOMAIN, "FastGelu"): _fast_gelu,
    (_DOMAIN, "FusedConv"): _fused_conv,
    (_DOMAIN, "FusedGemm"): _fused_gemm,
    (_DOMAIN, "Gelu"): _gelu,
    (_DOMAIN, "QuickGelu"): _quick_gelu,
    (_DOMAIN, "SkipLayerNormalization"): _skip_normalization,
    (_DOMAIN, "SkipSimplifiedLayerNormalization"): _skip_normalization,
    ("", "GroupNormalization"): _group_normalization,
    ("", "LayerNormalization"): _normalization,
    ("", "SimplifiedLayerNormalization"): _normalization,
}
