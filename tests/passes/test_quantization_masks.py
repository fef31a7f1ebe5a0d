"""Masks of attention: constants of minus infinity in front of a Softmax do not keep a model from being quantised."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.errors import DataError
from onnxcompress.graph import Model
from onnxcompress.passes.base import Pass, PassContext
from onnxcompress.passes.quantization import Float16Conversion, Int8Quantization
from tests.small_models import build, node, run_all

DATA = {"x": np.random.default_rng(1).standard_normal((8, 5, 12)).astype(np.float32)}


def _attention(*, where: bool) -> Model:
    generator = np.random.default_rng(0)
    masked = np.triu(np.ones((5, 5), bool), 1)
    constants = {name: generator.standard_normal((12, 12)).astype(np.float32) / 3 for name in ("q", "k", "v")}
    constants["mask"] = np.array(-np.inf, np.float32) if where else np.where(masked, -np.inf, 0).astype(np.float32)
    constants["hidden"] = masked
    nodes = [
        *(node("MatMul", ["x", name], f"x{name}", name=name) for name in ("q", "k", "v")),
        node("Transpose", ["xk"], "turned", perm=[0, 2, 1]),
        node("MatMul", ["xq", "turned"], "scores", name="scores"),
        node("Where", ["hidden", "mask", "scores"], "seen")
        if where
        else node("Add", ["scores", "mask"], "seen", name="seen"),
        node("Softmax", ["seen"], "share", axis=-1),
        node("MatMul", ["share", "xv"], "y", name="mix"),
    ]
    return build(nodes, constants, shape=("n", 5, 12))


@pytest.mark.parametrize("where", [False, True])
@pytest.mark.parametrize("each", [Int8Quantization(), Float16Conversion()])
def test_a_masked_attention_is_quantised_and_stays_masked(each: Pass, where: bool) -> None:
    model = _attention(where=where)
    context = PassContext(calibration=lambda: iter([DATA]))
    plan = each.plan(model, context)
    assert {"q", "k", "v"} <= {str(decision["node"]) for decision in plan.decisions}
    reasons = {skipped.node: skipped.reason for skipped in plan.skipped}
    if isinstance(each, Int8Quantization) and not where:
        assert reasons["seen"] == "it reads or writes what a constant masks with infinities"
    small = each.apply(model, plan, context).model
    wanted = run_all(model, DATA)["y"]
    later = {"x": DATA["x"].copy()}
    later["x"][:, 1:] += 1.0  # the first token sees none of the others
    np.testing.assert_allclose(run_all(small, DATA)["y"], wanted, rtol=0, atol=0.05 * np.abs(wanted).max())
    np.testing.assert_array_equal(run_all(small, later)["y"][:, 0], run_all(small, DATA)["y"][:, 0])


def test_infinities_that_the_network_makes_itself_are_still_refused() -> None:
    model = build(
        [node("MatMul", ["x", "w"], "a"), node("MatMul", ["a", "w"], "y")],
        {"w": np.full((12, 12), 3e25, np.float32)},
        shape=("n", 5, 12),
    )
    with pytest.raises(DataError, match="infinite values"):
        Int8Quantization().plan(model, PassContext(calibration=lambda: iter([DATA])))
