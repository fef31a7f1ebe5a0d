"""Operators as onnxruntime's quantizer and optimiser take them.

Of a Gemm the quantizer forgets `beta`, and wants a number of the bias for each column. An AveragePool in eight bits
knows no `dilations`. Of a Pad with `axes` the optimiser, which lays eight-bit tensors out with their channels last,
rearranges lengths as if each axis had one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxcompress.graph import Shape
from onnxcompress.passes.quantization.inner import free_name


def write_plainly(graph: onnx.GraphProto, nodes: Collection[str], shapes: Mapping[str, Shape]) -> None:
    """Write Gemms plainly, with a bias of all columns, Pads without `axes`, and pools without `dilations`.

    Args:
        graph: is changed; what else reads the constants keeps them.
        nodes: the names of the nodes that are meant, but for Pads.
        shapes: of the graph's tensors, as far as they are known.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    taken = {*constants, *(info.name for info in graph.input), *(n for node in graph.node for n in node.output)}
    for node in graph.node:
        if node.op_type == "AveragePool" and node.name in nodes:
            kept = [attribute for attribute in node.attribute if attribute.name != "dilations"]  # all of them 1
            del node.attribute[:]
            node.attribute.extend(kept)
        if node.op_type == "Pad" and len(node.input) > 3 and node.input[0] in shapes:
            _pad_every_axis(graph, node, len(shapes[node.input[0]]), constants, taken)
        if node.op_type != "Gemm" or node.name not in nodes or not set(node.input[1:]) <= constants.keys() | {""}:
            continue
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        weight = numpy_helper.to_array(constants[node.input[1]])
        scaled = weight * np.float32(given.get("alpha", 1.0))
        changed = {1: scaled} if given.get("alpha", 1.0) != 1.0 else {}
        if len(node.input) > 2 and node.input[2]:
            bias = numpy_helper.to_array(constants[node.input[2]])
            columns = weight.shape[0] if given.get("transB") else weight.shape[1]
            spread = np.broadcast_to(bias.reshape(-1) * np.float32(given.get("beta", 1.0)), (columns,))
            if spread.shape != bias.shape or given.get("beta", 1.0) != 1.0:
                changed[2] = np.ascontiguousarray(spread)
        for position, values in changed.items():
            name = free_name(f"{node.input[position]}_{node.name}", taken)
            graph.initializer.append(numpy_helper.from_array(values, name))
            node.input[position] = name
        kept = [attribute for attribute in node.attribute if attribute.name not in ("alpha", "beta")]
        del node.attribute[:]
        node.attribute.extend(kept)


def _pad_every_axis(
    graph: onnx.GraphProto, node: onnx.NodeProto, rank: int, constants: Mapping[str, onnx.TensorProto], taken: set[str]
) -> None:
    if not {node.input[1], node.input[3]} <= constants.keys():
        return
    lengths, axes = (numpy_helper.to_array(constants[node.input[position]]) for position in (1, 3))
    spread = np.zeros((2, rank), np.int64)
    spread[:, axes % rank] = lengths.reshape(2, -1)
    name = free_name(f"{node.input[1]}_{node.name}", taken)
    graph.initializer.append(numpy_helper.from_array(spread.reshape(-1), name))
    node.input[1] = name
    del node.input[3]
