"""Operators of models that are quantised already: what they compute by integers is neither pruned nor split."""

from __future__ import annotations

_CONVERSIONS = frozenset({"DynamicQuantizeLinear", "QuantizeLinear", "DequantizeLinear"})


def is_quantised_operator(op: str) -> bool:
    """Whether an operator reads or writes quantised numbers."""
    return op in _CONVERSIONS or op.startswith("QLinear") or op.endswith("Integer")
