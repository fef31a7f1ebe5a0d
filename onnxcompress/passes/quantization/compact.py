"""A smaller file for the same quantised network: short names, equal constants once, and none that follow from others.

Beside one byte for each weight, a QDQ model holds the names of four tensors for every tensor that is quantised, each
spelled out twice, zero points for every channel of every weight and bias, and the biases' scales, which are products of
others. On GoogLeNet split to 4 MB of weights that is a twelfth of the file, and the windows of its LRNs another
hundredth. Constants that follow from others are left to nodes that runtimes compute once, as they load the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from itertools import count

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from onnxcompress.analysis.lrn import band_reach
from onnxcompress.subgraphs import all_names

_SHORT = "q"
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
_BIASED = ("Conv", "ConvTranspose", "Gemm")
_OPERANDS = ("input", "weight", "bias")
_LEAST_SCALES = 16
"""So many scales take what a product of them takes in the file."""
_LEAST_BAND = 48
"""A smaller band takes no more in the file than the nodes that make it."""


def tensor_names(proto: onnx.ModelProto) -> frozenset[str]:
    """Return the names of all tensors of a model's graph."""
    graph = proto.graph
    named = [*graph.input, *graph.output, *graph.initializer]
    return frozenset({each.name for each in named} | {name for node in graph.node for name in node.output})


def compact(proto: onnx.ModelProto, windows: Collection[str], *, kept: Collection[str], computed: bool = True) -> None:
    """Make the file of a quantised model smaller; what it computes stays the same to the bit.

    Args:
        proto: is changed.
        windows: initializers of one value and zero (`analysis.lrn.is_window`).
        kept: names of tensors that stay as they are: those that the model had before the quantizer came. The 8-bit
            weights keep the names that they were given, too.
        computed: whether constants may be computed from others. Not for a runtime that wants to read every scale.
    """
    given = {node.name for node in proto.graph.node if node.op_type not in _CONVERSIONS}
    _store_windows(proto.graph, windows, computed=computed)
    if computed:
        _multiply_bias_scales(proto.graph, kept)
    _share_constants(proto.graph, kept)
    _shorten_names(proto.graph, kept, given)


def _store_windows(graph: onnx.GraphProto, windows: Collection[str], *, computed: bool) -> None:
    """Store where a window's one value stands: exact, as zeros and ones to be scaled by it, or as a band's reach."""
    made: list[onnx.NodeProto] = []
    for tensor in [each for each in graph.initializer if each.name in windows]:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        name, values = tensor.name, numpy_helper.to_array(tensor)
        scale = np.array(values.max(), np.float32)
        reach = band_reach(values) if computed and len(values) >= _LEAST_BAND else None
        if reach is not None:
            graph.initializer.remove(tensor)
            made += _band(graph, name, values.shape, scale, reach)
            continue
        tensor.CopyFrom(numpy_helper.from_array((values != 0).astype(np.int8), f"{name}_quantized"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
        inputs = [f"{name}_quantized", f"{name}_scale"]
        made.append(onnx.helper.make_node("DequantizeLinear", inputs, [name], name=f"{name}_DequantizeLinear"))
    _put_in_front(graph, made)


def _band(
    graph: onnx.GraphProto, name: str, shape: tuple[int, ...], scale: npt.NDArray[np.float32], reach: int
) -> list[onnx.NodeProto]:
    """Return nodes that make a band matrix: `scale` where row and column are at most `reach` apart."""
    places = np.arange(shape[0], dtype=np.float32)
    for suffix, values in (
        ("rows", places.reshape(shape[0], *[1] * (len(shape) - 1))),
        ("columns", places.reshape(1, shape[1], *[1] * (len(shape) - 2))),
        ("limit", np.array(reach + 0.5, np.float32)),
        ("scale", scale),
        ("zero", np.array(0.0, np.float32)),
    ):
        graph.initializer.append(numpy_helper.from_array(values, f"{name}_{suffix}"))
    return [
        onnx.helper.make_node(op, [f"{name}_{each}" for each in inputs], [output], name=f"{name}_{op}")
        for op, inputs, output in (
            ("Sub", ("rows", "columns"), f"{name}_offset"),
            ("Abs", ("offset",), f"{name}_distance"),
            ("Less", ("distance", "limit"), f"{name}_inside"),
            ("Where", ("inside", "scale", "zero"), name),
        )
    ]


def _multiply_bias_scales(graph: onnx.GraphProto, kept: Collection[str]) -> None:
    """Leave biases' scales to a product, where it gives them to the bit: of the input's and the weight's scales."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    made = []
    for node in graph.node:
        conversions = [makers.get(name) for name in node.input[:3]]
        if node.op_type not in _BIASED or len(conversions) < len(_OPERANDS) or None in conversions:
            continue
        scales = [each.input[1] for each in conversions if each is not None and each.op_type == "DequantizeLinear"]
        if len(scales) < len(_OPERANDS) or any(name not in constants for name in scales):
            continue
        of_input, of_weight, of_bias = (numpy_helper.to_array(constants[name]) for name in scales)
        if of_bias.size <= _LEAST_SCALES or readers[scales[2]] > 1 or scales[2] in kept:
            continue
        if np.array_equal(np.multiply(of_input, of_weight, dtype=np.float32), of_bias):
            graph.initializer.remove(constants.pop(scales[2]))
            made.append(onnx.helper.make_node("Mul", scales[:2], [scales[2]], name=f"{scales[2]}_Mul"))
    _put_in_front(graph, made)


def _put_in_front(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Add nodes that read nothing but initializers: in front of all others the order stays topological."""
    every = [*nodes, *graph.node]
    del graph.node[:]
    graph.node.extend(every)


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


def _shorten_names(graph: onnx.GraphProto, kept: Collection[str], nodes: Collection[str]) -> None:
    """Give tensors and nodes short names, without `kept` ones and these nodes."""
    weights = {tensor.name for tensor in graph.initializer if len(tensor.dims) > 1}
    old = [*(tensor.name for tensor in graph.initializer), *(name for node in graph.node for name in node.output)]
    taken = {*kept, *weights, *all_names(graph)}
    fresh = (name for name in (f"{_SHORT}{number}" for number in count()) if name not in taken)
    short = {name: next(fresh) for name in old if name and name not in kept and name not in weights}
    for tensor in graph.initializer:
        tensor.name = short.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [short.get(name, name) for name in node.input]
        node.output[:] = [short.get(name, name) for name in node.output]
        if node.name not in nodes:
            node.name = next(fresh)
