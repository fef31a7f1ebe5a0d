"""Nodes that hand on their input unchanged are removed: y = f(x) = x, so every reader of y reads x.

Identity, Dropout in inference, a Cast to the same type, a Reshape or Flatten to the same shape, a Transpose that keeps
the order, a Concat (Sum, Max, Min, Mean) of one tensor, a Pad of nothing; and an Expand all of whose readers broadcast
x as far by themselves, because they combine it with a tensor of those lengths. Names of graph outputs stay: where y is
one, x takes the name of y, which needs x to be made by a node and free to be renamed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxcompress.graph import Model, Shape
from onnxcompress.links import has_input
from onnxcompress.operators import BROADCASTING, is_standard
from onnxcompress.passes.base import Decision, PassContext, Plan, Provenance, Skipped
from onnxcompress.passes.cleanup.rule import (
    Rule,
    excluded,
    pinned_names,
    planned_node,
    remove_nodes,
)

_OF_ONE_INPUT = frozenset({"Concat", "Sum", "Max", "Min", "Mean"})
_CHANGES_ONLY_SHAPE = frozenset({"Reshape", "Flatten"})
_THESE_BROADCAST_SINCE = 8
_OF_MANY_OPERANDS = frozenset({"Max", "Mean", "Min", "Sum"})


class IdentityRemoval(Rule):
    """Removes nodes that do nothing."""

    name: ClassVar[str] = "identity"
    does: ClassVar[str] = "removes nodes that do nothing"

    def found(self, model: Model, context: PassContext) -> Iterator[Decision | Skipped]:
        """Yield the nodes to remove; a Dropout or Identity that stays says why."""
        pinned = pinned_names(model)
        if not any(_does_nothing(model, node, pinned) for node in model.nodes):
            return
        working = model.copy()
        for node in working.nodes:
            found = _does_nothing(working, node, pinned)
            if found is False:
                continue
            reason = found if isinstance(found, str) else None
            reason = reason or _pinned_on_both_sides(working, node, pinned) or excluded([node], context)
            if reason is not None:
                yield Skipped(node.name, reason)
                continue
            yield {"node": node.name, "op": node.op, "input": node.inputs[0].name, "output": node.outputs[0].name}
            _bypass(node, pinned)

    def rewrite(self, model: Model, plan: Plan, context: PassContext) -> Provenance:
        """Remove the planned nodes.

        Raises:
            RecipeError: the plan names nodes that the model does not have.
        """
        nodes = {node.name: node for node in model.nodes}
        pinned = pinned_names(model)
        removed = [planned_node(nodes, decision) for decision in plan.decisions]
        for node in removed:
            _bypass(node, pinned)
        remove_nodes(model, removed)
        return {}


def _does_nothing(model: Model, node: gs.Node, pinned: frozenset[str]) -> bool | str:
    """Return whether the node hands on its input, or the reason why a Dropout does not."""
    if not is_standard(node) or not node.inputs or not node.outputs:
        return False
    if node.op == "Dropout":
        return _dropout(node, pinned) or True
    if node.op == "Identity":
        return True
    if node.op == "Cast":
        source, target = (model.dtypes.get(t.name) for t in (node.inputs[0], node.outputs[0]))
        return source is not None and source == target
    if node.op in _CHANGES_ONLY_SHAPE:
        return _same_shape(model.shape_of(node.inputs[0]), model.shape_of(node.outputs[0]))
    if node.op == "Transpose":
        return list(node.attrs.get("perm", [])) == list(range(len(node.attrs.get("perm", ())))) != []
    if node.op in _OF_ONE_INPUT:
        return len(node.inputs) == 1
    if node.op == "Pad":
        pads = node.attrs.get("pads")
        if pads is None and has_input(node, 1) and isinstance(node.inputs[1], gs.Constant):
            pads = model.values(node.inputs[1])
        return pads is not None and not np.any(pads)
    if node.op == "Expand":
        readers = [] if node.outputs[0].name in pinned else list(node.outputs[0].outputs)
        return bool(readers) and all(_broadcasts(model, reader, node) for reader in readers)
    return False


def _broadcasts(model: Model, reader: gs.Node, expand: gs.Node) -> bool:
    """Whether an operator gives the same of what an Expand reads as of what it makes."""
    own, after = model.shape_of(expand.inputs[0]), model.shape_of(expand.outputs[0])
    others = [model.shape_of(tensor) for tensor in reader.inputs if tensor is not expand.outputs[0]]
    lengths = [shape for shape in others if shape is not None]
    known = BROADCASTING | (_OF_MANY_OPERANDS if model.opset >= _THESE_BROADCAST_SINCE else frozenset())
    if not is_standard(reader) or reader.op not in known or own is None or after is None:
        return False
    if len(lengths) < len(others) or len(after) > max((len(shape) for shape in lengths), default=-1):
        return False
    for axis in range(-len(after), 0):
        before = own[axis] if len(own) >= -axis else 1
        grows = before == 1 and after[axis] != 1
        met = any(shape[axis] == after[axis] for shape in lengths if len(shape) >= -axis)
        if after[axis] is None or (not met if grows else before != after[axis]):
            return False
    return True


def _dropout(node: gs.Node, pinned: frozenset[str]) -> str | None:
    """Return why a Dropout cannot be removed, None if it can."""
    for mask in node.outputs[1:]:
        if mask.name and (mask.outputs or mask.name in pinned):
            return f"its mask '{mask.name}' is used"
    if has_input(node, 2):
        training = node.inputs[2]
        if not isinstance(training, gs.Constant):
            return f"whether it is in training is computed ('{training.name}')"
        if np.any(training.values):
            return "is in training mode"
    return None


def _same_shape(source: Shape | None, target: Shape | None) -> bool:
    """Whether two shapes of the same number of elements are equal whatever the input.

    One dimension may be unknown: the number of elements then leaves it no choice, the others being equal and not 0.
    """
    if source is None or target is None or len(source) != len(target):
        return False
    known = [isinstance(a, int) and a == b and a > 0 for a, b in zip(source, target, strict=True)]
    if known.count(False) > 1:
        return False
    return all(
        k or not (isinstance(a, int) and isinstance(b, int)) for k, a, b in zip(known, source, target, strict=True)
    )


def _pinned_on_both_sides(model: Model, node: gs.Node, pinned: frozenset[str]) -> str | None:
    """Return why neither x nor y can give up its name, None if one can."""
    source, target = node.inputs[0], node.outputs[0]
    if target.name not in pinned:
        return None
    where = f"its output '{target.name}' must keep its name"
    if isinstance(source, gs.Constant):
        return f"{where} and its input is constant"
    if not source.inputs:
        return f"{where} and its input '{source.name}' is computed by no node"
    if source.name in pinned:
        return f"{where}, and so must its input '{source.name}'"
    if model.dtypes.get(target.name, onnx.TensorProto.UNDEFINED) != model.dtypes.get(source.name):
        return f"{where} and is declared with another type than its input"
    return None


def _bypass(node: gs.Node, pinned: frozenset[str]) -> None:
    """Connect readers of the node's output to its input, and cut the node's links."""
    source, target = node.inputs[0], node.outputs[0]
    node.inputs.clear()
    node.outputs.clear()
    old, new = target, source
    if target.name in pinned:
        producer = source.inputs[0]
        position = next(i for i, tensor in enumerate(producer.outputs) if tensor is source)
        producer.outputs[position] = target
        old, new = source, target
    for reader in list(old.outputs):
        for position, tensor in enumerate(reader.inputs):
            if tensor is old:
                reader.inputs[position] = new
