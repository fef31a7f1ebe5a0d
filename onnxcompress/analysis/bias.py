"""Biases of matrix products, which may be any constant that is broadcast to the product."""

from __future__ import annotations

import math

import onnx_graphsurgeon as gs

from onnxcompress.graph import Model
from onnxcompress.operators import is_standard


def differs_by_row(node: gs.Node) -> bool:
    """Whether a Gemm adds other constants to each of its rows."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return node.op == "Gemm" and isinstance(bias, gs.Constant) and len(bias.shape) == 2 and bias.shape[0] > 1


def adder_behind(model: Model, product: gs.Node) -> gs.Node | None:
    """Return the Add that gives each output of a MatMul a constant, as a bias of its own would; None without."""
    made = product.outputs[0]
    readers = made.outputs
    if len(readers) != 1 or readers[0].op != "Add" or not is_standard(readers[0]):
        return None
    if any(made is out for out in model.graph.outputs) or made.name in model.captured_names():
        return None
    added, weight = readers[0].inputs[constant_position(readers[0])], product.inputs[1]
    if not isinstance(added, gs.Constant) or added.dtype != weight.dtype:
        return None
    rank = len(model.shape_of(made) or (None,))
    is_row = len(added.shape) <= rank and tuple(added.shape[-1:]) == (weight.shape[-1],)
    return readers[0] if is_row and math.prod(added.shape) == weight.shape[-1] else None


def constant_position(adder: gs.Node) -> int:
    """Return at which input an Add reads its constant."""
    return 0 if isinstance(adder.inputs[0], gs.Constant) else 1
