"""Gemm and MatMul: fully connected layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from onnxcompress.analysis.channels.labels import Ids, Labels
from onnxcompress.analysis.channels.operators.product import product
from onnxcompress.analysis.channels.operators.registry import operator

if TYPE_CHECKING:
    from onnxcompress.analysis.channels.analysis import ChannelAnalysis


@operator("Gemm")
def gemm(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """`A` (N, I) times `B` (I, O), plus `C` broadcast to (N, O)."""
    weight = analysis.constant(node, 1)
    addend = analysis.input(node, 2)
    if weight is None or node.attrs.get("transA", 0) or (addend is not None and analysis.constant(node, 2) is None):
        analysis.freeze_inputs(node, "Gemm with a computed weight or addend, or a transposed input")
        return
    out_axis = 0 if node.attrs.get("transB", 0) else 1
    before = summed_ids(analysis, node, 0, 1, weight.shape[1 - out_axis])
    after = analysis.fresh(weight.shape[out_axis])
    analysis.set(node.outputs[0], Labels.along(1, after))
    analysis.produce(node, 1, out_axis, after)
    labels = [Labels.along(out_axis, after)]
    if before is not None:
        labels.append(Labels.along(1 - out_axis, before))
    analysis.slice(node, 1, *labels)
    bias = analysis.constant(node, 2)
    if bias is not None and bias.shape and bias.shape[-1] == len(after):
        analysis.slice(node, 2, Labels.along(len(bias.shape) - 1, after))


@operator("MatMul")
def matmul(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """A product with a constant 2-D matrix on either side, whose other axes are carried; or of two tensors."""
    for weight_position in (1, 0):
        weight = analysis.constant(node, weight_position)
        shape = analysis.shape(node.inputs[1 - weight_position])
        if weight is None or shape is None or len(weight.shape) != 2 or len(shape) < 2:
            continue
        summed_axis = len(shape) - (1 if weight_position else 2)
        summed_in_weight = 0 if weight_position else 1
        labels = analysis.of(node.inputs[1 - weight_position])
        if labels is not None and labels.axes != (summed_axis,):
            if summed_axis not in labels.axes:
                analysis.set(node.outputs[0], labels)
            else:
                analysis.freeze(labels.ids, f"reaches '{node.name}' on several axes")
            return
        before = summed_ids(analysis, node, 1 - weight_position, summed_axis, weight.shape[summed_in_weight])
        after = analysis.fresh(weight.shape[1 - summed_in_weight])
        analysis.set(node.outputs[0], Labels.along(summed_axis, after))
        analysis.produce(node, weight_position, 1 - summed_in_weight, after)
        weight_labels = [Labels.along(1 - summed_in_weight, after)]
        if before is not None:
            weight_labels.append(Labels.along(summed_in_weight, before))
        analysis.slice(node, weight_position, *weight_labels)
        return
    product(analysis, node)


def summed_ids(analysis: ChannelAnalysis, node: gs.Node, position: int, axis: int, size: int) -> Ids | None:
    """Return the atoms along the summed axis, one for each weight row, and record the sum; None if unlabelled."""
    labels = analysis.of(node.inputs[position])
    if labels is None:
        return None
    if labels.axes == (axis,) and labels.inner == (None,) and size % len(labels.ids) == 0:
        labels = Labels((axis,), labels.ids, (size // len(labels.ids),))
    expanded = labels.expanded()
    if expanded is None or expanded.axes != (axis,) or expanded.ids.shape != (size,):
        analysis.freeze(labels.ids, f"reaches '{node.name}' on another axis than the one it sums over")
        return None
    analysis.consume(node, position, labels)
    return np.asarray(expanded.ids)
