"""An If whose condition is known before the run becomes the branch that it takes, whatever stands in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext
from onnxcompress.passes.pruning import FilterPruning, PruningConfig
from tests.passes.cleanup_models import assert_same_bits, clean, ops, reasons
from tests.small_models import build, node

GENERATOR = np.random.default_rng(0)


def weight(*shape: int) -> Any:
    return GENERATOR.standard_normal(shape).astype(np.float32)


def branch(nodes: list[onnx.NodeProto], *results: str, **constants: Any) -> onnx.GraphProto:
    """Return a sub-graph that reads what it likes from outside."""
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in results]
    stored = [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()]
    return helper.make_graph(nodes, "branch", [], outputs, stored)


def squeezed(*, length: int) -> Model:
    """Return a network that takes an axis away where it is 1 long, as exporters write it."""
    taken = branch([node("ReduceSum", ["r", "axis"], "s", keepdims=0), node("Unsqueeze", ["s", "axis"], "t")], "t")
    kept = branch([node("Identity", ["r"], "t")], "t")
    nodes = [
        node("Conv", ["x", "w"], "c", name="first"),
        node("Relu", ["c"], "r"),
        node("Shape", ["r"], "shape"),
        node("Gather", ["shape", "two"], "length"),
        node("Equal", ["length", "one"], "is one"),
        node("If", ["is one"], "d", name="choice", then_branch=taken, else_branch=kept),
        node("Conv", ["d", "v"], "y", name="second"),
    ]
    constants = {"w": weight(8, 6, 1, 1), "v": weight(4, 8, 1, 1), "two": np.array(2), "one": np.array(1)}
    return build(nodes, constants | {"axis": np.array([2])}, shape=("n", 6, length, 5))


@pytest.mark.parametrize("length", [1, 5])
def test_sizes_decide_and_filters_on_both_sides_are_pruned(length: int) -> None:
    model = squeezed(length=length)
    cleaned, _ = clean(model, "fold", "identity")
    assert ("If" in ops(model), "If" in ops(cleaned)) == (True, False)
    assert ("ReduceSum" in ops(cleaned)) == (length == 1)
    assert_same_bits(model, cleaned)
    pruning = FilterPruning(PruningConfig(ratio=0.5))
    assert not pruning.plan(model, PassContext()).decisions
    result = pruning.apply(cleaned, pruning.plan(cleaned, PassContext()), PassContext()).model
    assert [t.values.shape for t in result.constants().values() if t.values.ndim == 4] == [(4, 6, 1, 1), (4, 4, 1, 1)]


@pytest.mark.parametrize("taken", [True, False])
def test_results_weights_and_names_of_branches(taken: bool) -> None:
    """A weight as result, a node with a sub-graph of its own; the names stand twice."""
    deep = branch([node("Mul", ["p", "q"], "m")], "m")
    inner = node("If", ["unsure"], "deep", then_branch=deep, else_branch=branch([node("Neg", ["p"], "m")], "m"))
    plain, last = node("Identity", ["x"], "i"), node("Neg", ["p"], "n")
    first = branch([node("Add", ["x", "q"], "p", name="n"), inner, plain], "deep", "p", "i", "q", q=weight(6, 1, 1))
    other = branch([node("Abs", ["x"], "p", name="n"), last, plain], "n", "p", "i", "q", q=weight(6, 1, 1))
    nodes = [
        node("ReduceMax", ["x"], "largest", keepdims=0),
        node("Greater", ["largest", "zero"], "unsure"),
        node("If", ["flag"], "a", "b", "c", "d", name="one", then_branch=first, else_branch=other),
        node("If", ["flag"], "e", "f", "g", "h", name="two", then_branch=first, else_branch=other),
        node("Sum", list("abcdefgh"), "y"),
    ]
    constants = {"flag": np.array([taken]), "zero": np.array(0, np.float32)}
    model = build(nodes, constants, outputs=["y", "d", "f"])
    cleaned, plan = clean(model, "fold")
    assert ops(cleaned).count("If") == 2 * taken
    assert {d["node"]: d["from"] for d in plan.decisions} == {"one": "condition", "two": "condition"}
    assert len({each.name for each in cleaned.nodes}) == len(cleaned.nodes)
    assert_same_bits(model, cleaned)


def test_one_that_is_excluded_or_not_known_stays() -> None:
    model = squeezed(length=1)
    cleaned, plan = clean(model, "fold", context=PassContext(exclude=("^choice$",)))
    assert "If" in ops(cleaned)
    assert reasons(plan)["choice"] == "fold: 'choice' is excluded by --exclude"
