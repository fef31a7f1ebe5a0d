"""Half precision around and in the sub-graphs of If and Loop: each side reads what it is written for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.passes.base import PassContext, PassResult
from onnxcompress.passes.quantization import Float16Conversion
from tests.small_models import branch, build, choice, node, repeated_sum, run_all

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 6, 8, 8)).astype(np.float32)
CONSTANTS = {
    "v": RNG.standard_normal((6, 6, 1, 1)).astype(np.float32),
    "w": RNG.standard_normal((4, 6, 1, 1)).astype(np.float32),
    "s": np.full((1,), 1.7, np.float32),
    "yes": np.array(True),
    "times": np.array(3),
    "axis": np.array(2),
}
FIRST, LAST = node("Conv", ["x", "v"], "a", name="first"), node("Conv", ["c", "w"], "y", name="last")
OTHER = branch(node("Abs", ["a"], "other"))


def checked(nodes: Sequence[onnx.NodeProto], exclude: str | None, tolerance: float = 3e-3) -> PassResult:
    model = build(nodes, CONSTANTS, shape=("n", 6, 8, 8), outputs=("y",))
    context = PassContext(exclude=(exclude,) if exclude else ())
    each = Float16Conversion()
    result = each.apply(model, each.plan(model, context), context)
    wanted, seen = (run_all(each, {"x": X})["y"] for each in (model, result.model))
    np.testing.assert_allclose(seen, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())
    return result


@pytest.mark.parametrize("exclude", ["^if$", None])
@pytest.mark.parametrize(
    "inside",
    [
        [node("Neg", ["a"], "b")],
        [node("Conv", ["a", "v"], "b")],
        [node("Add", ["a", "x"], "d"), node("Mul", ["d", "s"], "b")],
        [choice(branch(node("Mul", ["a", "s"], "d")), OTHER, "inner", "b")],
    ],
)
def test_a_branch_reads_what_was_converted_around_it(inside: list[onnx.NodeProto], exclude: str | None) -> None:
    scaled = node("Mul", ["a", "s"], "a2", name="scaled")
    joined = node("Add", ["a2", "c2"], "c", name="joined")
    nodes = [FIRST, scaled, choice(branch(*inside), OTHER, output="c2"), joined, LAST]
    result = checked(nodes, exclude)
    planned = {decision["node"] for decision in result.plan.decisions}
    assert ("if" in planned) == (exclude is None)
    assert {"first", "scaled", "joined", "last"} <= planned


@pytest.mark.parametrize("exclude", ["^loop$", None])
def test_a_body_reads_what_was_converted_around_it(exclude: str | None) -> None:
    checked([FIRST, repeated_sum("x", "a", "c"), LAST], exclude)


def test_branches_may_use_the_same_names() -> None:
    nodes = [node("Mul", ["a", "k"], "inside", name="last")]
    result = checked(
        [FIRST, choice(branch(*nodes, weights={"k": 2}), branch(*nodes, weights={"k": 3})), LAST], "^last$"
    )
    assert {decision["node"] for decision in result.plan.decisions} == {"first", "if"}


@pytest.mark.parametrize("number", [{"value_float": 2.0}, {"value_floats": [2.0]}])
def test_numbers_of_a_branch_are_converted(number: dict[str, Any]) -> None:
    checked(
        [FIRST, choice(branch(node("Constant", [], "k", **number), node("Mul", ["a", "k"], "b")), OTHER), LAST], None
    )


def test_a_branch_with_what_has_no_half_precision_form_stays() -> None:
    result = checked([FIRST, choice(branch(node("CumSum", ["a", "axis"], "b")), OTHER), LAST], None)
    assert [(each.node, each.reason) for each in result.plan.skipped] == [
        ("if", "its sub-graph has CumSum, which stays in float32")
    ]
