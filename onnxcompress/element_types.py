"""Element types of tensors by what operators promise of their outputs, for models that no inference understands yet."""

from __future__ import annotations

import onnx

from onnxcompress.operators import is_standard

_OF_CONSTANT = {
    "value_float": onnx.TensorProto.FLOAT,
    "value_floats": onnx.TensorProto.FLOAT,
    "value_int": onnx.TensorProto.INT64,
    "value_ints": onnx.TensorProto.INT64,
}
_NAMED = {f"tensor({name.lower()})": kind for name, kind in onnx.TensorProto.DataType.items()}


def element_types(proto: onnx.ModelProto) -> dict[str, int]:
    """Return {tensor name: onnx element type}, as far as inputs, weights and operators of ONNX tell.

    What the file declares of other tensors does not count: tools that change types leave it as it was.
    """
    graph = proto.graph
    found = {info.name: info.type.tensor_type.elem_type for info in graph.input if info.type.HasField("tensor_type")}
    found |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    found |= {sparse.values.name: sparse.values.data_type for sparse in graph.sparse_initializer}
    version = max((each.version for each in proto.opset_import if is_standard(each)), default=0)
    waiting = list(graph.node)
    while waiting:  # once more where nodes stand before what they read
        unknown = []
        for node in waiting:
            kinds = _made(node, version, found)
            found |= kinds
            if len(kinds) < sum(map(bool, node.output)):
                unknown.append(node)
        if len(unknown) == len(waiting):
            break
        waiting = unknown
    return found


def _made(node: onnx.NodeProto, version: int, found: dict[str, int]) -> dict[str, int]:
    """Return the types of a node's outputs, where they are known."""
    given = {attribute.name: attribute for attribute in node.attribute}
    told = next((given[name].i for name in ("to", "dtype", "output_dtype") if name in given), 0)
    if "value" in given:
        told = given["value"].t.data_type
    told = told or next((kind for name, kind in _OF_CONSTANT.items() if name in given), 0)
    if told or not is_standard(node):
        return dict.fromkeys(filter(None, node.output), told) if told else {}
    try:
        schema = onnx.defs.get_schema(node.op_type, version, "")
    except onnx.defs.SchemaError:
        return {}
    by_letter = dict(_NAMED)
    for place, name in enumerate(node.input):
        parameter = schema.inputs[min(place, len(schema.inputs) - 1)]
        if name in found and parameter.is_homogeneous:
            by_letter.setdefault(parameter.type_str, found[name])
    outputs = enumerate(node.output)
    letters = {name: schema.outputs[min(at, len(schema.outputs) - 1)].type_str for at, name in outputs if name}
    return {name: by_letter[letter] for name, letter in letters.items() if letter in by_letter}
