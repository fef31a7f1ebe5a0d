"""What pruning does to filters that several nodes share: they leave all of them, or none."""

from __future__ import annotations

import numpy as np
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


def test_a_constant_that_some_readers_slice_alike_is_there_once_for_them() -> None:
    constants: Constants = {name: np.full(8, value, np.float32) for name, value in (("zeros", 0.0), ("ones", 1.0))}
    nodes = []
    for name, source in (("a", "x"), ("b", "a.n"), ("c", "x")):
        nodes.append(conv(name, source, constants, 6 if source == "x" else 8, 8))
        constants[f"{name}.s"] = weight(8)
        norm = ["ones", "zeros", "zeros", f"{name}.s"] if name == "b" else [f"{name}.s", "zeros", "zeros", "ones"]
        nodes.append(helper.make_node("BatchNormalization", [name, *norm], [f"{name}.n"], f"{name}.n", epsilon=0.0))
    nodes.append(conv("d", "b.n", constants, 8, 4))
    constants["b.s"] = np.abs(constants["b.s"])
    model = build(nodes, constants, outputs=["d", "c.n"])
    pruned = prune(model, 0.25)
    inputs = {node.name: node.inputs for node in pruned.nodes}
    assert [len(inputs[name][1].values) for name in ("a.n", "b.n", "c.n")] == [6, 6, 8]
    assert inputs["a.n"][2] is inputs["a.n"][3] is inputs["b.n"][2] is inputs["b.n"][3]
    assert inputs["a.n"][4] is inputs["b.n"][1]
    assert inputs["c.n"][2] is not inputs["a.n"][2]
    assert len(pruned.constants()) == len(model.constants()) + 2
