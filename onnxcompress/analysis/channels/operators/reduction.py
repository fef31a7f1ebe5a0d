"""Reductions: over other axes they carry channels, over the channels they consume them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from onnxcompress.analysis.channels.labels import Labels
from onnxcompress.analysis.channels.operators.layout import project
from onnxcompress.analysis.channels.operators.registry import operator

if TYPE_CHECKING:
    from onnxcompress.analysis.channels.analysis import ChannelAnalysis

_NEUTRAL = {
    "ReduceMax": -math.inf,
    "ReduceMin": math.inf,
    "ReduceProd": 1.0,
    "ReduceLogSumExp": -math.inf,
}


@operator(
    "ReduceMean",
    "ReduceSum",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSum",
    "ReduceLogSumExp",
)
def reduce(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """A removed channel counts as the reduction's neutral element; a mean runs over the remaining channels."""
    labels, shape = analysis.of(node.inputs[0]), analysis.shape(node.inputs[0])
    if labels is None or shape is None:
        return
    axes = _axes(analysis, node, len(shape))
    if axes is None:
        analysis.freeze(labels.ids, f"the axes of '{node.name}' are computed in the graph")
        return
    summed = [axis for axis in labels.axes if axis in axes]
    if len(labels.axes) == 2 and summed == [labels.axes[0]]:
        labels, summed = project(analysis, node, labels, labels.axes[1]), []
    if summed:
        if len(summed) < len(labels.axes):
            analysis.balance(node, labels.ids.reshape(labels.ids.shape[0], -1))
        analysis.consume(node, 0, labels, fill=_NEUTRAL.get(node.op, 0.0), mean=node.op == "ReduceMean")
        return
    if node.attrs.get("keepdims", 1):
        analysis.set(node.outputs[0], labels)
    else:
        analysis.set(node.outputs[0], labels.moved(a - sum(r < a for r in axes) for a in labels.axes))


@operator("ArgMax", "ArgMin")
def arg_reduce(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """Over another axis carried; over the channels their numbers are the result."""
    labels, shape = analysis.of(node.inputs[0]), analysis.shape(node.inputs[0])
    if labels is None or shape is None:
        return
    axis = int(node.attrs.get("axis", 0)) % len(shape)
    if axis in labels.axes:
        analysis.freeze(labels.ids, f"'{node.name}' returns their numbers")
    elif node.attrs.get("keepdims", 1):
        analysis.set(node.outputs[0], labels)
    else:
        moved: Labels = labels.moved(a - (axis < a) for a in labels.axes)
        analysis.set(node.outputs[0], moved)


def _axes(analysis: ChannelAnalysis, node: gs.Node, rank: int) -> frozenset[int] | None:
    if "axes" in node.attrs:
        return frozenset(int(axis) % rank for axis in node.attrs["axes"])
    if analysis.input(node, 1) is not None:
        known = analysis.ints(node, 1)
        if known is None or None in known:
            return None
        axes = frozenset(int(axis or 0) % rank for axis in known)
        if axes:
            return axes
    return frozenset() if node.attrs.get("noop_with_empty_axes", 0) else frozenset(range(rank))
