"""One-dimensional convolutions, and what stands between them, in two dimensions: N x C x L becomes N x C x 1 x L.

onnxruntime's convolutions that take several channels at once, and its layout in blocks of channels, are for planes; a
network for sound or sensors goes by general matrix products instead. Unsqueeze and Squeeze at the borders cost nothing.
The numbers are the same but for rounding; it is done only where a race is won.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxcompress.analysis.channels.operators.elementwise import broadcasting, unary
from onnxcompress.analysis.channels.operators.registry import HANDLERS
from onnxcompress.errors import RecipeError
from onnxcompress.graph import Model
from onnxcompress.links import has_input
from onnxcompress.operators import CONVOLUTIONS, is_standard
from onnxcompress.passes.base import Decision, PassContext, Plan, Provenance, Skipped
from onnxcompress.passes.cleanup.rule import (
    Rule,
    excluded,
    pinned_names,
    planned_node,
)

_AXIS = 2
"""Where the axis of length one is put in."""
_RANK = 3
_FIRST_OPSET_WITH_AXES_AS_INPUT = 13
_FIRST_OPSET_WITH_PADS_AS_INPUT = 11

_WINDOWS = CONVOLUTIONS | {"MaxPool", "AveragePool", "LpPool"}
_OF_ANY_RANK = frozenset({"BatchNormalization", "InstanceNormalization"})
_OF_ANY_RANK |= {"GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"}
# {attribute: what it holds for the new axis}, where the other axis has one number; pads have two.
_FILLED = {"kernel_shape": 1, "strides": 1, "dilations": 1, "output_padding": 0, "output_shape": 1}


class PlanarConvolutions(Rule):
    """Writes one-dimensional convolutions as two-dimensional ones."""

    name: ClassVar[str] = "conv2d"
    does: ClassVar[str] = "writes one-dimensional convolutions as two-dimensional ones"
    races: ClassVar[bool] = True

    def found(self, model: Model, context: PassContext) -> Iterator[Decision | Skipped]:
        """Yield the convolutions, and the nodes behind them that can go along; those that --exclude names are told."""
        chosen: list[gs.Node] = []
        reached: set[str] = set()
        for node in model.nodes:
            if node.op not in CONVOLUTIONS and not any(tensor.name in reached for tensor in node.inputs):
                continue
            if not _can_be_planar(model, node):
                continue
            reason = excluded([node], context)
            if reason is not None:
                yield Skipped(node.name, reason)
                continue
            chosen.append(node)
            reached.add(node.outputs[0].name)
        if chosen:
            yield {"node": chosen[0].name, "op": chosen[0].op, "nodes": [node.name for node in chosen]}

    def rewrite(self, model: Model, plan: Plan, context: PassContext) -> Provenance:
        """Rewrite the planned nodes.

        Raises:
            RecipeError: the plan names nodes that the model does not have, or that work in one dimension no more.
        """
        named = {node.name: node for node in model.nodes}
        for decision in plan.decisions:
            chosen = [planned_node(named, {"node": name}) for name in decision["nodes"]]
            for node in chosen:
                if not _can_be_planar(model, node):
                    raise RecipeError(
                        f"plan: clean-up writes '{node.name}' in two dimensions, which does not work in one in this "
                        "model; the plan is another's"
                    )
            _Rewriting(model, chosen).run()
        return {}


def _can_be_planar(model: Model, node: gs.Node) -> bool:
    if not is_standard(node) or len([t for t in node.outputs if t.name]) != 1 or not node.inputs:
        return False
    if len(model.shape_of(node.outputs[0]) or ()) != _RANK:
        return False
    if node.op == "Concat" or HANDLERS.get(node.op) is broadcasting:
        return all(isinstance(tensor, gs.Constant) or _has_lines(model, tensor) for tensor in node.inputs)
    if not _has_lines(model, node.inputs[0]):
        return False
    rest = [tensor for tensor in node.inputs[1:] if tensor.name]
    constants = all(isinstance(tensor, gs.Constant) for tensor in rest)
    if node.op in CONVOLUTIONS:
        return constants and rest[0].shape is not None and len(rest[0].shape) == _RANK
    if node.op in _WINDOWS or node.op in _OF_ANY_RANK:
        return constants
    if node.op == "Pad":
        return constants and not has_input(node, 3)
    return HANDLERS.get(node.op) is unary and all(isinstance(t, gs.Constant) and t.values.size == 1 for t in rest)


def _has_lines(model: Model, tensor: gs.Tensor) -> bool:
    """Whether a tensor that is computed has the shape N x C x L."""
    return isinstance(tensor, gs.Variable) and len(model.shape_of(tensor) or ()) == _RANK


class _Rewriting:
    """Writes the chosen nodes of one model in two dimensions."""

    def __init__(self, model: Model, chosen: Iterable[gs.Node]) -> None:
        self._model = model
        self._chosen = {id(node) for node in chosen}
        self._planar: dict[int, gs.Variable] = {}
        self._weights: dict[int, gs.Constant] = {}
        self._axes: gs.Constant | None = None

    def run(self) -> None:
        pinned = pinned_names(self._model)
        nodes: list[gs.Node] = []
        for node in list(self._model.nodes):
            if id(node) not in self._chosen:
                nodes.append(node)
                continue
            for position, tensor in enumerate(list(node.inputs)):
                if isinstance(tensor, gs.Variable) and tensor.name:
                    if id(tensor) not in self._planar:
                        self._planar[id(tensor)] = self._model.new_variable(f"{tensor.name}_2d")
                        nodes.append(self._change("Unsqueeze", tensor, self._planar[id(tensor)]))
                    node.inputs[position] = self._planar[id(tensor)]
            self._rewrite_constants(node)
            _rewrite_attributes(node)
            target = node.outputs[0]
            planar = self._planar[id(target)] = self._model.new_variable(f"{target.name}_2d")
            node.outputs[0] = planar
            nodes.append(node)
            if target.name in pinned or any(id(reader) not in self._chosen for reader in target.outputs):
                nodes.append(self._change("Squeeze", planar, target))
        self._model.graph.nodes[:] = nodes

    def _change(self, op: str, source: gs.Tensor, target: gs.Tensor) -> gs.Node:
        """Return the node between a tensor and its other form."""
        inputs, attributes = [source], {}
        if self._model.opset < _FIRST_OPSET_WITH_AXES_AS_INPUT:
            attributes = {"axes": [_AXIS]}
        else:
            self._axes = self._axes or self._model.new_constant("axis_of_height", np.array([_AXIS], np.int64))
            inputs.append(self._axes)
        line = source if op == "Unsqueeze" else target
        return gs.Node(op, self._model.unique_name(f"{line.name}_{op.lower()}"), attributes, inputs, [target])

    def _rewrite_constants(self, node: gs.Node) -> None:
        if node.op in CONVOLUTIONS:
            self._widen(node, 1)
        elif node.op == "Pad":
            self._widen_pads(node)
        elif node.op == "Concat" or HANDLERS.get(node.op) is broadcasting:
            for position, tensor in enumerate(node.inputs):
                if isinstance(tensor, gs.Constant) and tensor.values.ndim > 1:
                    self._widen(node, position)

    def _widen(self, node: gs.Node, position: int) -> None:
        """Put an axis of length one in front of a constant's last axis; all that read it share the new one."""
        tensor = node.inputs[position]
        if id(tensor) not in self._weights:
            values = np.expand_dims(self._model.values(tensor), tensor.values.ndim - 1)
            self._weights[id(tensor)] = self._model.new_constant(f"{tensor.name}_2d", values)
        node.inputs[position] = self._weights[id(tensor)]

    def _widen_pads(self, node: gs.Node) -> None:
        if self._model.opset < _FIRST_OPSET_WITH_PADS_AS_INPUT:
            node.attrs["pads"] = _with_axis(node.attrs["pads"], 0)
        else:
            pads = self._model.values(node.inputs[1]).tolist()
            self._model.set_input(node, 1, np.array(_with_axis(pads, 0), np.int64))


def _with_axis(pads: list[Any], value: int) -> list[Any]:
    """Return beginnings and ends with a further axis in front of the last."""
    half = len(pads) // 2
    return [*pads[: half - 1], value, pads[half - 1], *pads[half:-1], value, pads[-1]]


def _rewrite_attributes(node: gs.Node) -> None:
    if node.op == "Concat":
        axis = int(node.attrs["axis"]) % _RANK
        node.attrs["axis"] = axis + (axis >= _AXIS)
    if node.op not in _WINDOWS:
        return
    for name, value in _FILLED.items():
        if node.attrs.get(name):
            node.attrs[name] = [value, *node.attrs[name]]
    if node.attrs.get("pads"):
        node.attrs["pads"] = _with_axis(node.attrs["pads"], 0)
