"""A model's own functions: every call becomes the nodes that it stands for.

onnx leaves calls alone whose function imports another version of an operator set than the model does. Most operators
are the same in both, but for the element types that they take: such a function is taken as one of the model's version.
Values that a function gives attributes which a call leaves out are lost on onnx: calls name them first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import onnx
import onnx.inliner

from onnxcompress.errors import ModelError
from onnxcompress.operators import is_standard
from onnxcompress.subgraphs import with_inner_nodes
from onnxcompress.tensor_bytes import is_one_layers

_SHARED_FROM_BYTES = 1024


def inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model without functions; `proto` is not changed.

    Raises:
        ModelError: a function is written in a version of an operator set that means something else in the model's.
    """
    if not proto.functions:
        return proto
    versions = {_domain(opset): opset.version for opset in proto.opset_import}
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    for function in copied.functions:
        _take_versions(function, versions)
    _give_defaults(copied)
    whole = onnx.inliner.inline_local_functions(copied)
    _import_what_bodies_use(whole, proto.functions)
    _share_weights(whole.graph, given={name for node in proto.graph.node for name in node.output})
    return whole


def _import_what_bodies_use(whole: onnx.ModelProto, functions: Iterable[onnx.FunctionProto]) -> None:
    """Let a model import the domains that only its functions did, in place."""
    imported = {_domain(opset) for opset in whole.opset_import}
    used = {_domain(node) for node in with_inner_nodes(whole.graph.node)} - imported
    versions = {_domain(opset): opset.version for function in functions for opset in function.opset_import}
    whole.opset_import.extend(onnx.helper.make_opsetid(d, v) for d, v in versions.items() if d in used)


def _share_weights(graph: onnx.GraphProto, given: Collection[str]) -> None:
    """Give all calls of a function the one weight that its body holds, in place.

    Args:
        graph: as it is once inlined; copies of a weight lose their readers.
        given: what the graph's own nodes made before.
    """
    first: dict[bytes, str] = {}
    same: dict[str, str] = {}
    for node in graph.node:
        if node.op_type != "Constant" or not is_standard(node) or node.output[0] in given:
            continue
        content = node.attribute[0].SerializeToString(deterministic=True)
        if len(content) >= _SHARED_FROM_BYTES and _is_weight(node.attribute[0]):
            same[node.output[0]] = first.setdefault(content, node.output[0])
    for node in with_inner_nodes(graph.node):
        node.input[:] = [same.get(name, name) for name in node.input]


def _is_weight(attribute: onnx.AttributeProto) -> bool:
    """Whether a constant is no other layer's by chance."""
    if attribute.name != "value" or attribute.t.data_location != onnx.TensorProto.DEFAULT:
        return False
    return is_one_layers(onnx.numpy_helper.to_array(attribute.t))


def _give_defaults(proto: onnx.ModelProto) -> None:
    """Write the attributes that calls leave to their function's defaults, in place."""
    defaults = {(_domain(each), each.name, each.overload): each.attribute_proto for each in proto.functions}
    for nodes in (proto.graph.node, *(function.node for function in proto.functions)):
        for node in with_inner_nodes(nodes):
            given = {attribute.name for attribute in node.attribute}
            known = defaults.get((_domain(node), node.op_type, node.overload), ())
            node.attribute.extend(attribute for attribute in known if attribute.name not in given)


def _domain(of: onnx.OperatorSetIdProto | onnx.FunctionProto | onnx.NodeProto) -> str:
    return "" if is_standard(of) else of.domain


def _disagreeing(function: onnx.FunctionProto, versions: Mapping[str, int]) -> list[onnx.OperatorSetIdProto]:
    return [o for o in function.opset_import if versions.get(_domain(o), o.version) != o.version]


def _take_versions(function: onnx.FunctionProto, versions: Mapping[str, int]) -> None:
    for opset in _disagreeing(function, versions):
        domain, wanted = _domain(opset), versions[_domain(opset)]
        nodes = [node for node in with_inner_nodes(function.node) if _domain(node) == domain]
        for op in dict.fromkeys(node.op_type for node in nodes):
            if _signature(op, opset.version, domain) != _signature(op, wanted, domain):
                raise ModelError(
                    f"function '{function.name}' of domain '{function.domain}' imports opset {opset.version} of domain "
                    f"'{domain or 'ai.onnx'}', the model opset {wanted}, and {op} differs between them: "
                    f"write both in one opset (onnx.version_converter), or export without functions"
                )
        opset.version = wanted


def _signature(op: str, version: int, domain: str) -> object:
    """Return what tells two versions of an operator apart, element types left out; None of one that onnx knows not."""
    try:
        schema = onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return None
    attributes = {name: (a.required, a.default_value.SerializeToString()) for name, a in schema.attributes.items()}
    return attributes, *([(p.name, p.option) for p in part] for part in (schema.inputs, schema.outputs))
