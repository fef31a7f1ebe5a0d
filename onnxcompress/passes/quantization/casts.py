"""Casts that onnxruntime's float16 converter sets around what stays in float32, without those that lose something.

The converter declares every tensor to be float16 and casts to and from it at each node that stays: between two such
nodes a value passes float16 and back, where it overflows as if nothing had stayed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from itertools import count

import onnx

from onnxcompress.subgraphs import with_inner_nodes

_FLOAT, _HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


_OF_CASTS = re.compile(r"graph_(in|out)put_cast_?\d+|.*_cast_to_(fp16|fp32|bfloat16)(_node)?")
"""Names that the converter gives to its casts and to what they make; it does not look whether they are taken."""


def free_names(graph: onnx.GraphProto) -> dict[str, str]:
    """Give other names to casts of an earlier conversion and what they make; the converter would use theirs again.

    Inputs and outputs of the graph keep their names.

    Returns:
        {name of a node: its new one}.
    """
    kept = {info.name for info in (*graph.input, *graph.output)}
    nodes, tensors = [node.name for node in graph.node], [name for node in graph.node for name in node.output]
    taken = {*kept, *nodes, *tensors, *(tensor.name for tensor in graph.initializer)}

    def renamed(names: Iterable[str]) -> dict[str, str]:
        found = {}
        for name in names:
            if name not in kept and _OF_CASTS.fullmatch(name):
                found[name] = next(other for n in count(1) if (other := f"{name}_{n}_given") not in taken)
                taken.add(found[name])
        return found

    of_nodes, of_tensors = renamed(nodes), renamed(tensors)
    for node in with_inner_nodes(graph.node):
        node.input[:] = [of_tensors.get(name, name) for name in node.input]
    for node in graph.node:
        node.name = of_nodes.get(node.name, node.name)
        node.output[:] = [of_tensors.get(name, name) for name in node.output]
    for info in graph.value_info:
        info.name = of_tensors.get(info.name, info.name)
    return of_nodes


def without_detours(graph: onnx.GraphProto, given: Collection[str]) -> None:
    """Let what reads a float32 tensor by way of float16 read the tensor itself, under the name that it was given.

    Args:
        graph: as the converter leaves it; is changed, and may be out of order before and after.
        given: the names of the nodes that the converter was given: their casts stay.
    """
    casts = [node for node in graph.node if node.op_type == "Cast" and node.name not in given]
    halves = {node.output[0]: node.input[0] for node in casts if _target(node) == _HALF}
    outputs, inputs = {each.name for each in graph.output}, {each.name for each in graph.input}
    direct: dict[str, str] = {}
    made: dict[str, str] = {}
    for node in casts:
        source = halves.get(node.input[0])
        if source is None or _target(node) != _FLOAT:
            continue
        if node.output[0] not in outputs:
            direct[node.output[0]] = source
        elif source not in inputs:
            made[source] = node.output[0]
    kept = [node for node in graph.node if not {*direct, *made.values()} & set(node.output)]
    readers = list(with_inner_nodes(kept))
    for node in readers:
        node.input[:] = [direct.get(name, name) for name in node.input]
    read = {name for node in readers for name in node.input} | outputs
    kept = [node for node in kept if not (node.output[0] in halves and node.output[0] not in read)]
    # What stays keeps its name, its rounded form takes the other one.
    names = {name: other for pair in halves.items() if pair[1] not in inputs for name, other in (pair, pair[::-1])}
    names |= made
    for node in readers:
        node.input[:] = [names.get(name, name) for name in node.input]
    for node in kept:
        node.output[:] = [names.get(name, name) for name in node.output]
    del graph.node[:]
    graph.node.extend(kept)


def _target(node: onnx.NodeProto) -> int:
    return next(int(attribute.i) for attribute in node.attribute if attribute.name == "to")
