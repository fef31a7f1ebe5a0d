"""A smaller file for the same quantised network: short names, equal constants once, LRN windows in 8 bits.

Beside one byte for each weight, a QDQ model holds the names of four tensors for every tensor that is quantised, each
spelled out twice, and zero points for every channel of every weight and bias. On GoogLeNet split to 4 MB of weights
that is a twelfth of the file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import count

import numpy as np
import onnx
from onnx import numpy_helper

_SHORT = "q"
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")


def tensor_names(proto: onnx.ModelProto) -> frozenset[str]:
    """Return the names of all tensors of a model's graph."""
    graph = proto.graph
    named = [*graph.input, *graph.output, *graph.initializer]
    return frozenset({each.name for each in named} | {name for node in graph.node for name in node.output})


def compact(proto: onnx.ModelProto, windows: Collection[str], *, kept: Collection[str]) -> None:
    """Make the file of a quantised model smaller; what it computes stays the same to the bit.

    Args:
        proto: is changed.
        windows: initializers of one value and zero (`analysis.lrn.is_window`).
        kept: names of tensors that stay as they are: those that the model had before the quantizer came. The 8-bit
            weights keep the names that they were given, too.
    """
    _store_windows(proto.graph, windows)
    _share_constants(proto.graph, kept)
    _shorten_names(proto.graph, kept)


def _store_windows(graph: onnx.GraphProto, windows: Collection[str]) -> None:
    """Store zeros and ones, with the value as their scale: exact, as 0 and 1 times it."""
    made = []
    for tensor in graph.initializer:
        if tensor.name not in windows or tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        name, values = tensor.name, numpy_helper.to_array(tensor)
        scale = values.max()
        tensor.CopyFrom(numpy_helper.from_array((values != 0).astype(np.int8), f"{name}_quantized"))
        graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), f"{name}_scale"))
        inputs = [f"{name}_quantized", f"{name}_scale"]
        made.append(onnx.helper.make_node("DequantizeLinear", inputs, [name], name=f"{name}_DequantizeLinear"))
    # They read nothing but initializers: in front of all others the order stays topological.
    nodes = [*made, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _share_constants(graph: onnx.GraphProto, kept: Collection[str]) -> None:
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    same: dict[str, str] = {}
    for tensor in graph.initializer:
        if tensor.name not in kept:
            key = (tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes())
            same[tensor.name] = first.setdefault(key, tensor.name)
    left = [tensor for tensor in graph.initializer if same.get(tensor.name, tensor.name) == tensor.name]
    for node in graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]
    del graph.initializer[:]
    graph.initializer.extend(left)


def _shorten_names(graph: onnx.GraphProto, kept: Collection[str]) -> None:
    weights = {tensor.name for tensor in graph.initializer if len(tensor.dims) > 1}
    old = [*(tensor.name for tensor in graph.initializer), *(name for node in graph.node for name in node.output)]
    taken = {*kept, *weights, *_names(graph)}
    fresh = (name for name in (f"{_SHORT}{number}" for number in count()) if name not in taken)
    short = {name: next(fresh) for name in old if name and name not in kept and name not in weights}
    for tensor in graph.initializer:
        tensor.name = short.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [short.get(name, name) for name in node.input]
        node.output[:] = [short.get(name, name) for name in node.output]
        if node.op_type in _CONVERSIONS:
            node.name = next(fresh)


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the names of all nodes and tensors, those of sub-graphs among them."""
    yield from (tensor.name for tensor in graph.initializer)
    for node in graph.node:
        yield node.name
        yield from node.output
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _names(inner)
