"""Biases of matrix products, which may be any constant that is broadcast to the product."""

from __future__ import annotations

import onnx_graphsurgeon as gs


def differs_by_row(node: gs.Node) -> bool:
    """Whether a Gemm adds other constants to each of its rows."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return node.op == "Gemm" and isinstance(bias, gs.Constant) and len(bias.shape) == 2 and bias.shape[0] > 1
