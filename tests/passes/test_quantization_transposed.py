"""Transposed convolutions in eight bits: their filters lie along another axis than those of a Conv."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcompress.passes.base import PassContext
from onnxcompress.passes.quantization import Int8Config, Int8Quantization, verify_quantization
from tests.small_models import build, node, run_all

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("group", [1, 2, 6])
def test_they_are_quantised_whatever_their_groups(group: int, bias: bool, symmetric: bool) -> None:
    constants: dict[str, Any] = {
        "v": RNG.standard_normal((6, 12 // group, 4, 4)).astype(np.float32),
        "c": RNG.standard_normal(12).astype(np.float32),
        "w": RNG.standard_normal((5, 12, 3, 3)).astype(np.float32),
    }
    inputs = ["x", "v", "c"] if bias else ["x", "v"]
    nodes = [node("ConvTranspose", inputs, "a", strides=[2, 2], group=group), node("Conv", ["a", "w"], "y")]
    model = build(nodes, constants, shape=("n", 6, 8, 8))
    feeds = {"x": RNG.standard_normal((8, 6, 8, 8)).astype(np.float32)}
    context = PassContext(calibration=lambda: iter([feeds]))
    each = Int8Quantization(Int8Config(symmetric=symmetric))
    result = each.apply(model, each.plan(model, context), context)
    stored = {t.values.dtype for t in result.model.constants().values() if t.values.ndim > 1}
    assert stored <= {np.dtype(np.int8), np.dtype(np.uint8)}
    before, after = (run_all(m, feeds)["y"] for m in (model, result.model))
    assert np.linalg.norm(after - before) < 0.05 * np.linalg.norm(before)
    verify_quantization(model, result, feeds)
