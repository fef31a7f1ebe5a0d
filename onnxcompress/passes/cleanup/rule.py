"""What the clean-up rules share: names that must stay, plans that fit the model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import ClassVar

import onnx_graphsurgeon as gs

from onnxcompress.errors import RecipeError
from onnxcompress.graph import Model
from onnxcompress.passes.base import Decision, Pass, PassContext, Plan, Skipped

EXCLUDED = "excluded by --exclude"


class Rule(Pass):
    """A step of the clean-up.

    Attributes:
        does: what it does, in plain words.
        races: whether the form it writes is not faster everywhere, so that a race decides.
        faster_on: the providers on which it is known to be faster, for runs without a race.
        comes_last: whether it waits until all else is done, because other passes know an operator by its usual form.
    """

    does: ClassVar[str]
    races: ClassVar[bool] = False
    faster_on: ClassVar[frozenset[str]] = frozenset()
    comes_last: ClassVar[bool] = False

    @abstractmethod
    def found(self, model: Model, context: PassContext) -> Iterator[Decision | Skipped]:
        """Yield what the step would do, and the nodes that it leaves alone for a reason worth telling."""

    def plan(self, model: Model, context: PassContext) -> Plan:
        """Return what is `found`, sorted into decisions and nodes left alone."""
        found = list(self.found(model, context))
        skipped = tuple(each for each in found if isinstance(each, Skipped))
        return Plan(self.name, tuple(each for each in found if not isinstance(each, Skipped)), skipped)


def pinned_names(model: Model) -> frozenset[str]:
    """Return the names of tensors that someone outside the graph's nodes reads by name: outputs and sub-graphs."""
    return frozenset(tensor.name for tensor in model.graph.outputs) | model.captured_names()


def excluded(nodes: Iterable[gs.Node], context: PassContext) -> str | None:
    """Return the reason to leave a rewrite that touches these nodes, if the user excluded one of them."""
    for node in nodes:
        if context.is_excluded(node.name):
            return f"'{node.name}' is {EXCLUDED}"
    return None


def planned_node(nodes: Mapping[str, gs.Node], decision: Decision, key: str = "node") -> gs.Node:
    """Return the node that a decision names.

    Raises:
        RecipeError: the model has no such node.
    """
    name = str(decision.get(key))
    if name not in nodes:
        raise RecipeError(f"plan: clean-up names node '{name}', which this model does not have; the plan is another's")
    return nodes[name]


def rewrite_pairs(model: Model, plan: Plan, key: str, join: Callable[[gs.Node, gs.Node, Decision], gs.Node]) -> None:
    """Rewrite the pairs of nodes that a plan names, and take out of each the one that is no longer needed.

    Args:
        key: of a decision's second node; the first is its `node`.
        join: rewrites a pair, and returns the node that goes, its links cut.

    Raises:
        RecipeError: the plan names nodes that the model does not have.
    """
    nodes = {node.name: node for node in model.nodes}
    pairs = [(planned_node(nodes, each), planned_node(nodes, each, key), each) for each in plan.decisions]
    remove_nodes(model, [join(*pair) for pair in pairs])


def remove_nodes(model: Model, removed: Iterable[gs.Node]) -> None:
    """Take nodes out of the graph, in one go; their links must already be cut."""
    gone = {id(node) for node in removed}
    model.graph.nodes[:] = [node for node in model.nodes if id(node) not in gone]
