"""Operators on the spatial axes, which carry channels; and the two that trade channels for space."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from onnxcompress.analysis.channels.labels import MOST_POSITIONS, Labels
from onnxcompress.analysis.channels.operators.layout import on_channel_axis
from onnxcompress.analysis.channels.operators.registry import operator

if TYPE_CHECKING:
    from onnxcompress.analysis.channels.analysis import ChannelAnalysis
    from onnxcompress.analysis.channels.surgery import Surgery


_LENGTHS_TO_LENGTHS = frozenset(
    ["Add", "Cast", "Concat", "Div", "Gather", "Identity", "Mul", "ReduceProd", "Slice", "Squeeze", "Sub", "Unsqueeze"]
)
"""What computes new lengths of lengths."""


@operator(
    "MaxPool",
    "AveragePool",
    "LpPool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "GlobalLpPool",
    "GridSample",
    "RoiAlign",
    "MaxRoiPool",
)
def pooling(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """Channels (axis 1) are carried; a second output (positions of maxima) counts across channels.

    Further inputs are positions: channels that become coordinates stay, those that are read there are free.
    """
    labels = analysis.of(node.inputs[0])
    for tensor in node.inputs[1:]:
        if (positions := analysis.of(tensor)) is not None:
            analysis.freeze(positions.ids, f"reaches '{node.name}': computed positions of {node.op}")
    if labels is None:
        return
    labels = on_channel_axis(analysis, node, labels)
    if labels.axes != (1,):
        analysis.freeze(labels.ids, f"'{node.name}' ({node.op}) works on their axis")
    elif any(t.name and (t.outputs or t in analysis.model.graph.outputs) for t in node.outputs[1:]):
        analysis.freeze(labels.ids, f"the positions that '{node.name}' returns count across channels")
    else:
        analysis.set(node.outputs[0], labels)


@operator("Resize", "Upsample")
def resize(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """Carried where the labelled axes keep their length; a given size names it."""
    labels, before, after = (
        analysis.of(node.inputs[0]),
        analysis.shape(node.inputs[0]),
        analysis.shape(node.outputs[0]),
    )
    if labels is None or before is None:
        return
    rank = len(before)
    axes = [int(a) % rank for a in node.attrs.get("axes", range(rank))]
    touched = [axis for axis in labels.axes if axis in axes]
    if any(after is None or after[axis] != before[axis] for axis in touched):
        analysis.freeze(labels.ids, f"'{node.name}' ({node.op}) resizes their axis, or may")
        return
    analysis.set(node.outputs[0], labels)
    if node.op == "Upsample" or analysis.model.opset < 11 or analysis.input(node, 3) is None or not touched:
        return

    def new_sizes(surgery: Surgery, pruned: gs.Node) -> None:
        lengths = dict(zip(labels.axes, surgery.kept_lengths(labels), strict=True))
        entries = {axes.index(axis): length for axis in touched if (length := lengths[axis]) is not None}
        surgery.patch_vector(pruned, 3, entries)

    analysis.on_removal(node, labels, new_sizes)


@operator("DepthToSpace")
def depth_to_space(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """The `b * b` channels that become one channel's neighbours leave together."""
    labels = analysis.of(node.inputs[0])
    if labels is None:
        return
    block = int(node.attrs["blocksize"]) ** 2
    expanded = labels.expanded()
    if expanded is None or labels.axes != (1,) or len(expanded.ids) % block:
        analysis.freeze(labels.ids, f"reaches '{node.name}' on another axis than its channels")
        return
    column_first = node.attrs.get("mode", "DCR") == "CRD"
    ids = expanded.ids.reshape(-1, block).T if column_first else expanded.ids.reshape(block, -1)
    analysis.tie(ids[:1], ids, f"becomes space beside a channel that stays in '{node.name}'")
    analysis.set(node.outputs[0], Labels.along(1, np.ascontiguousarray(ids[0])))


@operator("SpaceToDepth")
def space_to_depth(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """Every channel becomes `b * b` channels: side by side in mode CRD, one in each of `b * b` copies otherwise."""
    labels = analysis.of(node.inputs[0])
    if labels is None:
        return
    block = int(node.attrs["blocksize"]) ** 2
    expanded = labels.expanded()
    if expanded is None or labels.axes != (1,) or block * len(expanded.ids) > MOST_POSITIONS:
        analysis.freeze(labels.ids, f"reaches '{node.name}' on another axis than its channels")
        return
    side_by_side = node.attrs.get("mode", "DCR") == "CRD"
    ids = np.repeat(expanded.ids, block) if side_by_side else np.tile(expanded.ids, block)
    analysis.set(node.outputs[0], Labels.along(1, ids))


@operator("Size")
def size(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """Counts elements; a count known before the run was folded into a constant."""
    if (labels := analysis.of(node.inputs[0])) is not None:
        analysis.freeze(labels.ids, f"'{node.name}' counts their elements")


@operator("Shape")
def shape(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """Reads lengths only: those known before the run were folded into constants, the rest follow the pruned tensor."""
    if _is_result(analysis, node.outputs[0]):
        analysis.freeze_inputs(node, "their number is a result of the model")
    analysis.ignore(node.inputs[0])


@operator("ConstantOfShape")
def constant_of_shape(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """Has no channels; nothing ties it to those whose number it takes its shape from."""
    analysis.freeze_counted(node, 0)


def _is_result(analysis: ChannelAnalysis, lengths: gs.Tensor) -> bool:
    """Whether lengths, or what arithmetic makes of them, are an output of the model."""
    reached, waiting = {id(lengths)}, [lengths]
    outputs = {id(tensor) for tensor in analysis.model.graph.outputs}
    for tensor in waiting:
        for node in tensor.outputs:
            following = node.outputs if node.op in _LENGTHS_TO_LENGTHS else []
            waiting += [each for each in following if id(each) not in reached]
            reached.update(id(each) for each in following)
    return not reached.isdisjoint(outputs)


@operator("Col2Im")
def col2im(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """Axis 1 of the input holds the blocks' positions channel by channel, (C, positions): the output's has channels."""
    labels = analysis.of(node.inputs[0])
    if labels is None:
        return
    block, expanded = analysis.ints(node, 2), labels.expanded()
    count = 0 if block is None or None in block else math.prod(int(size or 0) for size in block)
    if expanded is None or labels.axes != (1,) or not count or expanded.ids.size % count:
        analysis.freeze(
            labels.ids, f"'{node.name}' (Col2Im) puts blocks together on another axis, or of a size not known"
        )
        return
    rows = expanded.ids.reshape(-1, count)
    analysis.tie(rows[:, :1], rows, f"'{node.name}' (Col2Im) makes one channel of it and others that stay")
    analysis.set(node.outputs[0], Labels.along(1, np.ascontiguousarray(rows[:, 0])))
