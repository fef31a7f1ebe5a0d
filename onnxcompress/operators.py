"""The standard's operators: which nodes are of them, and which hold weights."""

from __future__ import annotations

from typing import Protocol

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})

LAYERS = CONVOLUTIONS | {"Gemm", "MatMul"}

BROADCASTING = frozenset(
    (
        *("Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater"),
        *("GreaterOrEqual", "Less", "LessOrEqual", "Mod", "Mul", "Or", "Pow", "Sub", "Where", "Xor"),
    )
)
"""Whose inputs are broadcast to one shape, that of the output."""

_STANDARD_DOMAINS = (None, "", "ai.onnx")


class OfDomain(Protocol):
    """A node, of a file or of graphsurgeon's, or an entry of the versions that a model imports."""

    @property
    def domain(self) -> str | None:
        """The domain of its operators; graphsurgeon has None for the standard's."""


def is_standard(node: OfDomain) -> bool:
    """Whether it is of the standard's own domain."""
    return node.domain in _STANDARD_DOMAINS
