"""Computed targets of Reshape that leave at most one length open become constants, and Gathers in order Reshapes.

`Reshape(x, [n, g, c / g, h w])` with n, h and w read from x at run time and g, c known: n stands where x has it, so 0
(copy) says the same, and the one length left open is -1. The nodes that computed the target are then unused.

`Gather(Reshape(x, [-1]), i)` with indices i that count through all of it in their own row-major order, as strided views
are exported, is x in another shape: Reshape(x, shape of the result).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxcompress.analysis.positions import positions, same_number_of_elements
from onnxcompress.analysis.shapes import ShapeValues, settled_target
from onnxcompress.errors import RecipeError
from onnxcompress.graph import Model
from onnxcompress.operators import is_standard
from onnxcompress.passes.base import Decision, PassContext, Plan, Provenance, Skipped
from onnxcompress.passes.cleanup.rule import (
    Rule,
    excluded,
    planned_node,
)

_CHANGES_ONLY_SHAPE = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})


class ReshapeSettling(Rule):
    """Gives Reshape nodes constant targets, and makes one of a Gather that moves nothing."""

    name: ClassVar[str] = "reshape"
    does: ClassVar[str] = "makes targets of Reshape constant, and Gathers in order Reshapes"

    def found(self, model: Model, context: PassContext) -> Iterator[Decision | Skipped]:
        """Yield the targets to settle and the Gathers in order; a Reshape whose target stays computed says why."""
        shape_values = ShapeValues(model)
        for node in model.nodes:
            gathered = _gather_in_order(model, node, shape_values)
            if gathered is not None:
                if (why_not := excluded([node], context)) is not None:
                    yield Skipped(node.name, why_not)
                else:
                    source, shape = gathered
                    yield {"node": node.name, "op": node.op, "source": source.name, "target": shape}
                continue
            if node.op != "Reshape" or not is_standard(node) or isinstance(node.inputs[1], gs.Constant):
                continue
            target = settled_target(model, node, shape_values)
            reason = excluded([node], context)
            if target is None:
                reason = f"more than one length of its target '{node.inputs[1].name}' is not known before the run"
            if target is None or reason is not None:
                yield Skipped(node.name, str(reason))
            else:
                yield {"node": node.name, "op": node.op, "computed": node.inputs[1].name, "target": target}

    def rewrite(self, model: Model, plan: Plan, context: PassContext) -> Provenance:
        """Put the planned targets in place.

        Raises:
            RecipeError: the plan names nodes that the model does not have, or that are others in it.
        """
        nodes = {node.name: node for node in model.nodes}
        shape_values = ShapeValues(model)
        planned = [(planned_node(nodes, decision), decision) for decision in plan.decisions]
        sources = {node.name: _gather_in_order(model, node, shape_values) for node, _ in planned}
        for node, decision in planned:
            target = np.array(decision["target"], np.int64)
            if decision["op"] != "Gather":
                model.set_input(node, 1, target)
                continue
            gathered = sources[node.name]
            if gathered is None or gathered[0].name != decision["source"] or gathered[1] != decision["target"]:
                raise RecipeError(f"plan: clean-up reshapes by node '{node.name}', which moves something in this model")
            inputs, outputs = [gathered[0], model.new_constant(f"{node.name}_shape", target)], list(node.outputs)
            node.outputs.clear()
            model.replace_node(node, [gs.Node("Reshape", node.name, {}, inputs, outputs)])
        return {}


def _gather_in_order(model: Model, node: gs.Node, shape_values: ShapeValues) -> tuple[gs.Tensor, list[int]] | None:
    """Return what a Gather that moves nothing is a Reshape of, and its target; None for any other node."""
    if node.op != "Gather" or not is_standard(node):
        return None
    data = node.inputs[0]
    before, indices = model.shape_of(data), positions(model, shape_values, node.inputs[1])
    if not before or isinstance(data, gs.Constant) or indices is None or not indices.count_up:
        return None
    if all(length == 1 for length in indices.shape):  # x[:, 0], which shape arithmetic is full of
        return None
    axis = int(node.attrs.get("axis", 0)) % len(before)
    after = (*before[:axis], *indices.shape, *before[axis + 1 :])
    # However it was shaped in between: the lengths of what came first are more often known.
    sources = [data]
    while (maker := next(iter(sources[-1].inputs), None)) is not None:
        if not is_standard(maker) or maker.op not in _CHANGES_ONLY_SHAPE or isinstance(maker.inputs[0], gs.Constant):
            break
        sources.append(maker.inputs[0])
    whole = any(same_number_of_elements(model.shape_of(source) or (None,), after) for source in sources)
    copies = axis if len(sources) == 1 else 0  # leading lengths that the source has at the same places
    target = [dim if isinstance(dim, int) else 0 if at < copies else -1 for at, dim in enumerate(after)]
    return (sources[-1], target) if whole and 0 not in after and target.count(-1) <= 1 else None
