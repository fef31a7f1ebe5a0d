"""A model's own functions: every call becomes the nodes that it stands for.

onnx leaves calls alone whose function imports another version of an operator set than the model does. Most operators
are the same in both, but for the element types that they take: such a function is taken as one of the model's version.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx.inliner

from onnxcompress.errors import ModelError
from onnxcompress.operators import is_standard
from onnxcompress.subgraphs import with_inner_nodes


def inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model without functions; `proto` is not changed.

    Raises:
        ModelError: a function is written in a version of an operator set that means something else in the model's.
    """
    if not proto.functions:
        return proto
    versions = {_domain(opset): opset.version for opset in proto.opset_import}
    if any(_disagreeing(function, versions) for function in proto.functions):
        copied = onnx.ModelProto()
        copied.CopyFrom(proto)
        for function in copied.functions:
            _take_versions(function, versions)
        proto = copied
    return onnx.inliner.inline_local_functions(proto)


def _domain(of: onnx.OperatorSetIdProto | onnx.NodeProto) -> str:
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
