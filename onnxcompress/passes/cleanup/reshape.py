"""Computed targets of Reshape that leave at most one length open become constants.

`Reshape(x, [n, g, c / g, h w])` with n, h and w read from x at run time and g, c known: n stands where x has it, so 0
(copy) says the same, and the one length left open is -1. The nodes that computed the target are then unused.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxcompress.analysis.shapes import ShapeValues, settled_target
from onnxcompress.graph import Model
from onnxcompress.passes.base import Decision, PassContext, Plan, Provenance, Skipped
from onnxcompress.passes.cleanup.rule import Rule, excluded, is_standard, planned_node


class ReshapeSettling(Rule):
    """Gives Reshape nodes constant targets."""

    name: ClassVar[str] = "reshape"
    does: ClassVar[str] = "makes targets of Reshape constant"

    def plan(self, model: Model, context: PassContext) -> Plan:
        """Find the targets to settle; a Reshape whose target stays computed says why."""
        shape_values = ShapeValues(model)
        decisions: list[Decision] = []
        skipped: list[Skipped] = []
        for node in model.nodes:
            if node.op != "Reshape" or not is_standard(node) or isinstance(node.inputs[1], gs.Constant):
                continue
            target = settled_target(model, node, shape_values)
            reason = excluded([node], context)
            if target is None:
                reason = f"more than one length of its target '{node.inputs[1].name}' is not known before the run"
            if target is None or reason is not None:
                skipped.append(Skipped(node.name, str(reason)))
            else:
                computed = node.inputs[1].name
                decisions.append({"node": node.name, "op": node.op, "computed": computed, "target": target})
        return Plan(self.name, tuple(decisions), tuple(skipped))

    def rewrite(self, model: Model, plan: Plan, context: PassContext) -> Provenance:
        """Put the planned targets in place.

        Raises:
            RecipeError: the plan names nodes that the model does not have.
        """
        nodes = {node.name: node for node in model.nodes}
        for decision in plan.decisions:
            model.set_input(planned_node(nodes, decision), 1, np.array(decision["target"], np.int64))
        return {}
