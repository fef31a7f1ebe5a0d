"""Nodes that nothing reads are removed: what earlier steps leave behind, and what the exporter left."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from onnxcompress.graph import Model
from onnxcompress.passes.base import Decision, PassContext, Plan, Provenance, Skipped
from onnxcompress.passes.cleanup.rule import Rule


class UnusedRemoval(Rule):
    """Removes nodes none of whose outputs reaches a graph output."""

    name: ClassVar[str] = "unused"
    does: ClassVar[str] = "removes nodes that nothing reads"

    def found(self, model: Model, context: PassContext) -> Iterator[Decision | Skipped]:
        """Yield the nodes that nothing reads."""
        working = model.copy()
        working.remove_unused()
        used = {node.name for node in working.nodes}
        yield from ({"node": node.name, "op": node.op} for node in model.nodes if node.name not in used)

    def rewrite(self, model: Model, plan: Plan, context: PassContext) -> Provenance:
        """Remove every node that nothing reads."""
        model.remove_unused()
        return {}
