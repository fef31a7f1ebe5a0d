"""Branches that are weighed against each other, or meet where one of them points."""

from __future__ import annotations

from onnxcompress.analysis.channels import ChannelAnalysis, find_groups
from tests.passes.test_pruning_graphs import Constants, conv, prune, shapes
from tests.small_models import build, node, repeated_sum


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


def test_features_read_where_a_flow_points_leave_and_the_flow_stays() -> None:
    """A map warped by a computed flow and compared with another (PWC-Net, RAFT, deformable attention)."""
    constants: Constants = {}
    nodes = [
        conv("a", "x", constants, 6, 8),
        conv("b", "x", constants, 6, 8),
        conv("flow", "a", constants, 8, 2),
        node("Transpose", ["flow"], "grid", perm=[0, 2, 3, 1]),
        node("GridSample", ["b", "grid"], "warped"),
        node("Mul", ["a", "warped"], "products"),
        conv("c", "products", constants, 8, 3),
    ]
    model = build(nodes, constants, shape=("n", 6, 8, 8))
    assert shapes(prune(model)) == {"a": (4, 6, 1, 1), "b": (4, 6, 1, 1), "flow": (2, 4, 1, 1), "c": (3, 4, 1, 1)}
    (flow,) = (group for group in find_groups(ChannelAnalysis(model)).groups if "flow" in group.producers)
    assert set(flow.frozen.values()) == {"reaches 'GridSample_4': computed positions of GridSample"}


def test_layers_behind_a_loop_of_unknown_shape() -> None:
    constants: Constants = {"times": 2, "yes": True, "flat": [-1, 3]}
    nodes = [
        repeated_sum("x", "x", "sum"),
        conv("a", "sum", constants, 6, 8),
        node("Relu", ["a"], "r"),
        conv("b", "r", constants, 8, 3),
        node("GlobalAveragePool", ["b"], "pooled"),
        node("Reshape", ["pooled", "flat"], "y"),
    ]
    model = build(nodes, constants, shape=("n", 6, 8, 8))
    assert model.shape_of("r") is None
    assert shapes(prune(model)) == {"a": (4, 6, 1, 1), "b": (3, 4, 1, 1)}
