"""Branches that are weighed against each other: stacked on an axis of their own, with scores along two axes."""

from __future__ import annotations

from tests.passes.test_pruning_graphs import Constants, conv, prune, shapes
from tests.small_models import build, node


def test_selective_kernels() -> None:
    """Branches stacked on an axis of their own, weighed by a softmax over that axis, and summed (SKNet, ResNeSt)."""
    constants: Constants = {"axis": [1], "rows": [0, 2, 8, 1, 1]}
    nodes = [
        conv("a", "x", constants, 6, 8),
        conv("b", "x", constants, 6, 8),
        node("Unsqueeze", ["a", "axis"], "first"),
        node("Unsqueeze", ["b", "axis"], "second"),
        node("Concat", ["first", "second"], "stack", axis=1),
        node("ReduceSum", ["stack", "axis"], "sum", keepdims=0),
        node("GlobalAveragePool", ["sum"], "pooled"),
        conv("squeeze", "pooled", constants, 8, 4),
        conv("excite", "squeeze", constants, 4, 16),
        node("Reshape", ["excite", "rows"], "scores"),
        node("Softmax", ["scores"], "weights", axis=1),
        node("Mul", ["stack", "weights"], "weighed"),
        node("ReduceSum", ["weighed", "axis"], "chosen", keepdims=0),
        conv("c", "chosen", constants, 8, 3),
    ]
    pruned = prune(build(nodes, constants, shape=("n", 6, 8, 8)))
    assert shapes(pruned) == {
        "a": (4, 6, 1, 1),
        "b": (4, 6, 1, 1),
        "squeeze": (2, 4, 1, 1),
        "excite": (8, 2, 1, 1),
        "c": (3, 4, 1, 1),
    }
