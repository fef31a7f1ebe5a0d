"""Models in fewer bits: judged by samples where there are any, noise is called noise, and none is compressed again."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxcompress
from onnxcompress.errors import BudgetInfeasibleError, ModelError
from tests.tiny_models import conv_net, samples

QUIET: dict[str, Any] = {"quantize": "fp16", "latency": False, "input_shape": {"x": (1, 3, 8, 8)}}
DARK = [{"x": 1e-3 * samples(24)}]
"""On them no value of `net_of_dark_images` is beyond float16's."""


def net_of_dark_images() -> onnx.ModelProto:
    """`conv_net` with values a million times larger, and what an onnxruntime without half precision moves in it."""
    model = conv_net()
    for tensor in model.graph.initializer:
        factor = {"w1": 1e3, "w2": 1e3, "w3": 1e-3}.get(tensor.name, 1.0)
        values = (numpy_helper.to_array(tensor) * factor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    (flatten,) = (node for node in model.graph.node if node.op_type == "Flatten")
    flatten.input[0] = "joined"
    model.graph.node.insert(4, helper.make_node("Split", ["r2"], ["half1", "half2"], "split", axis=1))
    model.graph.node.insert(5, helper.make_node("Concat", ["half2", "half1"], ["joined"], "join", axis=1))
    return model


def test_samples_to_evaluate_on_are_what_half_precision_is_judged_by() -> None:
    result = onnxcompress.compress(net_of_dark_images(), data=DARK, **QUIET)
    assert result.passed
    assert result.report.accuracy is not None
    assert (result.report.accuracy.relative_error or 0.0) < 0.01


def test_an_overflow_on_random_input_is_told_as_such() -> None:
    with pytest.raises(ModelError, match=r"fp16 on random input, where .* inf .*--calib PATH, or --data PATH"):
        onnxcompress.compress(net_of_dark_images(), **QUIET)


def test_an_overflow_on_samples_blames_no_random_input() -> None:
    bright = [{"x": 100 * samples(24)}]
    with pytest.raises(ModelError, match=r"does not stand fp16: its outputs differ by inf"):
        onnxcompress.compress(net_of_dark_images(), data=bright, **QUIET)
    assert onnxcompress.compress(net_of_dark_images(), calib=bright, **QUIET).passed


def test_a_model_that_comes_quantised_is_told_as_such() -> None:
    given: dict[str, Any] = {"calib": [{"x": samples()}], "latency": False}
    quantised = onnxcompress.compress(conv_net(), quantize="int8", **given).model
    pruned = onnxcompress.compress(quantised, prune=0.4, latency=False)
    assert any(
        line.endswith("tell of a model that is quantised already: give the float one")
        for line in pruned.report.warnings
    )
    with pytest.raises(BudgetInfeasibleError, match=r"macs=0\.5 cannot be reached: .* is quantised already: give the"):
        onnxcompress.compress(quantised, target={"macs": 0.5}, **given)
