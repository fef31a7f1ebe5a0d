"""Gemms whose bias is any constant that is broadcast to their product, times beta: measured, split and fitted anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext, PassResult
from onnxcompress.passes.recovery.allocation import Allocation, AllocationConfig
from onnxcompress.passes.recovery.refit import Refit, RefitConfig
from tests.small_models import build, node, run_all

BATCH = {"x": np.random.default_rng(1).standard_normal((64, 12)).astype(np.float32)}
ROW = np.array([3.0, -2.0, 1.0, 0.5, 4.0, -1.0, 0.0, 2.0, 1.5])


def network(bias: Any, rows: int | str = "n", **attributes: Any) -> Model:
    random = np.random.default_rng(0)
    constants = {
        "w": random.standard_normal((12, 9)).astype(np.float32),
        "c": np.asarray(bias, np.float32),
        "v": random.standard_normal((9, 6)).astype(np.float32),
    }
    nodes = [
        node("Gemm", ["x", "w", "c"], "a", name="first", **attributes),
        node("Relu", ["a"], "b"),
        node("Gemm", ["b", "v"], "y", name="last"),
    ]
    return build(nodes, constants, shape=(rows, 12))


def context_of(model: Model) -> PassContext:
    return PassContext(calibration=lambda: iter([BATCH]), original=model)


def refitted(model: Model, compressed: Model) -> PassResult:
    each, context = Refit(RefitConfig()), context_of(model)
    return each.apply(compressed, each.plan(compressed, context), context)


@pytest.mark.parametrize("attributes", [{}, {"alpha": 0.5, "beta": 2.0}, {"beta": 0.0}])
@pytest.mark.parametrize("bias", [3.0, [3.0], [[3.0]], ROW, ROW[None]])
def test_a_target_measures_layers_of_any_bias(bias: Any, attributes: dict[str, Any]) -> None:
    plain = np.broadcast_to(attributes.get("beta", 1.0) * np.asarray(bias).reshape(-1), (9,))
    both = network(bias, **attributes), network(plain, **{**attributes, "beta": 1.0})
    each = Allocation(AllocationConfig({"macs": 0.8}))
    first, second = (each.plan(model, context_of(model)).decisions for model in both)
    assert first
    for own, other in zip(first, second, strict=True):
        assert (own["node"], own["ranks"]) == (other["node"], other["ranks"])
        assert own["sensitivity"] == pytest.approx(other["sensitivity"], rel=1e-3)


@pytest.mark.parametrize("beta", [1.0, 0.0, 4.0])
def test_a_refit_writes_the_bias_that_counts(beta: float) -> None:
    model = network(ROW, beta=beta)
    damaged = model.copy()
    damaged.set_input(damaged.nodes[0], 1, 0.5 * damaged.nodes[0].inputs[1].values)
    result = refitted(model, damaged)
    wanted, seen = (run_all(each, BATCH)["y"] for each in (model, result.model))
    assert np.linalg.norm(seen - wanted) < 0.01 * np.linalg.norm(wanted)


def test_a_bias_that_differs_from_row_to_row_is_left_alone() -> None:
    model = network(np.arange(64.0)[:, None], rows=64)
    reasons = {each.node: each.reason for each in refitted(model, model.copy()).plan.skipped}
    assert reasons["first"] == "its bias differs from row to row"
