"""A graph read as one of a later opset, where its nodes mean the same in both.

From opset 16 on ScatterElements can add, and the operators that a gradient needs are spelled in one way. An older graph
is taken over where each of its operators has kept its attributes, their defaults and its inputs. Lists that became
inputs are moved there.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from onnxcompress.graph import Shape
from onnxcompress.operators import is_standard
from onnxcompress.serialization import array_to_tensor
from onnxcompress.subgraphs import sub_graphs

FIRST_OPSET = 16
"""Of a graph that backward nodes are appended to."""

_FIRST_IR_VERSION = 8

_BECAME_INPUTS = {
    "Clip": ("min", "max"),
    "Pad": ("pads", "value"),
    "ReduceSum": ("axes",),
    "Slice": ("starts", "ends", "axes"),
    "Split": ("split",),
    "Squeeze": ("axes",),
    "Unsqueeze": ("axes",),
}
"""Attributes of older opsets that are inputs later, in the order of the inputs after the first."""

_LISTS = ("pads", "axes", "starts", "ends", "split")


def raise_opset(proto: onnx.ModelProto, shapes: Mapping[str, Shape]) -> bool:
    """Make a graph below opset 16 one of opset 16, in place; return whether it is of opset 16 or later then.

    Args:
        shapes: {tensor: shape}.
    """
    imported = next(each for each in proto.opset_import if is_standard(each))
    if imported.version >= FIRST_OPSET:
        return True
    nodes = [node for node in proto.graph.node if is_standard(node)]
    for node in nodes:
        _respell(proto.graph, node, shapes)
    if not all(_means_the_same(node, imported.version) for node in nodes):
        return False
    imported.version = FIRST_OPSET
    proto.ir_version = max(proto.ir_version, _FIRST_IR_VERSION)
    return True


def _respell(graph: onnx.GraphProto, node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> None:
    attributes = {each.name: each for each in node.attribute}
    if node.op_type == "Dropout" and not any(node.output[1:]):
        node.op_type = "Identity"
        del node.attribute[:], node.input[1:], node.output[1:]
    elif node.op_type in ("Softmax", "LogSoftmax"):
        _respell_softmax(node, shapes.get(node.input[0]))
    for position, name in enumerate(_BECAME_INPUTS.get(node.op_type, ()), 1):
        if name not in attributes:
            continue
        value = onnx.helper.get_attribute_value(attributes[name])
        constant = f"{name} of {node.output[0]}"
        array = np.array(value, np.int64 if name in _LISTS else np.float32)
        graph.initializer.append(array_to_tensor(constant, array))
        node.input.extend([""] * (position + 1 - len(node.input)))
        node.input[position] = constant
        node.attribute.remove(attributes[name])


def _respell_softmax(node: onnx.NodeProto, shape: Shape | None) -> None:
    """Below opset 13 it runs over all axes from `axis` on: over one where the others have a length of 1."""
    axis = next((each.i for each in node.attribute if each.name == "axis"), 1)
    if shape is not None and all(dim == 1 for dim in shape[axis % len(shape) + 1 :]):
        del node.attribute[:]
        node.attribute.append(onnx.helper.make_attribute("axis", axis))
    else:
        node.attribute.append(onnx.helper.make_attribute("of all axes", 1))  # which no later opset knows


def _means_the_same(node: onnx.NodeProto, version: int) -> bool:
    try:
        old, new = (onnx.defs.get_schema(node.op_type, each, "") for each in (version, FIRST_OPSET))
    except onnx.defs.SchemaError:
        return False
    given = {each.name for each in node.attribute}
    if new.deprecated or any(sub_graphs(node)):
        return False
    if not given <= new.attributes.keys() or not new.min_input <= len(node.input) <= new.max_input:
        return False
    if len(node.output) > new.max_output:
        return False
    if node.op_type in ("Softmax", "LogSoftmax"):
        return True
    # An attribute that is gone and was not given: what was its default is what the operator does.
    defaults = {name: each.default_value for name, each in old.attributes.items() if name not in given}
    return all(
        new.attributes[name].default_value == value for name, value in defaults.items() if name in new.attributes
    )
