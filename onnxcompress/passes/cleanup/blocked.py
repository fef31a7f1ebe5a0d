"""Channels' slopes and shifts in forms that leave a tensor in blocks of channels.

On processors where convolutions take several channels at once, onnxruntime keeps tensors in blocks of channels from one
convolution to the next. It knows BatchNormalization, Relu and sums of two tensors in that layout; a PRelu, or a product
with a constant, has the tensor brought back to planes and into blocks again, which takes as long as the operator. So

    PRelu(x, s)    x + (1 - s) Relu(-x): two BatchNormalizations, a Relu and an Add
    s x + b        one BatchNormalization, where no neighbour took them (`batchnorm`)

which is the same but for rounding, and more work where there are no blocks: it is done only where a race is won.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnxcompress.errors import RecipeError
from onnxcompress.graph import Model
from onnxcompress.operators import is_standard
from onnxcompress.passes.base import Decision, PassContext, Plan, Provenance, Skipped
from onnxcompress.passes.cleanup.affine import SCALES, Affine, affine_of, scaled_tensor
from onnxcompress.passes.cleanup.rule import (
    Rule,
    excluded,
    pinned_names,
    planned_node,
    remove_nodes,
)

_BLOCKED_RANK = 4

Floats = npt.NDArray[np.float32]


class BlockedForms(Rule):
    """Writes PRelu, and a factor with a summand, as BatchNormalization."""

    name: ClassVar[str] = "blocked"
    does: ClassVar[str] = "writes PRelu, and factor with summand, as BatchNormalization"
    races: ClassVar[bool] = True

    def found(self, model: Model, context: PassContext) -> Iterator[Decision | Skipped]:
        """Yield the nodes to rewrite; those that --exclude names are told."""
        pinned = pinned_names(model)
        taken: set[str] = set()
        for node in model.nodes:
            nodes = _nodes_of(model, node, pinned)
            if not nodes or taken.intersection(each.name for each in nodes):
                continue
            reason = excluded(nodes, context)
            if reason is not None:
                yield Skipped(node.name, reason)
                continue
            taken.update(each.name for each in nodes)
            channels = (model.shape_of(node.outputs[0]) or (0, 0))[1]
            yield {"node": node.name, "op": node.op, "nodes": [each.name for each in nodes], "channels": channels}

    def rewrite(self, model: Model, plan: Plan, context: PassContext) -> Provenance:
        """Rewrite the planned nodes.

        Raises:
            RecipeError: the plan names nodes that the model does not have, or that have no such form in it.
        """
        named = {node.name: node for node in model.nodes}
        pinned = pinned_names(model)
        writing = _Writing(model)
        removed: list[gs.Node] = []
        for decision in plan.decisions:
            nodes = _nodes_of(model, planned_node(named, decision), pinned)
            if [node.name for node in nodes] != decision["nodes"]:
                raise RecipeError(
                    f"plan: clean-up writes '{decision['node']}' as BatchNormalization, which has no such form in this "
                    "model; the plan is another's"
                )
            if nodes[-1].op == "PRelu":
                writing.prelu(nodes[-1])
            else:
                removed.append(writing.affine(*nodes))
        remove_nodes(model, removed)
        return {}


def _nodes_of(model: Model, node: gs.Node, pinned: frozenset[str]) -> list[gs.Node]:
    """Return what is written anew where `node` is its end; nothing where it is no such end."""
    shape = model.shape_of(node.outputs[0]) if node.outputs else None
    if not is_standard(node) or shape is None or len(shape) != _BLOCKED_RANK or not isinstance(shape[1], int):
        return []
    if model.dtypes.get(node.outputs[0].name) != TensorProto.FLOAT:
        return []
    if node.op == "PRelu":
        return [node] if _slopes(model, node) is not None and node.inputs[0].inputs else []
    if node.op not in SCALES or isinstance(affine_of(model, node), str):
        return []
    between = scaled_tensor(node)
    first = between.inputs[0] if between.inputs else None
    if first is None or first.op not in SCALES or not is_standard(first) or isinstance(affine_of(model, first), str):
        return []
    alone = len(between.outputs) == 1 and between.name not in pinned
    return [first, node] if alone and scaled_tensor(first).inputs else []


def _slopes(model: Model, node: gs.Node) -> Floats | None:
    """Return the slope of each channel, None where it is no constant or differs by place."""
    tensor, shape = node.inputs[1], model.shape_of(node.outputs[0])
    if not isinstance(tensor, gs.Constant) or shape is None or model.shape_of(node.inputs[0]) != shape:
        return None
    values = model.values(tensor)
    if (1,) * (_BLOCKED_RANK - values.ndim) + values.shape != (1, shape[1], 1, 1) or not np.isfinite(values).all():
        return None
    slopes: Floats = values.reshape(-1)
    return slopes


class _Writing:
    """Writes nodes of one model; what many of them read is there once."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._shared: dict[tuple[int, float], gs.Constant] = {}

    def prelu(self, node: gs.Node) -> None:
        """Replace a PRelu."""
        source, target = node.inputs[0], node.outputs[0]
        slopes = _slopes(self._model, node)
        assert slopes is not None, f"'{node.name}' has no slope for each channel"
        channels = len(slopes)
        negative, rectified, lifted = (
            self._model.new_variable(f"{target.name}_{part}") for part in ("negative", "rectified", "lifted")
        )
        rest = self._model.new_constant(f"{node.name}_rest", (1.0 - slopes.astype(np.float64)).astype(np.float32))
        node.outputs.clear()
        self._model.replace_node(
            node,
            [
                self._normalization(f"{node.name}_negative", source, negative, self._constant(channels, -1.0)),
                gs.Node("Relu", self._model.unique_name(f"{node.name}_rectified"), {}, [negative], [rectified]),
                self._normalization(f"{node.name}_lifted", rectified, lifted, rest),
                gs.Node("Add", self._model.unique_name(f"{node.name}_sum"), {}, [lifted, source], [target]),
            ],
        )

    def affine(self, first: gs.Node, second: gs.Node) -> gs.Node:
        """Put two nodes that scale and shift channels in the place of the second; return the first, to be removed."""
        inner, outer = affine_of(self._model, first), affine_of(self._model, second)
        assert isinstance(inner, Affine), inner
        assert isinstance(outer, Affine), outer
        source, target = scaled_tensor(first), second.outputs[0]
        scale, shift = outer.scale * inner.scale, outer.scale * inner.shift + outer.shift
        constants = [
            self._model.new_constant(f"{second.name}_{name}", values.astype(np.float32))
            for name, values in (("scale", scale), ("shift", shift))
        ]
        second.outputs.clear()
        self._model.replace_node(second, [self._normalization(f"{second.name}_affine", source, target, *constants)])
        first.inputs.clear()
        first.outputs.clear()
        return first

    def _normalization(
        self, name: str, source: gs.Tensor, target: gs.Tensor, scale: gs.Constant, shift: gs.Constant | None = None
    ) -> gs.Node:
        channels = len(scale.values)
        zeros, ones = self._constant(channels, 0.0), self._constant(channels, 1.0)
        inputs = [source, scale, zeros if shift is None else shift, zeros, ones]
        return gs.Node("BatchNormalization", self._model.unique_name(name), {"epsilon": 0.0}, inputs, [target])

    def _constant(self, channels: int, value: float) -> gs.Constant:
        key = channels, value
        if key not in self._shared:
            values = np.full(channels, value, np.float32)
            self._shared[key] = self._model.new_constant(f"{channels}_times_{value:g}", values)
        return self._shared[key]
