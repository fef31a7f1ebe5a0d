"""A model's structure: what stays the same when its weights are trained again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import onnx

from onnxcompress.graph import Model

_CARRY_STRUCTURE = frozenset(
    getattr(onnx.TensorProto, kind)
    for kind in ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "BOOL", "STRING")
)
"""Constants of these types are shapes, axes, indices and switches: their values belong to the structure."""


def structure_sha256(model: Model) -> str:
    """Return a hash of operators, attributes, connections, names, shapes and element types, not of weights' values.

    Documentation, metadata and the format's version do not count.
    """
    digest = hashlib.sha256()
    for part in _parts(model.skeleton()):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _parts(skeleton: onnx.ModelProto) -> Iterator[bytes]:
    for opset in sorted(skeleton.opset_import, key=lambda each: each.domain):
        yield f"{opset.domain} {opset.version}".encode()
    for node in skeleton.graph.node:
        yield _stripped(node).SerializeToString(deterministic=True)
    infos = [*skeleton.graph.input, *skeleton.graph.output]
    constants = sorted(skeleton.graph.initializer, key=lambda each: each.name)
    for info in sorted(infos, key=lambda each: each.name):
        yield info.name.encode() + info.type.SerializeToString(deterministic=True)
    for constant in constants:
        yield f"{constant.name} {constant.data_type} {list(constant.dims)}".encode()
        if constant.data_type in _CARRY_STRUCTURE:
            yield constant.SerializeToString(deterministic=True)


def _stripped(node: onnx.NodeProto) -> onnx.NodeProto:
    stripped = onnx.NodeProto()
    stripped.CopyFrom(node)
    stripped.ClearField("doc_string")
    stripped.ClearField("metadata_props")
    return stripped
