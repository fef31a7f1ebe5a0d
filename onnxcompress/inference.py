"""Shapes and element types of every tensor, by onnx's inference, strictly and as far as they can be known.

onnx's inference is helped where it is known to fall short, on a private copy that is only looked at:

- operators that it knows nothing of have a stand-in of the same shapes;
- constants that are listed as graph inputs count as constants;
- values of shape arithmetic (Shape, Gather, Concat, …) are propagated from opset 15 on only, so that older models are
  spelled in opset 15 first (lists that were attributes are inputs there);
- propagation has bugs of its own (onnx 1.23 makes an empty vector of a Slice by a computed start): where only it
  finds a contradiction, there is none;
- a length that a Reshape leaves open is often given by the number of its elements (`lengths`): what is found to be a
  number is told to a further inference, which goes on behind it;
- what a file declares of its graph outputs may be wrong, which no runtime minds: what is inferred counts, and what is
  declared of an input or stored of a constant that is an output, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx

from onnxcompress.declarations import declared_shape
from onnxcompress.errors import ModelError
from onnxcompress.lengths import Dim as Dim
from onnxcompress.lengths import Shape as Shape
from onnxcompress.lengths import open_lengths
from onnxcompress.operators import is_standard
from onnxcompress.subgraphs import with_sub_graphs

_MOST_ROUNDS = 8
_FIRST_OPSET_WITH_SHAPE_VALUES = 15

_STAND_INS = {
    "GroupNormalization": ("Identity", 1),
    "MeanVarianceNormalization": ("Identity", 1),
    "GreaterOrEqual": ("Greater", 2),
    "LessOrEqual": ("Less", 2),
}
"""Operators that onnx infers nothing of (some only in some opsets), and one of the same shapes, with its inputs."""

_ML = "ai.onnx.ml"
_ML_STAND_INS = {"Scaler": "Cast", "Normalizer": "Cast", "Imputer": "Identity"}
"""Operators of classic machine learning that change neither shape nor, but for the first two (float32), type."""


def infer(proto: onnx.ModelProto) -> tuple[dict[str, Shape], dict[str, int]]:
    """Return {tensor name: shape} and {tensor name: onnx element type}; `proto` is used up.

    Raises:
        ModelError: shapes contradict each other.
    """
    for graph in with_sub_graphs(proto.graph):
        _stand_in(graph)
    _settle_given_outputs(proto.graph)
    _drop_listed_constants(proto.graph)
    shapes, dtypes = _tables(_inferred(proto))
    for _ in range(_MOST_ROUNDS):
        found = open_lengths(proto.graph, shapes)
        if not _tell(proto.graph, found, shapes, dtypes):
            break
        try:
            shapes, dtypes = _tables(_inferred(proto))
        except ModelError:  # of empty tensors nothing follows from the number of elements
            return shapes, dtypes
    else:
        return shapes, dtypes
    return {name: tuple(_meant(dim, found) for dim in shape) for name, shape in shapes.items()}, dtypes


def _tables(inferred: onnx.ModelProto) -> tuple[dict[str, Shape], dict[str, int]]:
    shapes: dict[str, Shape] = {}
    dtypes: dict[str, int] = {}
    for info in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        if info.type.HasField("tensor_type"):
            dtypes[info.name] = info.type.tensor_type.elem_type
        shape = declared_shape(info)
        if shape is not None:
            shapes[info.name] = shape
    return shapes, dtypes


def _meant(dim: Dim, found: Mapping[str, Dim]) -> Dim:
    return found.get(dim, dim) if isinstance(dim, str) else dim


def _tell(
    graph: onnx.GraphProto, found: Mapping[str, Dim], shapes: Mapping[str, Shape], dtypes: Mapping[str, int]
) -> bool:
    """Declare the tensors with lengths that were found to be numbers; return whether there are any."""
    numbers = {symbol for symbol, dim in found.items() if isinstance(dim, int)}
    outputs = {info.name for info in graph.output}
    told = [name for name, shape in shapes.items() if name not in outputs and not numbers.isdisjoint(shape)]
    for name in told:
        known = [dim if isinstance(dim, int) else None for dim in (_meant(dim, found) for dim in shapes[name])]
        graph.value_info.append(onnx.helper.make_tensor_value_info(name, dtypes[name], known))
    return bool(told)


def _inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Infer strictly; shapes that are declared of graph outputs give way where they contradict the rest."""
    try:
        return _strictly_inferred(proto)
    except ModelError as contradiction:
        for info in proto.graph.output:
            if info.type.HasField("tensor_type"):
                info.type.tensor_type.ClearField("shape")
        try:
            return _strictly_inferred(proto)
        except ModelError:
            raise contradiction from None


def _strictly_inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Infer by the first of three ways that finds no contradiction: modern spelling, as it is, without propagation."""
    infer_shapes, failure = onnx.shape_inference.infer_shapes, onnx.shape_inference.InferenceError
    opset = next((o for o in proto.opset_import if is_standard(o)), None)
    if opset is not None and opset.version < _FIRST_OPSET_WITH_SHAPE_VALUES:
        modern = onnx.ModelProto()
        modern.CopyFrom(proto)
        for graph in with_sub_graphs(modern.graph):
            _modernise(graph)
        next(o for o in modern.opset_import if o.domain == opset.domain).version = _FIRST_OPSET_WITH_SHAPE_VALUES
        try:
            return infer_shapes(modern, strict_mode=True, data_prop=True)
        except failure:
            pass
    try:
        try:
            return infer_shapes(proto, strict_mode=True, data_prop=True)
        except failure:
            return infer_shapes(proto, strict_mode=True)
    except Exception as error:
        raise ModelError(f"its shapes contradict each other: {' '.join(str(error).split())[:300]}") from error


def _stand_in(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        if is_standard(node) and node.op_type in _STAND_INS:
            node.op_type, inputs = _STAND_INS[node.op_type]
            del node.input[inputs:], node.attribute[:]
        elif node.domain == _ML and node.op_type in _ML_STAND_INS:
            node.op_type, node.domain = _ML_STAND_INS[node.op_type], ""
            del node.attribute[:]
            if node.op_type == "Cast":
                node.attribute.append(onnx.helper.make_attribute("to", onnx.TensorProto.FLOAT))
        elif node.domain == _ML:
            _declare_types(graph, node)


def _declare_types(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    """Declare what a node of an operator without inference of its own makes, where that is of one type always."""
    declared = {info.name for info in (*graph.value_info, *graph.output)}
    try:
        schema = onnx.defs.get_schema(node.op_type, node.domain)
    except onnx.defs.SchemaError:
        return
    for name, output in zip(node.output, schema.outputs, strict=False):
        if (
            output.type_str == "tensor(float)"
            and name not in declared
            and not schema.has_type_and_shape_inference_function
        ):
            graph.value_info.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))


def _settle_given_outputs(graph: onnx.GraphProto) -> None:
    """Declare outputs that are inputs or constants as such: onnx would take what the output declares for both."""
    given = {info.name: info.type for info in graph.input}
    for tensor in graph.initializer:
        given[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
    for info in graph.output:
        if info.name in given:
            info.type.CopyFrom(given[info.name])


def _drop_listed_constants(graph: onnx.GraphProto) -> None:
    constants = {tensor.name for tensor in graph.initializer}
    free_inputs = [info for info in graph.input if info.name not in constants]
    del graph.input[:]
    graph.input.extend(free_inputs)


def _modernise(graph: onnx.GraphProto) -> None:
    """Spell the nodes of opset 7 to 14 in opset 15, as far as shapes depend on it."""
    empty = {tensor.name for tensor in graph.initializer if 0 in tensor.dims}
    for number, node in enumerate(list(graph.node)):
        if not is_standard(node) or node.op_type not in _SPELLINGS:
            continue
        listed = _SPELLINGS[node.op_type](node, empty)
        for attribute, position in listed.items():
            values = next((a for a in node.attribute if a.name == attribute), None)
            if values is None:
                continue
            name = f"{attribute} of node {number}"
            is_float = values.type in (onnx.AttributeProto.FLOATS, onnx.AttributeProto.FLOAT)
            numbers = list(values.floats or values.ints) or [values.f if is_float else values.i]
            kind = onnx.TensorProto.FLOAT if is_float else onnx.TensorProto.INT64
            graph.initializer.append(onnx.helper.make_tensor(name, kind, [len(numbers)], numbers))
            while len(node.input) <= position:
                node.input.append("")
            node.input[position] = name
        for attribute in set(listed) & {a.name for a in node.attribute}:
            node.attribute.remove(next(a for a in node.attribute if a.name == attribute))


def _moved(**positions: int) -> Callable[[onnx.NodeProto, set[str]], dict[str, int]]:
    """Return a spelling: attributes that became the inputs at these positions."""
    return lambda node, empty: positions


def _drop_attributes(node: onnx.NodeProto, empty: set[str]) -> dict[str, int]:
    del node.attribute[:]
    return {}


def _batch_normalization(node: onnx.NodeProto, empty: set[str]) -> dict[str, int]:
    del node.attribute[:], node.output[1:]
    return {}


def _scatter(node: onnx.NodeProto, empty: set[str]) -> dict[str, int]:
    node.op_type = "ScatterElements"
    return {}


def _resize(node: onnx.NodeProto, empty: set[str]) -> dict[str, int]:
    """Upsample (input, scales) and Resize of opset 10 become (input, roi, scales); what is left out is empty."""
    scales_at = 2 if len(node.input) > 2 else 1
    if node.op_type == "Upsample" or scales_at == 1:
        scales = node.input[1] if len(node.input) > 1 else ""
        del node.input[1:]
        node.input.extend(["", scales])
    node.op_type = "Resize"
    for position in range(1, len(node.input)):
        if node.input[position] in empty:
            node.input[position] = ""
    return {"scales": 2}


_SPELLINGS: dict[str, Callable[[onnx.NodeProto, set[str]], dict[str, int]]] = {
    "BatchNormalization": _batch_normalization,
    "Clip": _drop_attributes,
    "Dropout": _drop_attributes,
    "Pad": _moved(pads=1, value=2),
    "ReduceSum": _moved(axes=1),
    "Resize": _resize,
    "Scatter": _scatter,
    "Slice": _moved(starts=1, ends=2, axes=3),
    "Split": _moved(split=1),
    "Squeeze": _moved(axes=1),
    "TopK": _moved(k=1),
    "Unsqueeze": _moved(axes=1),
    "Upsample": _resize,
}
