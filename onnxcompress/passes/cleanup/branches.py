"""An If whose condition is known before the run is the branch that it takes: exporters write so what sizes decide.

torch's `squeeze` of a length that its exporter does not know becomes If(length == 1, Squeeze(x), x).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count

import onnx
import onnx_graphsurgeon as gs

from onnxcompress.graph import Model
from onnxcompress.operators import is_standard
from onnxcompress.serialization import PROTOBUF_LIMIT_BYTES
from onnxcompress.subgraphs import all_names, sub_graphs


def is_decided(model: Model, node: gs.Node) -> bool:
    """Whether a node is an If that always takes the same branch, in a model that can be written as a whole."""
    condition = node.inputs[0] if node.op == "If" and is_standard(node) and node.inputs else None
    return (
        isinstance(condition, gs.Constant) and condition.values.size == 1 and model.weight_bytes < PROTOBUF_LIMIT_BYTES
    )


def take_branches(model: Model, names: set[str]) -> None:
    """Put the nodes of the branches that they take in place of these Ifs, whose conditions are constants, in place."""
    conditions = {node.name: bool(node.inputs[0].values.item()) for node in model.nodes if node.name in names}
    proto = model.to_proto()
    taken = set(all_names(proto.graph))

    def free(hint: str) -> str:
        name = next(each for number in count() if (each := f"{hint}_{number}") not in taken)
        taken.add(name)
        return name

    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        chosen = "then_branch" if conditions.get(node.name) else "else_branch"
        parts = [node]
        if node.name in conditions:
            branch = next(attribute.g for attribute in node.attribute if attribute.name == chosen)
            parts = _branch(proto.graph, node, branch, free)
        nodes.extend(onnx.NodeProto.FromString(part.SerializeToString()) for part in parts)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    model.become(proto)


def _branch(
    graph: onnx.GraphProto, node: onnx.NodeProto, branch: onnx.GraphProto, free: Callable[[str], str]
) -> list[onnx.NodeProto]:
    """Return a branch's nodes, that give what the If gives, under names of their own; its weights go to the graph."""
    made = {name for inner in branch.node for name in inner.output if name}
    inside = made | {tensor.name for tensor in branch.initializer}
    own = {name: free(name) for name in sorted(inside)}
    copies = []
    for result, info in zip(node.output, branch.output, strict=True):
        if not result:
            continue
        if info.name in made and own[info.name] not in node.output:
            own[info.name] = result
        else:  # what stands outside, a weight, or another result, too
            copies.append((info.name, result))
    for tensor in branch.initializer:
        graph.initializer.add().CopyFrom(tensor)
        graph.initializer[-1].name = own[tensor.name]
    _rename(branch, own)
    for inner in branch.node:
        inner.name = free(f"{node.name}/{inner.name or inner.op_type}")
    identities = [
        onnx.helper.make_node("Identity", [own.get(name, name)], [result], free(f"{node.name}/Identity"))
        for name, result in copies
    ]
    return [*branch.node, *identities]


def _rename(graph: onnx.GraphProto, own: Mapping[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [own.get(name, name) for name in node.input]
        node.output[:] = [own.get(name, name) for name in node.output]
        for inner in sub_graphs(node):
            _rename(inner, own)
            for info in inner.output:
                info.name = own.get(info.name, info.name)
