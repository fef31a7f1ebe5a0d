"""Which constants of a model are weights: what training may change, and what it must leave alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import onnx_graphsurgeon as gs

from onnxcompress.analysis.lrn import is_window
from onnxcompress.graph import Model

WEIGHT_INPUTS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "Conv": (1, 2),
        "ConvTranspose": (1, 2),
        "Gemm": (0, 1, 2),
        "MatMul": (0, 1),
        "BatchNormalization": (1, 2),
        "InstanceNormalization": (1, 2),
        "LayerNormalization": (1, 2),
        "GroupNormalization": (1, 2),
        "RMSNormalization": (1,),
        "PRelu": (1,),
        "LSTM": (1, 2, 3),
        "Add": (0, 1),
        "Mul": (0, 1),
    }
)
"""Inputs that hold weights where they are constant, by operator; of Add and Mul only those of several numbers."""

STATISTICS_INPUTS: Mapping[str, tuple[int, ...]] = MappingProxyType({"BatchNormalization": (3, 4)})
"""Inputs that hold running statistics, where the node has an epsilon: without one it scales and shifts channels."""

_SCALAR_IS_FIXED = ("Add", "Mul")
# Their domain ends at zero: a trained sum that a rewritten normalisation feeds to them could leave it.
_OF_POSITIVE_NUMBERS = ("Sqrt", "Log", "Pow", "Reciprocal")


def weight_names(model: Model) -> frozenset[str]:
    """Return the names of the floating-point constants that training may change.

    A constant that is read in any other way as well stays as it is.
    """
    named = {name for name, is_weight in _uses(model) if is_weight}
    return frozenset(named - {name for name, is_weight in _uses(model) if not is_weight})


def statistics_names(model: Model) -> frozenset[str]:
    """Return the names of the running statistics of BatchNormalization nodes."""
    return frozenset(
        tensor.name
        for node in model.nodes
        if node.attrs.get("epsilon") != 0.0
        for position, tensor in enumerate(node.inputs)
        if position in STATISTICS_INPUTS.get(node.op, ()) and Model.is_constant(tensor)
    )


def _uses(model: Model) -> Iterator[tuple[str, bool]]:
    """Yield (constant, whether it is a weight there) for every floating-point constant that a node reads."""
    for node in model.nodes:
        fixed = _feeds_positive_domain(node) or is_window(node)
        for position, tensor in enumerate(node.inputs):
            if not isinstance(tensor, gs.Constant) or not _is_float(tensor):
                continue
            is_scalar = node.op in _SCALAR_IS_FIXED and tensor.values.size == 1
            yield tensor.name, position in WEIGHT_INPUTS.get(node.op, ()) and not fixed and not is_scalar
    captured = model.captured_names()
    yield from ((name, False) for name in captured)


def _feeds_positive_domain(node: gs.Node) -> bool:
    return any(reader.op in _OF_POSITIVE_NUMBERS for tensor in node.outputs for reader in tensor.outputs)


def _is_float(tensor: gs.Constant) -> bool:
    # bfloat16 comes from an extension of numpy and has a kind of its own.
    dtype = Model.values(tensor).dtype
    return dtype.kind == "f" or dtype.name == "bfloat16"
