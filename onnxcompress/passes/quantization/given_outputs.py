"""Outputs of a graph that are its inputs or weights: converters rename what makes an output, or convert it.

Nothing is to be done to them, so that a converter is given the graph without them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import onnx

from onnxcompress.passes.quantization.compact import tensor_names


@dataclass(frozen=True)
class GivenOutputs:
    """What was taken from a graph: all its outputs, and the weights among them."""

    outputs: tuple[onnx.ValueInfoProto, ...]
    weights: tuple[onnx.TensorProto, ...]

    def put_back(self, graph: onnx.GraphProto) -> None:
        """Give the converted graph the outputs that it had before."""
        del graph.output[:]
        graph.output.extend(self.outputs)
        graph.initializer.extend(self.weights)


def set_given_outputs_apart(proto: onnx.ModelProto) -> GivenOutputs:
    """Take inputs and weights from among a model's outputs; nodes read copies of these weights."""
    graph, taken = proto.graph, tensor_names(proto)
    names, inputs = {info.name for info in graph.output}, {info.name for info in graph.input}
    weights = [tensor for tensor in graph.initializer if tensor.name in names]
    kept = onnx.GraphProto(output=graph.output, initializer=weights)
    own = {w.name: next(n for i in count(1) if (n := f"{w.name}_read_{i}") not in taken) for w in weights}
    for tensor in graph.initializer:
        tensor.name = own.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [own.get(name, name) for name in node.input]
    del graph.output[:]
    graph.output.extend(info for info in kept.output if info.name not in inputs and info.name not in own)
    return GivenOutputs(tuple(kept.output), tuple(kept.initializer))
