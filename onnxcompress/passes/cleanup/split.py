"""A sequence of parts, each of which is read by its place, is a Split: exporters write torch's `chunk` and `split` so.

    SplitToSequence(x, sizes) -> s;  SequenceAt(s, 0), SequenceAt(s, 1), …    =    Split(x, sizes)
    SequenceConstruct(a, b, …) -> s;  ConcatFromSequence(s)                   =    Concat(a, b, …)

The sizes are known before the run: given one by one, or by one number and a known length, the last part the smaller.
Nothing else knows sequences: not what follows channels, nor what counts MACs or quantises.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxcompress.errors import RecipeError
from onnxcompress.graph import Model
from onnxcompress.links import has_input
from onnxcompress.operators import is_standard
from onnxcompress.passes.base import Decision, PassContext, Plan, Provenance, Skipped
from onnxcompress.passes.cleanup.rule import (
    Rule,
    excluded,
    pinned_names,
    planned_node,
    remove_nodes,
)

_SIZES_ARE_AN_INPUT_SINCE = 13


class SequenceSplitting(Rule):
    """Writes sequences of parts as Split nodes."""

    name: ClassVar[str] = "split"
    does: ClassVar[str] = "writes a sequence of parts as Split"

    def found(self, model: Model, context: PassContext) -> Iterator[Decision | Skipped]:
        """Yield sequences of known parts; one that stays says why."""
        pinned = pinned_names(model)
        for node in model.nodes:
            if node.op == "ConcatFromSequence" and (made := _listed(node, pinned)) is not None:
                if (reason := excluded([node, made], context)) is not None:
                    yield Skipped(node.name, reason)
                else:
                    yield {"node": node.name, "op": node.op, "axis": _axis(node), "sizes": []}
            if node.op != "SplitToSequence" or not is_standard(node):
                continue
            sizes = _sizes(model, node)
            reason = excluded([node, *node.outputs[0].outputs], context)
            if sizes is None:
                reason = "the sizes of its parts are not known before the run"
            elif node.outputs[0].name in pinned or not all(_reads_one(each, len(sizes)) for each in _readers(node)):
                reason = "its parts are not only read one by one, at places known before the run"
            if reason is not None:
                yield Skipped(node.name, reason)
            else:
                yield {"node": node.name, "op": node.op, "axis": _axis(node), "sizes": sizes}

    def rewrite(self, model: Model, plan: Plan, context: PassContext) -> Provenance:
        """Put a Split in place of each planned node and of what reads it.

        Raises:
            RecipeError: the plan names nodes that the model does not have, or that are others in it.
        """
        nodes, pinned = {node.name: node for node in model.nodes}, pinned_names(model)
        for node, decision in [(planned_node(nodes, each), each) for each in plan.decisions]:
            if decision["op"] == "ConcatFromSequence":
                made = _listed(node, pinned) if node.op == decision["op"] else None
                if made is None:
                    raise RecipeError(f"plan: clean-up joins a list at '{node.name}', which this model has not there")
                _join(model, made, node)
                continue
            _write(model, node, int(decision["axis"]), [int(size) for size in decision["sizes"]])
        return {}


def _listed(node: gs.Node, pinned: frozenset[str]) -> gs.Node | None:
    """Return the node that lists what a ConcatFromSequence joins along an axis, where nothing else reads the list."""
    made = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
    if made is None or made.op != "SequenceConstruct" or not (is_standard(made) and is_standard(node)):
        return None
    is_alone = len(node.inputs[0].outputs) == 1 and node.inputs[0].name not in pinned
    return made if is_alone and not node.attrs.get("new_axis", 0) else None


def _join(model: Model, made: gs.Node, node: gs.Node) -> None:
    parts, result = list(made.inputs), node.outputs[0]
    made.inputs.clear()
    made.outputs.clear()
    node.outputs.clear()
    model.replace_node(node, [gs.Node("Concat", node.name, {"axis": _axis(node)}, parts, [result])])
    remove_nodes(model, [made])


def _write(model: Model, node: gs.Node, axis: int, sizes: list[int]) -> None:
    parts: dict[int, gs.Tensor] = {}
    again: list[gs.Node] = []
    readers = _readers(node)
    for reader in readers:
        place, part = int(reader.inputs[1].values) % len(sizes), reader.outputs[0]
        reader.inputs.clear()
        reader.outputs.clear()
        if place in parts:
            again.append(gs.Node("Identity", reader.name, {}, [parts[place]], [part]))
        else:
            parts[place] = part
    outputs = [parts.get(place) or model.new_variable(f"{node.name}_{place}") for place in range(len(sizes))]
    split = gs.Node("Split", node.name, {"axis": axis}, [node.inputs[0]], outputs)
    if model.opset >= _SIZES_ARE_AN_INPUT_SINCE:
        split.inputs.append(model.new_constant(f"{node.name}_sizes", np.array(sizes, np.int64)))
    else:
        split.attrs["split"] = sizes
    node.outputs.clear()
    model.replace_node(node, [split, *again])
    remove_nodes(model, readers)


def _readers(node: gs.Node) -> list[gs.Node]:
    return list(node.outputs[0].outputs)


def _reads_one(reader: gs.Node, count: int) -> bool:
    """Whether a node takes one of `count` parts, at a place that is known."""
    place = reader.inputs[1] if reader.op == "SequenceAt" and is_standard(reader) else None
    return isinstance(place, gs.Constant) and -count <= int(place.values) < count


def _axis(node: gs.Node) -> int:
    return int(node.attrs.get("axis", 0))


def _sizes(model: Model, node: gs.Node) -> list[int] | None:
    """Return the lengths of the parts, None where they are not known or nothing says them."""
    given = node.inputs[1] if has_input(node, 1) else None
    if not isinstance(given, gs.Constant):
        return None
    values = np.asarray(model.values(given))
    if values.ndim:
        return [int(size) for size in values]
    shape, size = model.shape_of(node.inputs[0]), int(values)
    length = shape[_axis(node)] if shape else None
    if not isinstance(length, int) or size < 1 or length < 1:
        return None
    return [min(size, length - start) for start in range(0, length, size)]
