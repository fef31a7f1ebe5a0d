"""Sub-graphs (of If, Loop and Scan) beside onnxruntime's float16 converter, which goes by names alone.

Those of a node that is converted are converted with it; those of a node that stays in float32 stay as they are, and
what they read around them has to be float32.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import chain, count

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.importing import names_captured
from onnxcompress.subgraphs import sub_graphs, with_inner_nodes


def tell_apart(graph: onnx.GraphProto) -> None:
    """Give what is in sub-graphs names that the model has nowhere else, and write numbers of Constants as tensors."""
    nodes = {node.name for node in graph.node}
    tensors = {each.name for each in (*graph.input, *graph.initializer)} | {
        n for each in graph.node for n in each.output
    }
    for node in graph.node:
        for inner in sub_graphs(node):
            _tell_apart(inner, nodes, tensors, {})


def _tell_apart(graph: onnx.GraphProto, nodes: set[str], tensors: set[str], outer: Mapping[str, str]) -> None:
    own: dict[str, str] = {}
    for each in (*graph.input, *graph.initializer):
        each.name = own.setdefault(each.name, own.get(each.name) or free_name(each.name, tensors))
    for node in graph.node:
        node.name = free_name(node.name, nodes)
        node.input[:] = [own.get(name, outer.get(name, name)) for name in node.input]
        for inner in sub_graphs(node):
            _tell_apart(inner, nodes, tensors, {**outer, **own})
        own |= {name: free_name(name, tensors) for name in node.output}
        node.output[:] = [own[name] for name in node.output]
        if node.op_type == "Constant" and node.attribute[0].name in ("value_float", "value_floats"):
            numbers = np.array(helper.get_attribute_value(node.attribute[0]), np.float32)
            node.attribute[0].CopyFrom(helper.make_attribute("value", numpy_helper.from_array(numbers)))
    for info in (*graph.output, *graph.value_info):
        info.name = own.get(info.name, info.name)


def free_name(name: str, taken: set[str]) -> str:
    """Return `name`, with a number where it is taken, and take it; nothing is no name."""
    found = next(each for each in chain([name], (f"{name}_{n}" for n in count(1))) if not name or each not in taken)
    taken.add(found)
    return found


def cast_captured(graph: onnx.GraphProto, kept: Collection[str], floats: Collection[str]) -> None:
    """Let sub-graphs of nodes that stay read what was converted around them by way of a Cast back.

    Args:
        graph: as the converter leaves it; is changed, and out of order.
        kept: the names of the nodes that stay in float32.
        floats: the tensors that were float32 before.
    """
    halves = {info.name for info in graph.value_info if info.type.tensor_type.elem_type == TensorProto.FLOAT16}
    halves |= {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    halves &= set(floats)
    made = {name for node in graph.node for name in node.output}
    for node in [node for node in graph.node if node.name in kept]:
        back = {name: f"{name}_cast_to_fp32" for name in names_captured(node) if name in halves}
        for name, other in back.items():
            if other not in made:
                graph.node.append(helper.make_node("Cast", [name], [other], f"{other}_node", to=TensorProto.FLOAT))
                made.add(other)
        for each in with_inner_nodes([node]):
            each.input[:] = [back.get(name, name) for name in each.input]
