"""Recurrent layers: readers of their input's features. The hidden state, which every gate reads, stays whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from onnxcompress.analysis.channels.labels import Labels
from onnxcompress.analysis.channels.operators.dense import summed_ids
from onnxcompress.analysis.channels.operators.registry import operator

if TYPE_CHECKING:
    from onnxcompress.analysis.channels.analysis import ChannelAnalysis

_FEATURES = 2
"""The axis of features, of the input (steps, batch, I), in either layout, and of the weight (directions, rows, I)."""


@operator("GRU", "LSTM", "RNN")
def recurrent(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """All gates of a step sum over the input's features: `W` is sliced along them, `R` and the biases stay."""
    weight = analysis.constant(node, 1)
    if weight is None or len(weight.shape) != _FEATURES + 1:
        analysis.freeze_inputs(node, f"{node.op} with a computed weight")
        return
    read = summed_ids(analysis, node, 0, _FEATURES, weight.shape[_FEATURES])
    if read is not None:
        analysis.slice(node, 1, Labels.along(_FEATURES, read))
    for tensor in node.inputs[1:]:
        if (labels := analysis.of(tensor)) is not None:
            analysis.freeze(labels.ids, f"reaches '{node.name}' as a state of {node.op}")
