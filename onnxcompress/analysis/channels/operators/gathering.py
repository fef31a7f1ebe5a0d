"""GatherElements and GatherND: channels that are not picked by number are carried, along with the positions read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from onnxcompress.analysis.channels.labels import Labels
from onnxcompress.analysis.channels.operators.fills import shorten_fill
from onnxcompress.analysis.channels.operators.registry import operator

if TYPE_CHECKING:
    from onnxcompress.analysis.channels.analysis import ChannelAnalysis
    from onnxcompress.analysis.channels.surgery import Surgery


@operator("GatherElements")
def gather_elements(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """Carried where the same positions are read of every channel: indices repeated along them, or constant ones."""
    data, index = node.inputs[:2]
    labels, shape, lengths = analysis.of(data), analysis.shape(data), analysis.shape(index)
    if analysis.of(index) is not None or shape is None:
        analysis.freeze_inputs(node, "GatherElements by computed indices")
        return
    if labels is None:
        return
    along = int(node.attrs.get("axis", 0)) % len(shape)
    expanded = labels.expanded()
    axis = labels.axes[0]
    if expanded is None or len(labels.axes) > 1 or axis == along or lengths is None or lengths[axis] != shape[axis]:
        analysis.freeze(labels.ids, f"'{node.name}' picks some of them by number")
        return
    if isinstance(index, gs.Constant):
        analysis.slice(node, 1, expanded)
    elif _is_repeated(analysis, index, axis):
        shorten_fill(analysis, node, 1, expanded)
    else:
        analysis.freeze(labels.ids, f"'{node.name}' reads other positions of each of them")
        return
    analysis.set(node.outputs[0], expanded)


@operator("GatherND")
def gather_nd(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """Axes behind those that indices count along are carried; along the first one alone, known indices pick."""
    data, index = node.inputs[:2]
    labels, rows = analysis.of(data), analysis.shape(index)
    if analysis.of(index) is not None:
        analysis.freeze_inputs(node, "GatherND by computed indices")
        return
    if labels is None:
        return
    counted = rows[-1] if rows else None
    if rows is None or not isinstance(counted, int):
        analysis.freeze(labels.ids, f"'{node.name}' picks by indices of unknown length")
        return
    first = int(node.attrs.get("batch_dims", 0)) + counted
    if min(labels.axes) >= first:
        analysis.set(node.outputs[0], labels.shifted(len(rows) - 1 - first))
        return
    indices, expanded = analysis.constant(node, 1), labels.expanded()
    if indices is None or expanded is None or labels.axes != (0,) or first != 1 or len(rows) != 2:
        analysis.freeze(labels.ids, f"'{node.name}' picks some of them by number")
        return
    picked = np.asarray(indices.values, np.int64).reshape(-1) % len(expanded.ids)
    taken = Labels.along(0, expanded.ids[picked])
    analysis.set(node.outputs[0], taken)
    analysis.keep_one(taken.ids)

    def new_indices(surgery: Surgery, pruned: gs.Node) -> None:
        kept = surgery.kept(expanded.ids)
        places = (np.cumsum(kept) - 1)[picked[kept[picked]]]
        surgery.model.set_input(pruned, 1, places.astype(indices.dtype)[:, None])

    analysis.on_removal(node, expanded, new_indices)


def _is_repeated(analysis: ChannelAnalysis, tensor: gs.Tensor, axis: int) -> bool:
    """Whether a computed tensor holds the same all along an axis."""
    maker = tensor.inputs[0] if tensor.inputs else None
    if maker is None or maker.op not in ("Cast", "Expand", "Identity", "Tile"):
        return False
    before, after = analysis.shape(maker.inputs[0]), analysis.shape(tensor)
    if before is None or after is None:
        return False
    own = axis - (len(after) - len(before))
    if maker.op in ("Expand", "Tile"):
        return own < 0 or before[own] == 1
    return _is_repeated(analysis, maker.inputs[0], own)
