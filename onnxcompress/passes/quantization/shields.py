"""What keeps onnxruntime from quantising nodes that were left in float, and from ending the process.

As it loads a model, it quantises the weights of every layer between a DequantizeLinear and a QuantizeLinear by itself,
with one scale for all channels (`WeightBiasQuantization`): a layer that was excluded, or left in float because eight
bits cost too much, in accuracy or in time, would compute in eight bits all the same. It does not look past another
activation than Relu and Clip. And it moves a DequantizeLinear behind a MaxPool, whose 8-bit form takes up to 20 times
as long, but not past an activation. One of slope one changes nothing, and behind a layer is part of its kernel.

Where it moves one behind what a sub-graph (of If, Loop, Scan) reads as well, it ends the whole process. So it does
(1.32) where it takes a Transpose that moves the first axis behind the others into a half-precision product by a
constant: what the projections of PyTorch's attention read whose batch comes second.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import count

import onnx

from onnxcompress.importing import names_captured

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm"})
_LOOKED_PAST = frozenset({"Clip", "Relu"})
_OTHERWISE_IN_EIGHT_BITS = frozenset({"AveragePool", "Resize"})
"""See `candidates.why_kernels_differ`."""
_MOVED_PAST = frozenset({"MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})


def shield_float_nodes(graph: onnx.GraphProto, nodes: Collection[str]) -> None:
    """Put an activation of slope one behind layers, and in front of pools, that onnxruntime would quantise.

    So it does in front of what a DequantizeLinear must not be moved past, and of what is something else in eight bits.

    Args:
        graph: of a QDQ model in topological order; is changed.
        nodes: the names of the nodes that compute in eight bits.
    """
    constants = {tensor.name for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    outputs = {each.name for each in graph.output}
    captured = {name for node in graph.node for name in names_captured(node)}
    taken = {*constants, *makers, *readers, *(node.name for node in graph.node)}

    def fresh(hint: str) -> str:
        name = next(each for each in (f"{hint}.{number}" for number in count()) if each not in taken)
        taken.add(name)
        return name

    laid: list[onnx.NodeProto] = []
    for node in graph.node:
        laid.append(node)
        result = node.output[0]
        if result in captured and node.op_type in _MOVED_PAST and _is_dequantised(node, makers):
            source, node.input[0] = node.input[0], fresh(node.input[0])
            laid.insert(-1, _shield(source, node.input[0], node.input[0]))
            continue
        before = makers.get(node.input[0]) if node.input else None
        if before is None or before.op_type != "DequantizeLinear":
            continue
        if node.op_type in _LAYERS and node.input[1] in constants and _is_quantised(result, readers, outputs):
            node.output[0] = fresh(result)
            laid.append(_shield(node.output[0], result, node.output[0]))
        elif (node.op_type in _OTHERWISE_IN_EIGHT_BITS and node.name not in nodes) or (
            node.op_type == "MaxPool" and any(each.op_type != "QuantizeLinear" for each in readers[result])
        ):
            source, node.input[0] = node.input[0], fresh(node.input[0])
            laid.insert(-1, _shield(source, node.input[0], node.input[0]))
    del graph.node[:]
    graph.node.extend(laid)


def shield_turned_products(graph: onnx.GraphProto) -> None:
    """Put an activation of slope one between a Transpose and a float16 product by a constant that cannot take it in.

    Args:
        graph: of a float16 model in topological order; is changed.
    """
    halves = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16}
    turned = {node.output[0] for node in graph.node if node.op_type == "Transpose" and _moves_first_axis(node)}
    taken = {name for node in graph.node for name in (*node.input, *node.output, node.name)} | halves
    nodes = []
    for node in graph.node:
        read = [at for at, name in enumerate(node.input) if name in turned]
        if node.op_type == "MatMul" and len(read) == 1 and node.input[1 - read[0]] in halves:
            source = node.input[read[0]]
            target = next(each for each in (f"{source}.turned{number}" for number in count()) if each not in taken)
            taken.add(target)
            node.input[read[0]] = target
            nodes.append(_shield(source, target, target))
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _moves_first_axis(node: onnx.NodeProto) -> bool:
    """Whether a Transpose of three axes or more brings the first behind all others, or all but the last."""
    order = next((list(each.ints) for each in node.attribute if each.name == "perm"), [])
    last = len(order) - 1
    return last > 1 and order[:-2] == list(range(1, last)) and sorted(order[-2:]) == [0, last]


def _shield(source: str, target: str, name: str) -> onnx.NodeProto:
    return onnx.helper.make_node("LeakyRelu", [source], [target], name=name, alpha=1.0)


def _is_dequantised(node: onnx.NodeProto | None, makers: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether a DequantizeLinear stands before a node, with nothing between that it could not be moved past."""
    while node is not None and node.op_type in _MOVED_PAST:
        node = makers.get(node.input[0])
    return node is not None and node.op_type == "DequantizeLinear"


def _is_quantised(name: str, readers: Mapping[str, Sequence[onnx.NodeProto]], outputs: set[str]) -> bool:
    """Whether all that reads a tensor, past what is looked past, is one QuantizeLinear."""
    while name not in outputs and len(readers[name]) == 1:
        (reader,) = readers[name]
        if reader.op_type == "QuantizeLinear":
            return True
        if reader.op_type not in _LOOKED_PAST:
            return False
        name = reader.output[0]
    return False
