"""Activations that an export spreads over several nodes become the operators that runtimes know.

x * Clip(x + 3, 0, 6) / 6 is a HardSwish in four nodes; runtimes that fuse an activation into the convolution before it
see additions and products instead, and write a whole tensor four times. What nodes compute of one tensor's values, one
by one, by sums, products and bounds with constants, is a polynomial between breaks (`linalg.piecewise`). So however it
is written, it is told by what it is:

    0 | a x + b | 1             HardSigmoid(a, b)
    0 | a x^2 + b x | x         x * HardSigmoid(a, b): a HardSwish where a = 1/6, b = 1/2
    0 | x                       Relu
    a x | x                     LeakyRelu(a)
    low | x | high              Clip(low, high), either bound may be missing

The new form is the same function; its values differ by rounding. Of float32 only: what narrower types round in between
is more than that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnxcompress.errors import RecipeError
from onnxcompress.graph import Model
from onnxcompress.linalg.piecewise import Coefficients, Piecewise, X
from onnxcompress.links import cut_links
from onnxcompress.operators import is_standard
from onnxcompress.passes.base import Decision, PassContext, Plan, Provenance, Skipped
from onnxcompress.passes.cleanup.rule import (
    Rule,
    excluded,
    pinned_names,
    planned_node,
    remove_nodes,
)

_MOST_NODES = 8
_MOST_DEGREE = 3
_UNBOUNDED = 3e38
"""A bound this far out is none: exports write the largest float32."""

_FIRST_OPSET_WITH_BOUNDS_AS_INPUTS = 11

_ZERO, _ONE = Piecewise.constant(0.0), Piecewise.constant(1.0)


class ActivationWriting(Rule):
    """Writes an activation that several nodes compute as one operator, a hard swish as two."""

    name: ClassVar[str] = "activation"
    does: ClassVar[str] = "writes activations of several nodes as one operator"
    races: ClassVar[bool] = True
    faster_on: ClassVar[frozenset[str]] = frozenset({"CPUExecutionProvider"})

    def found(self, model: Model, context: PassContext) -> Iterator[Decision | Skipped]:
        """Yield the activations."""
        skipped: dict[str, Skipped] = {}
        taken: set[str] = set()
        for found in _written_anew(model):
            nodes = found.nodes
            if taken.intersection(node.name for node in nodes):
                continue
            reason = excluded(nodes, context)
            if reason is not None:
                skipped.setdefault(found.end.name, Skipped(found.end.name, reason))
                continue
            taken.update(node.name for node in nodes)
            yield {
                "node": found.end.name,
                "op": found.end.op,
                "nodes": [node.name for node in nodes],
                "input": found.root.name,
                "output": found.end.outputs[0].name,
                "function": found.form.op,
                **found.form.parameters,
            }
        yield from (reason for name, reason in skipped.items() if name not in taken)

    def rewrite(self, model: Model, plan: Plan, context: PassContext) -> Provenance:
        """Write the planned activations anew.

        Raises:
            RecipeError: the plan names nodes that the model does not have.
        """
        named = {node.name: node for node in model.nodes}
        removed: list[gs.Node] = []
        for decision in plan.decisions:
            end = planned_node(named, decision)
            nodes = [planned_node(named, {"node": name}) for name in decision["nodes"]]
            root = next((t for node in nodes for t in node.inputs if t.name == decision["input"]), None)
            if root is None or end.name not in decision["nodes"]:
                raise RecipeError(f"plan: clean-up writes '{end.name}' of a tensor that it does not read in this model")
            model.insert_before(end, _written(model, end, root, decision))
            removed += nodes
        cut_links(removed)
        remove_nodes(model, removed)
        return {}


@dataclass(frozen=True)
class _Form:
    """An operator, `HardSwish` for x * HardSigmoid, and its parameters."""

    op: str
    parameters: Mapping[str, float | None]


@dataclass(frozen=True)
class _Found:
    """Nodes, in graph order, the last of which gives a known function of the root's values."""

    root: gs.Tensor
    nodes: Sequence[gs.Node]
    form: _Form

    @property
    def end(self) -> gs.Node:
        return self.nodes[-1]

    @property
    def is_shorter(self) -> bool:
        """Whether it takes fewer nodes as an operator, or is written with one that no runtime fuses."""
        count = 2 if self.form.op == "HardSwish" else 1
        return count < len(self.nodes) or (len(self.nodes) == 1 and self.end.op in ("Max", "Min", "PRelu"))


@dataclass(frozen=True)
class _Computed:
    """What a tensor holds, as a function of another one's values, and the numbers of the nodes that compute it."""

    function: Piecewise
    nodes: frozenset[int]


def activation_nodes(model: Model) -> frozenset[str]:
    """Return the names of nodes that are parts of activations in several nodes, for rules that would take one away."""
    return frozenset(node.name for found in _written_anew(model) for node in found.nodes)


def _written_anew(model: Model) -> list[_Found]:
    """Return the activations that can be written anew and are shorter then, those of the most nodes first."""
    pinned = pinned_names(model)
    return [found for found in _activations(model) if found.is_shorter and _are_alone(found.nodes, pinned)]


def _activations(model: Model) -> list[_Found]:
    """Return every known function that nodes compute of a tensor, those of the most nodes first."""
    known: dict[str, dict[str, _Computed]] = {}
    tensors: dict[str, gs.Tensor] = {}

    def of(tensor: gs.Tensor) -> dict[str, _Computed]:
        """Return a tensor as a function of those that it comes from, itself among them."""
        tensors[tensor.name] = tensor
        return {**known.get(tensor.name, {}), tensor.name: _Computed(X, frozenset())}

    found: list[_Found] = []
    for number, node in enumerate(model.nodes):
        operands = _operands(model, node)
        if operands is None:
            continue
        sources = [of(each) if isinstance(each, gs.Tensor) else each for each in operands]
        variable = [each for each in sources if isinstance(each, dict)]
        own = known[node.outputs[0].name] = {}
        for root in variable[0] if variable else ():
            if not all(root in each for each in variable):
                continue
            nodes = frozenset([number]).union(*(each[root].nodes for each in variable))
            if len(nodes) > _MOST_NODES:
                continue
            values = [each[root].function if isinstance(each, dict) else each for each in sources]
            function = _FUNCTIONS[node.op](node, values)
            if function is None or function.degree > _MOST_DEGREE:
                continue
            own[root] = _Computed(function, nodes)
            form = _form_of(function)
            if form is not None:
                found.append(_Found(tensors[root], [model.nodes[at] for at in sorted(nodes)], form))
    return sorted(found, key=lambda each: -len(each.nodes))


def _operands(model: Model, node: gs.Node) -> list[gs.Tensor | Piecewise | None] | None:
    """Return what a node reads, numbers as functions and what is not given as None.

    None for the whole where it is no function of values one by one: another operator, type or broadcast.
    """
    if node.op not in _FUNCTIONS or not is_standard(node) or len(node.outputs) != 1:
        return None
    if model.dtypes.get(node.outputs[0].name) != TensorProto.FLOAT:
        return None
    # What is computed here of one tensor has its shape, unless a constant of more axes widens it.
    ranks = [len(model.shape_of(t) or ()) for t in node.inputs if t.name and not isinstance(t, gs.Constant)]
    operands: list[gs.Tensor | Piecewise | None] = []
    for tensor in node.inputs:
        if not isinstance(tensor, gs.Constant):
            operands.append(tensor if tensor.name else None)
            continue
        values = model.values(tensor)
        if values.size != 1 or not np.isfinite(values).all() or values.ndim > min(ranks, default=0):
            return None
        operands.append(Piecewise.constant(float(values.reshape(-1)[0])))
    return operands


def _quotient(node: gs.Node, values: Sequence[Any]) -> Piecewise | None:
    divisor = values[1].number
    return values[0].scaled(1.0 / divisor) if divisor else None


def _bounded(function: Piecewise, low: float | None, high: float | None) -> Piecewise:
    if low is not None and low > -_UNBOUNDED:
        function = function.larger(Piecewise.constant(low))
    if high is not None and high < _UNBOUNDED:
        function = function.smaller(Piecewise.constant(high))
    return function


def _clip(node: gs.Node, values: Sequence[Any]) -> Piecewise | None:
    if len(values) == 1:
        return _bounded(values[0], node.attrs.get("min"), node.attrs.get("max"))
    given = [None if bound is None else bound.number for bound in values[1:]]
    if any(bound is not None and number is None for bound, number in zip(values[1:], given, strict=True)):
        return None
    low, high = (*given, None)[:2]
    return _bounded(values[0], low, high)


def _hard(x: Piecewise, slope: float, offset: float) -> Piecewise:
    return _bounded(x.scaled(slope) + Piecewise.constant(offset), 0.0, 1.0)


def _leaky(x: Piecewise, slope: float | None) -> Piecewise | None:
    return None if slope is None else x.larger(_ZERO) + x.smaller(_ZERO).scaled(slope)


_FUNCTIONS: Mapping[str, Callable[[gs.Node, Sequence[Any]], Piecewise | None]] = {
    "Add": lambda node, values: values[0] + values[1],
    "Sub": lambda node, values: values[0] + values[1].scaled(-1.0),
    "Mul": lambda node, values: values[0] * values[1],
    "Div": _quotient,
    "Neg": lambda node, values: values[0].scaled(-1.0),
    "Abs": lambda node, values: values[0].larger(values[0].scaled(-1.0)),
    "Relu": lambda node, values: values[0].larger(_ZERO),
    "LeakyRelu": lambda node, values: _leaky(values[0], float(node.attrs.get("alpha", 0.01))),
    "PRelu": lambda node, values: _leaky(values[0], values[1].number),
    "Clip": _clip,
    "Max": lambda node, values: reduce(Piecewise.larger, values),
    "Min": lambda node, values: reduce(Piecewise.smaller, values),
    "HardSigmoid": lambda node, values: _hard(
        values[0], float(node.attrs.get("alpha", 0.2)), float(node.attrs.get("beta", 0.5))
    ),
    "HardSwish": lambda node, values: values[0] * _hard(values[0], 1.0 / 6.0, 0.5),
}


def _form_of(function: Piecewise) -> _Form | None:
    """Return the operator that computes a function, None where there is none."""
    pieces = function.pieces
    first, last = (Piecewise((), (piece,)) for piece in (pieces[0], pieces[-1]))
    if len(pieces) == 2 and last.is_close(X):
        if first.is_close(_ZERO):
            return _Form("Relu", {})
        slope = first(1.0)
        if 0.0 < slope < 1.0 and first.is_close(X.scaled(slope)):
            return _Form("LeakyRelu", {"alpha": slope})
    clip = _clip_form(pieces)
    if clip is not None or len(pieces) != 3:
        return clip
    offset, slope, square = (*pieces[1], 0.0, 0.0)[:3]
    rises = first.is_close(_ZERO)
    other = last if rises else first
    if not rises and not last.is_close(_ZERO):
        return None
    if other.is_close(_ONE) and len(pieces[1]) == 2:
        return _Form("HardSigmoid", {"alpha": slope, "beta": offset})
    if other.is_close(X) and len(pieces[1]) == 3 and Piecewise.constant(offset).is_close(_ZERO):
        return _Form("HardSwish", {"alpha": square, "beta": slope})
    return None


def _clip_form(pieces: Sequence[Coefficients]) -> _Form | None:
    """Return the Clip that has these pieces."""
    inner = [number for number, piece in enumerate(pieces) if Piecewise((), (piece,)).is_close(X)]
    if len(pieces) == 1 or len(inner) != 1 or not len(pieces) - 2 <= inner[0] <= 1:
        return None
    low, high = pieces[: inner[0]], pieces[inner[0] + 1 :]
    if any(len(bound) > 1 for bound in (*low, *high)):
        return None
    return _Form("Clip", {"min": low[0][0] if low else None, "max": high[0][0] if high else None})


def _are_alone(nodes: Sequence[gs.Node], pinned: frozenset[str]) -> bool:
    """Whether nothing else reads what nodes before the last one compute."""
    inside = {id(node) for node in nodes}
    between = [node.outputs[0] for node in nodes[:-1]]
    return all(
        tensor.name not in pinned and all(id(reader) in inside for reader in tensor.outputs) for tensor in between
    )


def _written(model: Model, end: gs.Node, root: gs.Tensor, decision: Decision) -> list[gs.Node]:
    """Return the nodes that give the function of a decision, to the tensor that `end` gave, which it lets go of."""
    target = end.outputs[0]
    end.outputs.clear()
    op = str(decision["function"])
    name = model.unique_name(f"{end.name}_{op}")
    if op == "HardSwish":
        hard = model.new_variable(f"{target.name}_hard_sigmoid")
        slopes = {"alpha": float(decision["alpha"]), "beta": float(decision["beta"])}
        first = gs.Node("HardSigmoid", model.unique_name(f"{name}_hard_sigmoid"), slopes, [root], [hard])
        return [first, gs.Node("Mul", name, {}, [root, hard], [target])]
    if op == "Clip":
        bounds = {key: decision[key] for key in ("min", "max")}
        if model.opset < _FIRST_OPSET_WITH_BOUNDS_AS_INPUTS:
            given = {key: float(value) for key, value in bounds.items() if value is not None}
            return [gs.Node("Clip", name, given, [root], [target])]
        inputs = [
            gs.Variable.empty() if value is None else model.new_constant(f"{name}_{key}", np.array(value, np.float32))
            for key, value in bounds.items()
        ]
        if bounds["max"] is None:
            inputs.pop()
        return [gs.Node("Clip", name, {}, [root, *inputs], [target])]
    attributes = {key: float(decision[key]) for key in ("alpha", "beta") if key in decision}
    return [gs.Node(op, name, attributes, [root], [target])]
