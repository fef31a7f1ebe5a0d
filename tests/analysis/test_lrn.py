"""The banded form of LRN is recognised, and nothing else is."""

from __future__ import annotations

import numpy as np
from onnx import helper, numpy_helper

from onnxcompress.analysis.lrn import is_window
from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext
from onnxcompress.passes.pruning import FilterPruning, PruningConfig
from onnxcompress.passes.tucker import SvdConfig, SvdDecomposition


def pruned_network() -> Model:
    random = np.random.default_rng(0)
    weights = {"w1": (16, 3, 3, 3), "w2": (16, 16, 1, 1), "w3": (4, 16, 1, 1)}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("LRN", ["a"], ["b"], name="lrn", size=5, alpha=1e-1, beta=0.75, bias=1.0),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="second"),
        helper.make_node("Mul", ["c", "c"], ["d"], name="square"),
        helper.make_node("Conv", ["d", "w3"], ["y"], name="third"),
    ]
    graph = helper.make_graph(
        nodes,
        "lrn",
        [helper.make_tensor_value_info("x", 1, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", 1, [1, 4, 8, 8])],
        [
            numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)
            for name, shape in weights.items()
        ],
    )
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    pruning, context = FilterPruning(PruningConfig(0.5)), PassContext()
    return pruning.apply(model, pruning.plan(model, context), context).model


def test_only_the_band_of_a_rewritten_lrn_is_a_window() -> None:
    windows = [node.name for node in pruned_network().nodes if is_window(node)]
    assert len(windows) == 1
    assert windows[0].startswith("lrn")


def test_svd_leaves_the_window_alone_with_a_reason() -> None:
    model = pruned_network()
    plan = SvdDecomposition(SvdConfig.from_spec("ratio=0.5")).plan(model, PassContext())
    window = next(node.name for node in model.nodes if is_window(node))
    assert window not in [decision["node"] for decision in plan.decisions]
    assert [skipped.reason for skipped in plan.skipped if skipped.node == window] == [
        "it is the window of an LRN, an exact rewrite that is not approximated"
    ]
