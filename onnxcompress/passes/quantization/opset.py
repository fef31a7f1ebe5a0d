"""The opset that quantised models need, and the form of an old file that quantizers and converters understand."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count

import onnx

from onnxcompress.errors import ModelError
from onnxcompress.operators import is_standard
from onnxcompress.passes.quantization.compact import tensor_names
from onnxcompress.subgraphs import with_inner_nodes

_FIRST_OPSET = 13
"""The first in which a DequantizeLinear has a scale for each channel."""

_LAST_OPSET = 27
"""The last whose conversions to and from eight bits onnxruntime (1.32) has kernels for."""

_WITH_BIAS = frozenset({"Conv", "ConvTranspose", "Gemm"})


def with_opset(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in an opset that has scales for each channel; tensors and nodes keep their names.

    Raises:
        ModelError: its own has none, and onnx cannot convert it.
    """
    opset = next((entry.version for entry in proto.opset_import if is_standard(entry)), 0)
    proto.ir_version = max(proto.ir_version, 4)  # before, every initializer had to be listed as an input
    weights_are_no_inputs(proto)
    if opset > _LAST_OPSET:
        _lower(proto, opset)
    if opset >= _FIRST_OPSET:
        return proto
    try:
        converted = onnx.version_converter.convert_version(proto, _FIRST_OPSET)
    except Exception as error:
        raise ModelError(
            f"opset {opset} has no scales for each channel, and onnx cannot convert the model to opset "
            f"{_FIRST_OPSET} ({' '.join(str(error).split())[:200]}); export it again with a newer opset"
        ) from error
    _restore_names(proto.graph, converted.graph)
    return converted


def _lower(proto: onnx.ModelProto, opset: int) -> None:
    """Name the last opset of which runtimes have the conversions, where all operators are the same in it, in place."""
    nodes = [node for node in with_inner_nodes(proto.graph.node) if is_standard(node)]
    known = all(onnx.defs.has(node.op_type, opset, "") for node in nodes)
    if known and all(onnx.defs.get_schema(node.op_type, opset, "").since_version <= _LAST_OPSET for node in nodes):
        next(entry for entry in proto.opset_import if is_standard(entry)).version = _LAST_OPSET


def weights_are_no_inputs(proto: onnx.ModelProto) -> None:
    """Take initializers off the list of inputs, where old files have them: a converter takes them for what is fed."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    fed = [info for info in proto.graph.input if info.name not in weights]
    del proto.graph.input[:]
    proto.graph.input.extend(fed)


def declare_types(graph: onnx.GraphProto, dtypes: Mapping[str, int]) -> None:
    """Declare the type of every tensor: quantizers and converters leave one alone whose type they do not find.

    Args:
        dtypes: {tensor name: onnx element type}.
    """
    declared = {info.name for info in (*graph.value_info, *graph.output)}
    made = [name for node in graph.node for name in node.output if name in dtypes and name not in declared]
    graph.value_info.extend(onnx.helper.make_tensor_value_info(name, dtypes[name], None) for name in made)


def unshare_biases(proto: onnx.ModelProto) -> None:
    """Give every layer a bias of its own: the quantizer copies a shared one under a name that may be taken."""
    graph, seen, taken = proto.graph, set(), set(tensor_names(proto))
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        bias = node.input[2] if node.op_type in _WITH_BIAS and len(node.input) > 2 else ""
        if bias not in stored or bias not in seen:
            seen.add(bias)
            continue
        name = next(each for n in count(1) if (each := f"{bias}_copy_{n}") not in taken)
        taken.add(name)
        graph.initializer.add().CopyFrom(stored[bias])
        graph.initializer[-1].name = node.input[2] = name


def _restore_names(given: onnx.GraphProto, converted: onnx.GraphProto) -> None:
    """Give the output of a node that the converter wrote anew (Upsample as Resize), and the node, their old names.

    It is known by what reads it: nodes that were not written anew keep their names and the places of their inputs.
    """
    makers = {name: node for node in given.node for name in node.output}
    new_makers = {name: node for node in converted.node for name in node.output}
    readers = {node.name: node for node in converted.node if node.name}
    old: dict[str, str] = {}
    for node in given.node:
        reader = readers.get(node.name)
        for name, now in zip(node.input, reader.input if reader is not None else (), strict=False):
            if name in makers and name not in new_makers and now in new_makers and now not in makers:
                old[now] = name
    named = set(readers)
    for node in converted.node:
        node.input[:] = [old.get(name, name) for name in node.input]
        node.output[:] = [old.get(name, name) for name in node.output]
        for name in node.output:
            if not node.name and name in old.values() and makers[name].name not in named:
                node.name = makers[name].name
                named.add(node.name)
