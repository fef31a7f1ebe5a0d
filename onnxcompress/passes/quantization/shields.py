"""What keeps onnxruntime from quantising layers that were left in float.

As it loads a model, it quantises the weights of every layer between a DequantizeLinear and a QuantizeLinear by itself,
with one scale for all channels (`WeightBiasQuantization`): a layer that was excluded, or left in float because eight
bits cost too much, in accuracy or in time, would compute in eight bits all the same. It does not look past another
activation than Relu and Clip: one that changes nothing, and is part of the layer's kernel, keeps the layer as it is.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import count

import onnx

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm"})
_LOOKED_PAST = frozenset({"Clip", "Relu"})


def shield_float_layers(graph: onnx.GraphProto) -> None:
    """Put an activation of slope one behind every layer with float weights between two conversions."""
    constants = {tensor.name for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    outputs = {each.name for each in graph.output}
    taken = {*constants, *makers, *readers, *(node.name for node in graph.node)}
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type not in _LAYERS or node.input[1] not in constants:
            continue
        before, name = makers.get(node.input[0]), node.output[0]
        if before is None or before.op_type != "DequantizeLinear" or not _is_quantised(name, readers, outputs):
            continue
        bare = next(each for each in (f"{name}.{number}" for number in count()) if each not in taken)
        taken.add(bare)
        nodes.append(onnx.helper.make_node("LeakyRelu", [bare], [name], name=bare, alpha=1.0))
        node.output[0] = bare
    del graph.node[:]
    graph.node.extend(nodes)


def _is_quantised(name: str, readers: dict[str, list[onnx.NodeProto]], outputs: set[str]) -> bool:
    """Whether all that reads a tensor, past what is looked past, is one QuantizeLinear."""
    while name not in outputs and len(readers[name]) == 1:
        (reader,) = readers[name]
        if reader.op_type == "QuantizeLinear":
            return True
        if reader.op_type not in _LOOKED_PAST:
            return False
        name = reader.output[0]
    return False
