"""What a layer's time follows from besides the machine: its shape, and what stands before and behind it.

Neighbours decide what the runtime fuses into a layer and in which memory layout the layer reads and writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx_graphsurgeon as gs

from onnxcompress.graph import Model, Shape
from onnxcompress.links import has_input

_ATTRIBUTES = ("strides", "pads", "dilations", "group", "auto_pad", "output_padding", "transA", "transB")
_FUSED_BEHIND = frozenset({"Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish"})


def layer_keys(model: Model, layers: Iterable[str], input_shapes: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Return {layer: key}; layers of one key take the same time.

    Args:
        model: is only read.
        layers: names of nodes.
        input_shapes: full shapes of the graph's inputs, batch included.
    """
    shapes = model.shapes_for(input_shapes)
    nodes = {node.name: node for node in model.nodes}
    return {layer: _key(model, nodes[layer], shapes) for layer in layers}


def _key(model: Model, node: gs.Node, shapes: Mapping[str, Shape]) -> str:
    data, weight, result = node.inputs[0], node.inputs[1], node.outputs[0]
    attributes = [f"{name}={_text(node.attrs[name])}" for name in _ATTRIBUTES if name in node.attrs]
    bias = " bias" if has_input(node, 2) else ""
    before = ",".join(sorted({producer.op for producer in data.inputs})) or "input"
    return (
        f"{node.op} {_sizes(shapes.get(data.name))}>{_sizes(shapes.get(result.name))} "
        f"weight {_sizes(model.shape_of(weight))} {model.dtype_of(weight)}{bias} "
        f"{' '.join(attributes)} after {before} before {_behind(result)}"
    )


def _behind(tensor: gs.Tensor) -> str:
    """Return the operators that read a tensor; behind an activation that is fused, what reads that."""
    readers = list(tensor.outputs)
    fused = ""
    if len(readers) == 1 and readers[0].op in _FUSED_BEHIND:
        fused = f"{readers[0].op}+"
        readers = list(readers[0].outputs[0].outputs)
    return fused + (",".join(sorted({reader.op for reader in readers})) or "output")


def _sizes(shape: Shape | None) -> str:
    return "?" if shape is None else "x".join(map(str, shape))


def _text(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
