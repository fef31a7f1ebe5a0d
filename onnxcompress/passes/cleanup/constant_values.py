"""What nodes of constants compute, by onnxruntime's CPU kernels without its optimiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from onnxcompress.errors import OnnxCompressError
from onnxcompress.graph import Model
from onnxcompress.serialization import array_to_tensor

Array = npt.NDArray[Any]

_FED_FROM_BYTES = 16 * 1024
_FED_TYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
_FAILURES = (OnnxCompressError, KeyError, RuntimeError, TypeError, ValueError)
_FATAL = 4  # onnxruntime's severity: an operator that it lacks is no news to the user


def compute(
    model: Model, nodes: Sequence[gs.Node], known: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, str]]:
    """Compute nodes, given in topological order, that read constants, `known` tensors and one another's outputs.

    Returns:
        {tensor name: values} of what other nodes read, and {node name: reason} for nodes that cannot be computed.
    """
    if not nodes:
        return {}, {}
    skeleton = model.skeleton()
    protos = {proto.name: proto for proto in skeleton.graph.node}
    constants = {t.name: model.values(t) for n in nodes for t in n.inputs if isinstance(t, gs.Constant) and t.name}
    sources = {**constants, **known}
    try:
        return _run(skeleton, [protos[node.name] for node in nodes], sources, model.dtypes, _read_elsewhere(nodes)), {}
    except _FAILURES:
        pass  # one of them cannot be computed; find out which
    computed: dict[str, Array] = {}
    failed: dict[str, str] = {}
    for node in nodes:
        missing = [t.name for t in node.inputs if t.name and t.name not in sources]
        if missing:
            failed[node.name] = f"reads '{missing[0]}', which cannot be computed beforehand"
            continue
        try:
            outputs = [tensor.name for tensor in node.outputs if tensor.name]
            values = _run(skeleton, [protos[node.name]], sources, model.dtypes, outputs)
        except _FAILURES as error:
            failed[node.name] = f"cannot be computed beforehand: {_one_line(error)}"
            continue
        computed.update(values)
        sources.update(values)
    return computed, failed


def _read_elsewhere(nodes: Sequence[gs.Node]) -> list[str]:
    """Return the outputs that other nodes read, and those that nobody reads, so that every node runs."""
    inside = {id(node) for node in nodes}
    names = []
    for node in nodes:
        outputs = [tensor for tensor in node.outputs if tensor.name]
        names += [t.name for t in outputs if not t.outputs or any(id(reader) not in inside for reader in t.outputs)]
    return names


def _run(
    skeleton: onnx.ModelProto,
    protos: Sequence[onnx.NodeProto],
    sources: Mapping[str, Array],
    dtypes: Mapping[str, int],
    outputs: Sequence[str],
) -> dict[str, Array]:
    """Run nodes as a model of their own; large sources are fed rather than copied into it."""
    from onnxcompress.runtime.session import Session, SessionSettings

    produced = {name for proto in protos for name in proto.output if name}
    read = {name for proto in protos for name in proto.input if name and name not in produced}
    graph = onnx.GraphProto(name="constants", node=protos)
    feeds = {}
    for name in sorted(read):
        values = sources[name]
        if values.nbytes > _FED_FROM_BYTES and values.dtype.name in _FED_TYPES:
            fed_type = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
            graph.input.append(onnx.helper.make_tensor_value_info(name, fed_type, values.shape))
            feeds[name] = np.ascontiguousarray(values)
        else:
            graph.initializer.append(array_to_tensor(name, values))
    for name in outputs:
        graph.output.append(onnx.helper.make_tensor_value_info(name, dtypes[name], None))
    proto = onnx.ModelProto(ir_version=skeleton.ir_version, opset_import=skeleton.opset_import, graph=graph)
    settings = SessionSettings(threads=1, optimize=False, log_severity=_FATAL)
    return Session(proto.SerializeToString(), settings=settings).run(feeds, list(outputs))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
