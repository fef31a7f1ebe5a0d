"""Operators of models that are quantised already: what they compute by integers is neither pruned nor split."""

from __future__ import annotations

from collections.abc import Iterable

_CONVERSIONS = frozenset({"DynamicQuantizeLinear", "QuantizeLinear", "DequantizeLinear"})


def is_quantised_operator(op: str) -> bool:
    """Whether an operator reads or writes quantised numbers."""
    return op in _CONVERSIONS or op.startswith("QLinear") or op.endswith("Integer")


def quantised_hint(ops: Iterable[str]) -> str:
    """Return what to add to a message that nothing could be compressed; nothing where no operator is quantised."""
    quantised = sorted(filter(is_quantised_operator, ops))
    return f"; {', '.join(quantised)} tell of a model that is quantised already: give the float one" * bool(quantised)
