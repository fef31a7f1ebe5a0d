"""Products of two tensors, stacks of matrices (..., R, K) and (..., K, C): attention, and what weighs maps by maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from onnxcompress.analysis.channels.labels import Labels
from onnxcompress.analysis.channels.operators.layout import hold_rows, project
from onnxcompress.graph import Shape

if TYPE_CHECKING:
    from onnxcompress.analysis.channels.analysis import ChannelAnalysis

_OWN, _SUMMED = (2, 1), (1, 2)
"""Of the left and the right operand, from the end: the axis that the product has, and the one that it sums over."""


def product(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """Channels along K are tied and summed over; those of R or C, and of the axes before (heads), are carried.

    Where heads are labelled beside K, R or C, all of them stay, and each keeps as many channels.
    """
    shapes = [analysis.shape(tensor) for tensor in node.inputs]
    known = [shape for shape in shapes if shape is not None and len(shape) > 1]
    if len(known) < 2:
        analysis.freeze_inputs(node, "MatMul of tensors of unknown rank, or of a vector")
        return
    rank = max(map(len, known))
    summed: dict[int, Labels] = {}
    carried: dict[int, Labels] = {}
    for position, shape in enumerate(known):
        labels = analysis.of(node.inputs[position])
        if labels is None:
            continue
        expanded = labels.shifted(rank - len(shape)).expanded()
        own, along = rank - _OWN[position], rank - _SUMMED[position]
        if expanded is None:
            analysis.freeze(labels.ids, f"reaches '{node.name}' (MatMul) a number of times that is not known")
        elif along not in expanded.axes:
            carried[position] = expanded
        else:
            several = own in expanded.axes or len(expanded.axes) > 2
            summed[position] = project(analysis, node, expanded, along) if several else expanded
    _sum(analysis, node, summed, known, rank)
    _carry(analysis, node, carried, known, rank)


def _sum(analysis: ChannelAnalysis, node: gs.Node, summed: dict[int, Labels], shapes: list[Shape], rank: int) -> None:
    """Tie what is multiplied with each other; of a constant, take what it is multiplied with."""
    if len(summed) == 2 and (
        summed[0].axes[:-1] != summed[1].axes[:-1] or summed[0].ids.shape != summed[1].ids.shape
    ):  # heads that share one key
        summed = {at: project(analysis, node, each, each.axes[-1]) for at, each in summed.items()}
    for position, labels in summed.items():
        other = 1 - position
        partner = summed.get(other)
        if partner is None and analysis.constant(node, other) is None:
            name = node.inputs[other].name
            analysis.freeze(
                labels.ids, f"is multiplied by '{node.name}' with '{name}', which does not come from a Conv"
            )
            continue
        if partner is None:
            labels = _slice_constant(analysis, node, other, labels, shapes[other], rank)
        elif partner.ids.shape != labels.ids.shape:
            analysis.freeze(labels.ids, f"is multiplied by '{node.name}' with another number of channels")
            continue
        else:
            analysis.tie(labels.ids, partner.ids, f"is multiplied by '{node.name}' with a channel that stays")
        hold_rows(analysis, node, labels)
        analysis.consume(node, position, labels.shifted(len(shapes[position]) - rank))


def _slice_constant(
    analysis: ChannelAnalysis, node: gs.Node, position: int, labels: Labels, shape: Shape, rank: int
) -> Labels:
    """Slice a stack of constant matrices along the axis that is summed over; return the labels of the other operand."""
    offset = rank - len(shape)
    if any(axis < offset or shape[axis - offset] == 1 for axis in labels.axes[:-1]):
        labels = project(analysis, node, labels, labels.axes[-1])
    axes = (*(axis - offset for axis in labels.axes[:-1]), len(shape) - _SUMMED[position])
    analysis.slice(node, position, Labels(axes, labels.ids, labels.inner))
    return labels


def _carry(
    analysis: ChannelAnalysis, node: gs.Node, carried: dict[int, Labels], shapes: list[Shape], rank: int
) -> None:
    """Hand on the channels of one operand: of both only where they lie side by side on an axis before the matrices."""
    if not carried:
        return
    # Of two, the one of more channels: a head's, not the heads.
    position = max(carried, key=lambda at: carried[at].ids.size)
    labels, other = carried[position], 1 - position
    partner = carried.get(other)
    beside = partner is not None and partner.axes == labels.axes and partner.ids.shape == labels.ids.shape
    if partner is not None and beside:
        analysis.tie(labels.ids, partner.ids, f"is multiplied by '{node.name}' with a channel that stays")
    elif partner is not None:
        analysis.freeze(partner.ids, f"'{node.name}' (MatMul) makes a table of them and of other channels")
    offset = rank - len(shapes[other])
    before = [axis for axis in labels.axes if axis < rank - 2]
    spans = [axis for axis in before if axis >= offset and shapes[other][axis - offset] != 1]
    if len(before) < len(labels.axes):
        if spans:
            hold_rows(analysis, node, labels)
    elif spans and not beside:
        name = node.inputs[other].name
        analysis.freeze(labels.ids, f"is multiplied by '{node.name}' with '{name}', which does not come from a Conv")
    analysis.set(node.outputs[0], labels)
