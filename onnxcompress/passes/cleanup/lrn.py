"""LRN as a banded 1x1 convolution (`analysis.lrn`): exact but for rounding, and faster where convolutions are fast.

Of float32 only: the squares of a narrower type may overflow where LRN itself, which sums in float32, does not, and
nothing is faster in a wider one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from onnxcompress.analysis.lrn import band_convolution, why_no_band
from onnxcompress.graph import Model
from onnxcompress.operators import is_standard
from onnxcompress.passes.base import Decision, PassContext, Plan, Provenance, Skipped
from onnxcompress.passes.cleanup.rule import (
    Rule,
    excluded,
    planned_node,
)


class LrnRewriting(Rule):
    """Writes LRN as square, banded Conv, roots and quotient."""

    name: ClassVar[str] = "lrn"
    does: ClassVar[str] = "writes LRN as a convolution"
    races: ClassVar[bool] = True
    faster_on: ClassVar[frozenset[str]] = frozenset({"CPUExecutionProvider"})

    def found(self, model: Model, context: PassContext) -> Iterator[Decision | Skipped]:
        """Yield the nodes to rewrite, and for every other the reason."""
        for node in model.nodes:
            if node.op != "LRN" or not is_standard(node):
                continue
            reason = excluded([node], context) or why_no_band(model, node)
            if reason is None and float(node.attrs.get("alpha", 1e-4)) <= 0:
                reason = "its alpha is not positive"
            if reason is None and model.dtype_of(node.inputs[0]).name != "float32":
                reason = f"it computes in {model.dtype_of(node.inputs[0])}, and only float32 is rewritten"
            if reason is not None:
                yield Skipped(node.name, reason)
                continue
            channels = (model.shape_of(node.inputs[0]) or ())[1]
            yield {"node": node.name, "op": node.op, "channels": channels, "size": int(node.attrs["size"])}

    def rewrite(self, model: Model, plan: Plan, context: PassContext) -> Provenance:
        """Rewrite the planned nodes.

        Raises:
            RecipeError: the plan names nodes that the model does not have.
        """
        nodes = {node.name: node for node in model.nodes}
        for decision in plan.decisions:
            band_convolution(model, planned_node(nodes, decision))
        return {}
