"""Normalisation layers. Those whose statistics run over channels are consumers that also carry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from onnxcompress.analysis.channels.labels import Labels
from onnxcompress.analysis.channels.operators.layout import on_channel_axis
from onnxcompress.analysis.channels.operators.registry import operator
from onnxcompress.analysis.lrn import band_convolution, why_no_band

if TYPE_CHECKING:
    from onnxcompress.analysis.channels.analysis import ChannelAnalysis
    from onnxcompress.analysis.channels.surgery import Surgery


_WIDEST_BAND = 8192
"""Channels; the window of a pruned LRN is a matrix of their square."""


@operator("BatchNormalization")
def batch_normalization(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """Scale, bias, mean and variance (C) are sliced."""
    _per_channel(analysis, node, range(1, 5))


@operator("InstanceNormalization")
def instance_normalization(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """Statistics over the axes after the first two; with channels there it is a group normalisation in disguise."""
    labels = analysis.of(node.inputs[0])
    if labels is None:
        return
    if labels.axes == (1,):
        _per_channel(analysis, node, range(1, 3))
        return
    if labels.axes in ((1, 2), (2,)):
        if len(labels.axes) == 2:
            analysis.balance(node, labels.ids, or_whole_rows=True)
            if any(analysis.constant(node, position) is None for position in (1, 2)):
                analysis.freeze(labels.ids, f"the parameters of '{node.name}' are computed in the graph")
                return
            for position in (1, 2):
                analysis.slice_rows(node, position, 0, labels.ids, labels.inner[0])
        analysis.consume(node, 0, labels, norm="instance")
        analysis.set(node.outputs[0], labels)
        return
    analysis.freeze(labels.ids, f"reaches '{node.name}' on an axis it normalises over")


def _per_channel(analysis: ChannelAnalysis, node: gs.Node, parameters: range) -> None:
    labels = analysis.of(node.inputs[0])
    if labels is None:
        return
    labels = on_channel_axis(analysis, node, labels)
    expanded = labels.expanded()
    if expanded is None or expanded.axes != (1,):
        analysis.freeze(labels.ids, f"reaches '{node.name}' on another axis than its channels")
        return
    if any(analysis.constant(node, position) is None for position in parameters):
        analysis.freeze(labels.ids, f"the parameters of '{node.name}' are computed in the graph")
        return
    if len([t for t in node.outputs if t.name]) > 1:
        analysis.freeze(labels.ids, f"'{node.name}' is in training mode")
        return
    for position in parameters:
        analysis.slice(node, position, Labels.along(0, expanded.ids))
    analysis.set(node.outputs[0], labels)


@operator("LRN")
def lrn(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """Carries its channels and sums squares over a window of them; once pruned, the window stays in original places."""
    labels = analysis.of(node.inputs[0])
    if labels is None:
        return
    expanded = labels.expanded()
    if expanded is None or expanded.axes != (1,) or why_no_band(analysis.model, node) is not None:
        analysis.freeze(labels.ids, f"reaches '{node.name}' on another axis than its channels")
        return
    if len(expanded.ids) > _WIDEST_BAND:
        analysis.freeze(
            labels.ids, f"'{node.name}' (LRN) has more than {_WIDEST_BAND} of them, too many for its window"
        )
        return
    analysis.consume(node, 0, expanded)
    analysis.set(node.outputs[0], expanded)

    def keep_window(surgery: Surgery, pruned: gs.Node) -> None:
        band_convolution(surgery.model, pruned, np.flatnonzero(surgery.kept(expanded.ids)))

    analysis.on_removal(node, expanded, keep_window)


@operator("LayerNormalization", "RMSNormalization")
def layer_normalization(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """Statistics over the axes from `axis` on; scale and bias cover these axes."""
    labels, shape = analysis.of(node.inputs[0]), analysis.shape(node.inputs[0])
    if labels is None or shape is None:
        return
    first = int(node.attrs.get("axis", -1)) % len(shape)
    if all(axis < first for axis in labels.axes):
        for output in node.outputs:  # the mean and the deviation keep the axes
            analysis.set(output, labels)
        return
    if len(labels.axes) != 1 or any(t.name for t in node.outputs[1:]):
        analysis.freeze(labels.ids, f"reaches '{node.name}' on several axes")
        return
    for position in range(1, len(node.inputs)):
        parameter = analysis.input(node, position)
        if parameter is None:
            continue
        axis = labels.axes[0] - (len(shape) - len(analysis.shape(parameter) or ()))
        if not isinstance(parameter, gs.Constant) or (axis >= 0 and labels.expanded() is None):
            analysis.freeze(labels.ids, f"the parameters of '{node.name}' are computed in the graph")
            return
        if axis >= 0 and parameter.shape[axis] != 1:
            analysis.slice(node, position, Labels((axis,), labels.ids, labels.inner))
    analysis.consume(node, 0, labels, norm="rms" if node.op == "RMSNormalization" else "layer")
    analysis.set(node.outputs[0], labels)


@operator("GroupNormalization")
def group_normalization(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """Statistics over each group of channels: every group keeps the same number, or whole groups leave."""
    labels = analysis.of(node.inputs[0])
    if labels is None:
        return
    groups = int(node.attrs["num_groups"])
    parameters = [analysis.constant(node, position) for position in (1, 2)]
    if labels.axes != (1,) or labels.inner != (1,) or len(labels.ids) % groups or any(p is None for p in parameters):
        analysis.freeze(labels.ids, f"reaches '{node.name}' on another axis than its channels")
        return
    rows = labels.ids.reshape(groups, -1)
    analysis.balance(node, rows, or_whole_rows=True)
    for position, parameter in zip((1, 2), parameters, strict=True):
        if parameter is not None and parameter.shape == (len(labels.ids),):
            analysis.slice(node, position, Labels.along(0, labels.ids))
        elif parameter is not None and parameter.shape == (groups,):  # opset 18 to 20
            analysis.slice_rows(node, position, 0, rows)
    analysis.consume(node, 0, labels, norm="group")
    analysis.set(node.outputs[0], labels)

    def fewer_groups(surgery: Surgery, pruned: gs.Node) -> None:
        pruned.attrs["num_groups"] = int(surgery.kept(rows).any(axis=1).sum())

    analysis.on_removal(node, labels, fewer_groups)


@operator("LpNormalization", "MeanVarianceNormalization", "Softmax", "LogSoftmax", "Hardmax")
def normalization_over_axes(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """Carried where the channels are not among the normalised axes; otherwise every channel matters to every other."""
    labels, shape = analysis.of(node.inputs[0]), analysis.shape(node.inputs[0])
    if labels is None or shape is None:
        return
    rank = len(shape)
    if node.op == "MeanVarianceNormalization":
        over = {axis % rank for axis in node.attrs.get("axes", [0, 2, 3])}
    elif node.op == "LpNormalization" or analysis.model.opset >= 13:
        over = {int(node.attrs.get("axis", -1)) % rank}
    else:
        over = set(range(int(node.attrs.get("axis", 1)) % rank, rank))
    if len(labels.axes) == 2 and over & set(labels.axes) == {labels.axes[0]}:
        analysis.tie(labels.ids[:1], labels.ids, f"is normalised by '{node.name}' beside a channel that stays")
    elif over & set(labels.axes):
        analysis.freeze(labels.ids, f"'{node.name}' ({node.op}) normalises over them")
        return
    analysis.set(node.outputs[0], labels)
