"""Tensors that hold one number everywhere, such as the first state of a recurrent cell: any part of one is like it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from onnxcompress.analysis.channels.labels import Labels
from onnxcompress.operators import is_standard

if TYPE_CHECKING:
    from onnxcompress.analysis.channels.analysis import ChannelAnalysis
    from onnxcompress.analysis.channels.surgery import Surgery

_FIRST_OPSET_WITH_SLICE_INPUTS = 10


def is_fill(tensor: gs.Tensor) -> bool:
    """Whether a computed tensor holds one number everywhere, whatever its lengths."""
    maker = tensor.inputs[0] if tensor.inputs else None
    if maker is None or not is_standard(maker):
        return False
    if maker.op == "Expand":
        return isinstance(maker.inputs[0], gs.Constant) and int(np.prod(maker.inputs[0].shape)) == 1
    return bool(maker.op == "ConstantOfShape")


def shorten_fill(analysis: ChannelAnalysis, node: gs.Node, position: int, labels: Labels) -> None:
    """Have input `position`, a fill, cut to what stays of `labels`, which lie on its axes at known multiplicities."""

    def cut(surgery: Surgery, pruned: gs.Node) -> None:
        model, source = surgery.model, pruned.inputs[position]
        ends = [int(length or 0) for length in surgery.kept_lengths(labels)]
        vectors = {"starts": [0] * len(ends), "ends": ends, "axes": list(labels.axes)}
        inputs, attributes = [source], dict(vectors)
        if model.opset >= _FIRST_OPSET_WITH_SLICE_INPUTS:
            named = ((f"{source.name}_{name}", np.array(values, np.int64)) for name, values in vectors.items())
            inputs, attributes = [source, *(model.new_constant(name, values) for name, values in named)], {}
        shorter = model.new_variable(f"{source.name}_cut")
        model.insert_before(
            pruned, [gs.Node("Slice", model.unique_name(f"{node.name}_cut"), attributes, inputs, [shorter])]
        )
        pruned.inputs[position] = shorter

    analysis.on_removal(node, labels, cut)
