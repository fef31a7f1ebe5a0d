"""What pruning does to filters that several nodes share: they leave all of them, or none."""

from __future__ import annotations

from onnx import helper

from onnxcompress.passes.base import PassContext
from onnxcompress.passes.pruning import FilterPruning, PruningConfig
from tests.passes.test_pruning_graphs import Constants, conv, prune, shapes, weight
from tests.small_models import build


def test_filters_that_two_levels_share_leave_both_and_stay_one_weight() -> None:
    constants: Constants = {}
    nodes = [
        conv("a", "x", constants, 6, 8),
        conv("b", "a", constants, 8, 8),
        conv("c", "a", constants, 8, 12),
        conv("d", "b", constants, 8, 4),
        helper.make_node("Conv", ["c", "e.w"], ["e"], "e"),
        helper.make_node("Conv", ["e", "c.w", "c.b"], ["f"], "f"),
        conv("g", "f", constants, 12, 4),
    ]
    constants["e.w"] = weight(8, 12, 1, 1)
    pruned = prune(build(nodes, constants, outputs=["d", "g"]), 0.25)
    weights = {n.name: n.inputs[1] for n in pruned.nodes}
    assert weights["c"] is weights["f"]
    assert shapes(pruned)["c"] == (9, 6, 1, 1)
    assert (shapes(pruned)["a"], shapes(pruned)["e"]) == ((6, 6, 1, 1), (6, 9, 1, 1))


def test_filters_shared_with_a_layer_that_keeps_them_stay() -> None:
    constants: Constants = {}
    nodes = [
        conv("a", "x", constants, 6, 8),
        conv("b", "a", constants, 8, 4),
        helper.make_node("Conv", ["x", "a.w"], ["out"], "out"),
    ]
    model = build(nodes, constants, outputs=["b", "out"])
    plan = FilterPruning(PruningConfig(0.5)).plan(model, PassContext())
    assert plan.decisions == ()
    assert {"a", "out"} <= {each.node for each in plan.skipped}
