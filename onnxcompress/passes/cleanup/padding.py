"""A Pad in front of convolutions and poolings becomes their own padding: one pass over the tensor less.

    Conv           pads with zeros
    AveragePool    pads with zeros that count (`count_include_pad`), or with nothing
    MaxPool        pads with what is never the largest: minus infinity or the least number, or a bound of its input from
                   below (zeros behind a Relu)

onnxruntime takes a Pad of zeros into Conv and AveragePool itself; in front of a MaxPool it brings the tensor out of its
blocked layout for it, and eight-bit forms have a tensor more to round, or one that holds infinities.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxcompress.errors import RecipeError
from onnxcompress.graph import Model
from onnxcompress.links import has_input
from onnxcompress.operators import is_standard
from onnxcompress.passes.base import Decision, PassContext, Plan, Provenance, Skipped
from onnxcompress.passes.cleanup.rule import (
    Rule,
    excluded,
    pinned_names,
    planned_node,
    remove_nodes,
)
from onnxcompress.serialization import tensor_dtype

_TAKERS = frozenset({"Conv", "AveragePool", "MaxPool"})
_NEVER_NEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Softplus", "Exp", "Abs", "Sqrt"})
_HANDS_ON_BOUNDS = frozenset({"MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool", "Concat", "Max"})
_MOST_NODES_BACK = 20


@dataclass(frozen=True)
class _Padding:
    """What a Pad adds.

    Attributes:
        before, after: positions added on each spatial axis.
        value: what they hold.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    value: float


class PadFolding(Rule):
    """Makes a Pad the padding of its readers, where each can take it."""

    name: ClassVar[str] = "pad"
    does: ClassVar[str] = "makes a Pad the padding of its readers"

    def found(self, model: Model, context: PassContext) -> Iterator[Decision | Skipped]:
        """Yield the Pads whose readers are all convolutions and poolings that can take them."""
        pinned = pinned_names(model)
        for node in model.nodes:
            padding = _padding_of(model, node)
            readers = list(node.outputs[0].outputs) if padding is not None else []
            if padding is None or not any(reader.op in _TAKERS for reader in readers):
                continue
            reason = _why_not(model, node, padding, pinned) or excluded([node, *readers], context)
            if reason is not None:
                yield Skipped(node.name, reason)
            else:
                yield {"node": node.name, "op": node.op, "readers": [reader.name for reader in readers]}

    def rewrite(self, model: Model, plan: Plan, context: PassContext) -> Provenance:
        """Fold the planned Pads.

        Raises:
            RecipeError: the plan names nodes that the model does not have, or that cannot be folded in it.
        """
        named = {node.name: node for node in model.nodes}
        pinned = pinned_names(model)
        removed = []
        for decision in plan.decisions:
            node = planned_node(named, decision)
            padding = _padding_of(model, node)
            if padding is None or _why_not(model, node, padding, pinned) is not None:
                raise RecipeError(
                    f"plan: clean-up takes '{node.name}' into its readers, which it cannot be in this model; the plan "
                    "is another's"
                )
            source, target = node.inputs[0], node.outputs[0]
            for reader in list(target.outputs):
                _take(reader, padding)
                reader.inputs[0] = source
            node.inputs.clear()
            node.outputs.clear()
            removed.append(node)
        remove_nodes(model, removed)
        return {}


def _padding_of(model: Model, node: gs.Node) -> _Padding | None:
    """Return what a node adds on spatial axes; None where it is no Pad of one known number, or adds elsewhere."""
    if node.op != "Pad" or not is_standard(node) or node.attrs.get("mode", "constant") != "constant":
        return None
    shape = model.shape_of(node.inputs[0])
    given = [_values(model, node, position) for position in (1, 2, 3)]
    if shape is None or any(values is None for values in given):
        return None
    listed, numbers, axes = ([] if values is None else list(values) for values in given)
    pads = [int(each) for each in node.attrs.get("pads", listed)]
    value = float(numbers[0]) if numbers else float(node.attrs.get("value", 0.0))
    own = [int(axis) % len(shape) for axis in axes] or list(range(len(shape)))
    if len(pads) != 2 * len(own):
        return None
    before = dict(zip(own, pads, strict=False))
    after = dict(zip(own, pads[len(own) :], strict=True))
    if any(before.get(axis, 0) or after.get(axis, 0) for axis in (0, 1)) or min(pads, default=0) < 0:
        return None
    spatial = range(2, len(shape))
    return _Padding(tuple(before.get(a, 0) for a in spatial), tuple(after.get(a, 0) for a in spatial), value)


def _values(model: Model, node: gs.Node, position: int) -> Sequence[float] | None:
    """Return the numbers of a constant input, none where it is left out, None where it is computed."""
    if not has_input(node, position):
        return ()
    tensor = node.inputs[position]
    return model.values(tensor).reshape(-1).tolist() if isinstance(tensor, gs.Constant) else None


def _why_not(model: Model, node: gs.Node, padding: _Padding, pinned: frozenset[str]) -> str | None:
    target = node.outputs[0]
    if target.name in pinned:
        return f"its output '{target.name}' must keep its name"
    for reader in target.outputs:
        reason = _why_cannot_take(model, reader, node, padding)
        if reason is not None:
            return f"'{reader.name}' ({reader.op}) {reason}"
    return None


def _why_cannot_take(model: Model, reader: gs.Node, node: gs.Node, padding: _Padding) -> str | None:
    target = node.outputs[0]
    if reader.op not in _TAKERS or not is_standard(reader):
        return "has no padding of its own"
    if reader.inputs[0] is not target or sum(tensor is target for tensor in reader.inputs) > 1:
        return "reads it as a weight"
    if reader.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return "finds its padding by itself (auto_pad)"
    if reader.op == "Conv":
        return None if padding.value == 0.0 else f"pads with zeros, not with {padding.value:g}"
    if reader.attrs.get("ceil_mode", 0):
        return "may reach beyond its padding (ceil_mode)"
    kernel = [int(size) for size in reader.attrs["kernel_shape"]]
    begins, ends = _joined(reader, padding)
    if any(pad >= size for pads in (begins, ends) for pad, size in zip(pads, kernel, strict=True)):
        return "would have windows of padding alone"
    if reader.op == "AveragePool":
        counts = reader.attrs.get("count_include_pad", 0) or not any(reader.attrs.get("pads", ()))
        return None if padding.value == 0.0 and counts else "averages over other padding"
    if len(reader.outputs) > 1 and reader.outputs[1].name:
        return "tells the positions of its maxima"
    if any(step != 1 for step in reader.attrs.get("dilations", ())):
        return "may have windows of padding alone (dilations)"
    if not padding.value <= _least(model, node.inputs[0]):
        return f"may find the padding, {padding.value:g}, the largest"
    return None


def _least(model: Model, tensor: gs.Tensor) -> float:
    """Return a number that no value of a tensor is below: the least of its type where nothing else is known."""
    known = model.dtypes.get(tensor.name)
    dtype = None if known is None else tensor_dtype(known)
    of_type = float(np.finfo(dtype).min) if dtype is not None and dtype.kind == "f" else -math.inf
    return max(_bound(tensor, _MOST_NODES_BACK), of_type)


def _bound(tensor: gs.Tensor, nodes_back: int) -> float:
    made = tensor.inputs[0] if tensor.inputs else None
    if made is None or not is_standard(made) or nodes_back == 0:
        return -math.inf
    if made.op in _NEVER_NEGATIVE:
        return 0.0
    if made.op == "Clip":
        least = made.inputs[1] if has_input(made, 1) else None
        known = isinstance(least, gs.Constant) and least.values.size == 1
        return float(least.values.item()) if known and least is not None else float(made.attrs.get("min", -math.inf))
    if made.op not in _HANDS_ON_BOUNDS:
        return -math.inf
    bounds = [_bound(each, nodes_back - 1) for each in made.inputs]
    if made.op == "AveragePool":  # its padding is zero
        bounds.append(0.0)
    return max(bounds) if made.op == "Max" else min(bounds)


def _joined(reader: gs.Node, padding: _Padding) -> tuple[list[int], list[int]]:
    """Return the padding of a reader before and behind each spatial axis, with what a Pad adds."""
    rank = len(padding.before)
    own = [0] * (2 * rank)
    if reader.attrs.get("auto_pad", "NOTSET") == "NOTSET":
        own = [int(each) for each in reader.attrs.get("pads", own)]
    return (
        [a + b for a, b in zip(own[:rank], padding.before, strict=True)],
        [a + b for a, b in zip(own[rank:], padding.after, strict=True)],
    )


def _take(reader: gs.Node, padding: _Padding) -> None:
    begins, ends = _joined(reader, padding)
    reader.attrs.pop("auto_pad", None)
    reader.attrs["pads"] = begins + ends
    if reader.op == "AveragePool":
        reader.attrs["count_include_pad"] = 1
