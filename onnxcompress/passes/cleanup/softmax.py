"""Softmax along an axis that others follow, by a maximum, exponentials and a sum.

onnxruntime's kernel for processors works along the last axis. For any other it turns the tensor around and back, with
rows as short as there are classes: of two classes for each pixel that takes four times as long as

    Softmax(x) = Exp(d) / ReduceSum(Exp(d)),    LogSoftmax(x) = d - Log(ReduceSum(Exp(d))),    d = x - ReduceMax(x)

which is the same but for rounding. Exports that turn the tensor around themselves (those of PyTorch before opset 13)
lose their Transposes. Of float32 only: sums of a narrower type are coarser than Softmax's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnxcompress.errors import RecipeError
from onnxcompress.graph import Model
from onnxcompress.operators import is_standard
from onnxcompress.passes.base import Decision, PassContext, Plan, Provenance, Skipped
from onnxcompress.passes.cleanup.rule import (
    Rule,
    excluded,
    pinned_names,
    planned_node,
    remove_nodes,
)

_FIRST_OPSET_OF_ONE_AXIS = 13
_FIRST_OPSETS_WITH_AXES_AS_INPUT = {"ReduceSum": 13, "ReduceMax": 18}


class SoftmaxWriting(Rule):
    """Writes Softmax and LogSoftmax along another axis than the last by elementary operators."""

    name: ClassVar[str] = "softmax"
    does: ClassVar[str] = "writes Softmax along channels by a maximum and a sum"
    races: ClassVar[bool] = True
    comes_last: ClassVar[bool] = True

    def found(self, model: Model, context: PassContext) -> Iterator[Decision | Skipped]:
        """Yield the nodes to rewrite; those that --exclude names are told."""
        pinned = pinned_names(model)
        for node in model.nodes:
            site = _site(model, node, pinned)
            if site is None:
                continue
            reason = excluded(site.nodes, context)
            if reason is not None:
                yield Skipped(node.name, reason)
                continue
            nodes = [each.name for each in site.nodes]
            yield {"node": node.name, "op": node.op, "nodes": nodes, "axis": site.axis}

    def rewrite(self, model: Model, plan: Plan, context: PassContext) -> Provenance:
        """Rewrite the planned nodes.

        Raises:
            RecipeError: the plan names nodes that the model does not have, or that work along the last axis in it.
        """
        named = {node.name: node for node in model.nodes}
        pinned = pinned_names(model)
        for decision in plan.decisions:
            node = planned_node(named, decision)
            site = _site(model, node, pinned)
            if site is None or [each.name for each in site.nodes] != decision["nodes"]:
                raise RecipeError(
                    f"plan: clean-up writes '{node.name}' by a maximum and a sum, which has no such form in this "
                    "model; the plan is another's"
                )
            _write(model, node, site)
        return {}


@dataclass(frozen=True)
class _Site:
    """A Softmax with the Transposes around it that go along.

    Attributes:
        nodes: from the first to the last.
        axis: of the first one's input along which it works, not the last.
    """

    nodes: tuple[gs.Node, ...]
    axis: int


def _site(model: Model, node: gs.Node, pinned: frozenset[str]) -> _Site | None:
    """Return what is rewritten with a node, None where that is nothing."""
    if node.op not in ("Softmax", "LogSoftmax") or not is_standard(node):
        return None
    shape = model.shape_of(node.inputs[0])
    if not shape or model.dtypes.get(node.inputs[0].name) != TensorProto.FLOAT:
        return None
    of_one_axis = model.opset >= _FIRST_OPSET_OF_ONE_AXIS
    axis = int(node.attrs.get("axis", -1 if of_one_axis else 1)) % len(shape)
    if axis == len(shape) - 1:
        return _turned_site(node, pinned)
    is_last = all(length == 1 for length in shape[axis + 1 :])
    return None if is_last or not of_one_axis else _Site((node,), axis)


def _turned_site(node: gs.Node, pinned: frozenset[str]) -> _Site | None:
    """Return a node along the last axis of a tensor that is turned around for it alone, and back behind it."""
    source, target = node.inputs[0], node.outputs[0]
    before = source.inputs[0] if source.inputs else None
    after = target.outputs[0] if len(target.outputs) == 1 else None
    turned = [each for each in (before, after) if each is not None and each.op == "Transpose" and is_standard(each)]
    if len(turned) != 2 or len(source.outputs) != 1 or {source.name, target.name} & pinned:
        return None
    first, second = (each.attrs.get("perm") for each in turned)
    if not first or not second or [first[axis] for axis in second] != sorted(first):
        return None
    return None if first[-1] == len(first) - 1 else _Site((turned[0], node, turned[1]), first[-1])


def _write(model: Model, node: gs.Node, site: _Site) -> None:
    source, target = site.nodes[0].inputs[0], site.nodes[-1].outputs[0]
    nodes: list[gs.Node] = []

    def add(op: str, suffix: str, inputs: Sequence[gs.Tensor], output: gs.Tensor | None = None) -> gs.Tensor:
        result = model.new_variable(f"{target.name}_{suffix}") if output is None else output
        attributes: dict[str, object] = {}
        if op in _FIRST_OPSETS_WITH_AXES_AS_INPUT:
            if model.opset < _FIRST_OPSETS_WITH_AXES_AS_INPUT[op]:
                attributes = {"axes": [site.axis]}
            else:
                axes = model.new_constant(f"{node.name}_{suffix}_axes", np.array([site.axis], np.int64))
                inputs = [*inputs, axes]
        nodes.append(gs.Node(op, model.unique_name(f"{node.name}_{suffix}"), attributes, list(inputs), [result]))
        return result

    site.nodes[-1].outputs.clear()
    least = add("Sub", "difference", [source, add("ReduceMax", "largest", [source])])
    exponential = add("Exp", "exponential", [least])
    total = add("ReduceSum", "total", [exponential])
    if node.op == "Softmax":
        add("Div", "quotient", [exponential, total], target)
    else:
        add("Sub", "rest", [least, add("Log", "logarithm", [total])], target)
    model.replace_node(site.nodes[-1], nodes)
    for each in site.nodes[:-1]:
        each.inputs.clear()
        each.outputs.clear()
    remove_nodes(model, site.nodes[:-1])
