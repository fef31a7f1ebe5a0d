"""Results of 8-bit products that nothing takes in eight bits are left as they come out of their sums: in float32.

The quantizer rounds the result of every layer to eight bits, in the range that it had on the calibration data, also
where only float reads it: scores that are an output, or that a Softmax reads. Kernels of matrix products give float32
as well; those of convolutions do not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

import onnx

_PRODUCTS = frozenset({"Gemm", "MatMul"})
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")


def keep_results(graph: onnx.GraphProto, nodes: Collection[str]) -> None:
    """Take the conversions behind matrix products out where no node of eight bits reads them.

    Args:
        graph: of a QDQ model; is changed.
        nodes: the names of the nodes that compute in eight bits.
    """
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    outputs = {info.name for info in graph.output}
    renamed: dict[str, str] = {}
    gone: set[str] = set()
    for node in graph.node:
        if node.op_type not in _PRODUCTS or node.name not in nodes or node.output[0] in outputs:
            continue
        pair = [node]
        for op in _CONVERSIONS:
            behind = readers[pair[-1].output[0]]
            if len(behind) != 1 or behind[0].op_type != op:
                break
            pair += behind
        if len(pair) < 3:
            continue
        result = pair[-1].output[0]
        if any(reader.name in nodes for reader in readers[result]):
            continue
        gone.update(each.name for each in pair[1:])
        if result in outputs:
            node.output[0] = result
        else:
            renamed[result] = node.output[0]
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    left = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node if node.name not in gone]
    del graph.node[:]
    graph.node.extend(left)
