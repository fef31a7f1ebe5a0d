"""Nodes that nothing reads are removed: what earlier steps leave behind, and what the exporter left."""

from __future__ import annotations

from typing import ClassVar

from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext, Plan, Provenance
from onnxcompress.passes.cleanup.rule import Rule


class UnusedRemoval(Rule):
    """Removes nodes none of whose outputs reaches a graph output."""

    name: ClassVar[str] = "unused"
    does: ClassVar[str] = "removes nodes that nothing reads"

    def plan(self, model: Model, context: PassContext) -> Plan:
        """Find the nodes that nothing reads."""
        working = model.copy()
        working.remove_unused()
        used = {node.name for node in working.nodes}
        return Plan(self.name, tuple({"node": n.name, "op": n.op} for n in model.nodes if n.name not in used))

    def rewrite(self, model: Model, plan: Plan, context: PassContext) -> Provenance:
        """Remove every node that nothing reads."""
        model.remove_unused()
        return {}
