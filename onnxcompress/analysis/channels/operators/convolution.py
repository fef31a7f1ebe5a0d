"""Conv and ConvTranspose, 1-D to 3-D, with any group."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from onnxcompress.analysis.channels.labels import FIXED, Ids, Labels
from onnxcompress.analysis.channels.operators.layout import on_channel_axis
from onnxcompress.analysis.channels.operators.registry import operator
from onnxcompress.analysis.lrn import is_window

if TYPE_CHECKING:
    from onnxcompress.analysis.channels.analysis import ChannelAnalysis
    from onnxcompress.analysis.channels.surgery import Surgery

_FIRST_OPSET_WITH_PADS_AS_INPUT = 11


@operator("Conv")
def conv(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """`W` (O, I/g, k...), `B` (O): input channels are summed within a group, every filter creates a channel."""
    _convolution(analysis, node, transposed=False)


@operator("ConvTranspose")
def conv_transpose(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """`W` (I, O/g, k...), `B` (O)."""
    _convolution(analysis, node, transposed=True)


def _convolution(analysis: ChannelAnalysis, node: gs.Node, *, transposed: bool) -> None:
    weight = analysis.constant(node, 1)
    if weight is None or (analysis.input(node, 2) is not None and analysis.constant(node, 2) is None):
        analysis.freeze_inputs(node, "its weight or bias is computed in the graph (quantised or shared by a rule)")
        return
    if is_window(node):
        _window(analysis, node)
        return
    groups = int(node.attrs.get("group", 1))
    inputs = weight.shape[0] if transposed else weight.shape[1] * groups
    outputs = weight.shape[1] * groups if transposed else weight.shape[0]
    if groups < 1 or inputs % groups or outputs % groups:
        analysis.freeze_inputs(node, f"{groups} groups do not divide {inputs} inputs and {outputs} outputs")
        return
    if not transposed and _along_channels(analysis, node):
        return
    before = _input_ids(analysis, node, inputs)
    after = analysis.fresh(outputs)
    analysis.set(node.outputs[0], Labels.along(1, after))
    if transposed and groups > 1:
        weight_out = Labels((0, 1), np.repeat(after.reshape(groups, -1), inputs // groups, axis=0), (1, 1))
    else:
        weight_out = Labels.along(int(transposed), after)
    analysis.produce(node, 1, int(transposed), after)
    labels = [weight_out]
    if before is not None:
        rows = before.reshape(groups, -1)
        if transposed or groups == 1:
            labels.append(Labels.along(int(not transposed), before))
        else:
            labels.append(Labels((0, 1), np.repeat(rows, outputs // groups, axis=0), (1, 1)))
        analysis.consume(node, 0, Labels.along(1, before))
    analysis.slice(node, 1, *labels)
    if analysis.constant(node, 2) is not None:
        analysis.slice(node, 2, Labels.along(0, after))
    if groups > 1:
        _group(analysis, node, groups, before, after)


def _along_channels(analysis: ChannelAnalysis, node: gs.Node) -> bool:
    """Follow a convolution that slides along the channels, one result for each (ECA's attention); False for others.

    Those that leave are zeros to their neighbours: the pruned network puts zeros in their places before the node, and
    takes the results of the others behind it.
    """
    labels, before, after = analysis.of(node.inputs[0]), *map(analysis.shape, (node.inputs[0], node.outputs[0]))
    expanded = None if labels is None else labels.expanded()
    if expanded is None or len(expanded.axes) != 1 or expanded.axes[0] < 2 or before is None or after is None:
        return False
    (axis,), ids = expanded.axes, expanded.ids
    if before[axis] != len(ids) or after[axis] != len(ids) or any(s != 1 for s in node.attrs.get("strides", ())):
        return False
    analysis.consume(node, 0, expanded)
    analysis.set(node.outputs[0], expanded)

    def in_their_places(surgery: Surgery, pruned: gs.Node) -> None:
        kept = surgery.kept(ids)
        places = np.where(kept, np.cumsum(kept) - 1, kept.sum())  # behind the others stands one zero
        model, source, result = surgery.model, pruned.inputs[0], pruned.outputs[0]
        padded, spread, whole = (model.new_variable(f"{pruned.name}_{part}") for part in ("padded", "spread", "whole"))
        pads = np.zeros(2 * len(before), np.int64)
        pads[len(before) + axis] = 1
        is_attribute = model.opset < _FIRST_OPSET_WITH_PADS_AS_INPUT
        given = [] if is_attribute else [model.new_constant(f"{pruned.name}_pads", pads)]
        attributes = {"pads": pads.tolist()} if is_attribute else {}
        gathered = [
            (spread, padded, places, "places"),
            (result, whole, np.flatnonzero(kept), "kept"),
        ]
        pruned.inputs[0] = spread
        pruned.outputs[0] = whole
        pad = gs.Node("Pad", model.unique_name(f"{pruned.name}_pad"), attributes, [source, *given], [padded])
        first, last = (
            gs.Node(
                "Gather",
                model.unique_name(f"{pruned.name}_gather_{part}"),
                {"axis": axis},
                [read, model.new_constant(f"{pruned.name}_{part}", indices.astype(np.int64))],
                [made],
            )
            for made, read, indices, part in gathered
        )
        model.insert_before(pruned, [pad, first])
        model.insert_behind(pruned, [last])

    analysis.on_removal(node, expanded, in_their_places)
    return True


def _window(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """The window of a banded LRN has no filters of its own: it hands on its channels, as the LRN itself does."""
    before = _input_ids(analysis, node, int(node.inputs[1].shape[1]))
    if before is None:
        return
    labels = Labels.along(1, before)
    analysis.consume(node, 0, labels)
    analysis.slice(node, 1, Labels.along(0, before), Labels.along(1, before))
    if analysis.constant(node, 2) is not None:
        analysis.slice(node, 2, Labels.along(0, before))
    analysis.set(node.outputs[0], labels)


def _input_ids(analysis: ChannelAnalysis, node: gs.Node, inputs: int) -> Ids | None:
    labels = analysis.of(node.inputs[0])
    if labels is None:
        return None
    expanded = on_channel_axis(analysis, node, labels).expanded()
    if expanded is None or expanded.axes != (1,) or expanded.ids.shape != (inputs,):
        analysis.freeze(labels.ids, f"reaches '{node.name}' on another axis than its channels")
        return None
    return expanded.ids


def _group(analysis: ChannelAnalysis, node: gs.Node, groups: int, before: Ids | None, after: Ids) -> None:
    """Keep a grouped convolution regular: whole groups leave, or every group loses the same number.

    Whichever is finer is chosen; for a depthwise convolution whole groups are its channels.
    """
    rows_in = before.reshape(groups, -1) if before is not None else np.full((groups, 1), FIXED)
    rows_out = after.reshape(groups, -1)
    per_group = min(rows_in.shape[1] if before is not None else rows_out.shape[1], rows_out.shape[1])
    if groups <= per_group or (before is None and rows_out.shape[1] > 1):
        analysis.balance(node, rows_out)
        if before is not None:
            analysis.balance(node, rows_in)
        return
    reason = f"shares a group of '{node.name}' with a channel that stays"
    analysis.tie(rows_in[:, :1], rows_in, reason)
    analysis.tie(rows_in[:, :1], rows_out, reason)

    def fewer_groups(surgery: Surgery, pruned: gs.Node) -> None:
        pruned.attrs["group"] = int(surgery.kept(rows_out).any(axis=1).sum())

    analysis.on_removal(node, Labels.along(1, after), fewer_groups)
