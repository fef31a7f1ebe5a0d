"""A Pad becomes the padding of what reads it: exactly, where each reader can take it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.errors import RecipeError
from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext, Plan
from onnxcompress.passes.cleanup import Cleanup, CleanupConfig
from tests.passes.cleanup_models import assert_close, assert_same_bits, clean, ops, reasons, weight
from tests.small_models import build, node

ONE_SIDED = (0, 0, 0, 0, 0, 0, 1, 1)
LEAST = float(np.finfo(np.float32).min)


def padded(
    reader: onnx.NodeProto, value: float | None = 0.0, pads: tuple[int, ...] = ONE_SIDED, *, before: str = "Relu"
) -> Model:
    """Conv, Relu, Pad, and a node that reads `p` and gives `y`."""
    inputs = ["r", "pads"] if value is None else ["r", "pads", "value"]
    nodes = [
        node("Conv", ["x", "w"], "a", name="first"),
        node(before, ["a"], "r", name="between"),
        node("Pad", inputs, "p", name="pad"),
        reader,
    ]
    constants = {"w": weight(8, 6, 3, 3), "v": weight(4, 8 + pads[5], 3, 3), "pads": np.array(pads, np.int64)}
    if value is not None:
        constants["value"] = np.float32(value)
    return build(nodes, constants, shape=("n", 6, 12, 11))


def attributes_of(model: Model, name: str) -> dict[str, Any]:
    return dict(next(each for each in model.nodes if each.name == name).attrs)


CONV = node("Conv", ["p", "v"], "y", name="reader", strides=[2, 2])
POOLED = {"kernel_shape": [3, 3], "strides": [2, 2], "name": "reader"}


@pytest.mark.parametrize("value", [0.0, None])
def test_a_convolution_takes_zeros(value: float | None) -> None:
    model = padded(CONV, value)
    cleaned, plan = clean(model)
    assert plan.decisions == ({"step": "pad", "round": 1, "node": "pad", "op": "Pad", "readers": ["reader"]},)
    assert attributes_of(cleaned, "reader")["pads"] == [0, 0, 1, 1]
    assert_same_bits(model, cleaned)


def test_padding_is_added_to_what_the_reader_has() -> None:
    model = padded(node("Conv", ["p", "v"], "y", name="reader", pads=[1, 2, 0, 1]), 0.0, (0, 0, 2, 1, 0, 0, 1, 0))
    cleaned, _ = clean(model)
    assert attributes_of(cleaned, "reader")["pads"] == [3, 3, 1, 1]
    assert_close(model, cleaned, 1e-6)


@pytest.mark.parametrize(("value", "before"), [(0.0, "Relu"), (-np.inf, "Neg"), (LEAST, "Neg"), (-1.0, "Sigmoid")])
def test_a_maximum_takes_what_is_never_the_largest(value: float, before: str) -> None:
    model = padded(node("MaxPool", ["p"], "y", **POOLED), value, (0, 0, 1, 1, 0, 0, 1, 1), before=before)
    cleaned, _ = clean(model)
    assert ops(cleaned) == ["Conv", before, "MaxPool"]
    assert_same_bits(model, cleaned)


@pytest.mark.parametrize("own", [{}, {"pads": [0, 0, 0, 0]}, {"pads": [1, 0, 1, 0], "count_include_pad": 1}])
def test_a_mean_takes_zeros_that_count(own: dict[str, Any]) -> None:
    model = padded(node("AveragePool", ["p"], "y", **POOLED, **own))
    cleaned, _ = clean(model)
    assert ops(cleaned) == ["Conv", "Relu", "AveragePool"]
    assert attributes_of(cleaned, "reader")["count_include_pad"] == 1
    assert_close(model, cleaned, 1e-6)


@pytest.mark.parametrize("opset", [9, 13, 18])
def test_the_padding_is_read_in_every_opset(opset: int) -> None:
    constants: dict[str, Any] = {"w": weight(8, 6, 3, 3), "v": weight(4, 8, 3, 3)}
    pads: dict[int, onnx.NodeProto] = {
        9: node("Pad", ["a"], "p", name="pad", pads=[0, 0, 1, 0, 0, 0, 1, 2]),
        13: node("Pad", ["a", "pads"], "p", name="pad"),
        18: node("Pad", ["a", "pads", "", "axes"], "p", name="pad"),
    }
    if opset > 9:
        constants["pads"] = np.array([0, 0, 1, 0, 0, 0, 1, 2] if opset == 13 else [1, 0, 1, 2], np.int64)
    if opset == 18:
        constants["axes"] = np.array([-2, 3], np.int64)
    nodes = [node("Conv", ["x", "w"], "a", name="first"), pads[opset], node("Conv", ["p", "v"], "y", name="reader")]
    model = build(nodes, constants, opset=opset, shape=("n", 6, 12, 11))
    cleaned, _ = clean(model)
    assert attributes_of(cleaned, "reader")["pads"] == [1, 0, 1, 2]
    assert_same_bits(model, cleaned)


def test_one_pad_behind_the_other() -> None:
    nodes = [
        node("Pad", ["x", "pads"], "p", name="inner"),
        node("Pad", ["p", "pads"], "q", name="outer"),
        node("Conv", ["q", "w"], "y", name="reader", auto_pad="VALID"),
    ]
    model = build(nodes, {"pads": np.array(ONE_SIDED), "w": weight(8, 6, 3, 3)}, shape=("n", 6, 12, 11))
    cleaned, _ = clean(model)
    assert ops(cleaned) == ["Conv"]
    assert attributes_of(cleaned, "reader") == {"pads": [0, 0, 2, 2]}
    assert_same_bits(model, cleaned)


@pytest.mark.parametrize(
    ("reader", "value", "pads", "before", "reason"),
    [
        (CONV, 1.0, ONE_SIDED, "Relu", "pads with zeros, not with 1"),
        (node("Conv", ["p", "v"], "y", name="reader", auto_pad="SAME_UPPER"), 0.0, ONE_SIDED, "Relu", "auto_pad"),
        (node("MaxPool", ["p"], "y", **POOLED), 0.0, ONE_SIDED, "Neg", "may find the padding, 0, the largest"),
        (node("MaxPool", ["p"], "y", **POOLED), np.nan, ONE_SIDED, "Relu", "may find the padding, nan, the largest"),
        (node("MaxPool", ["p"], "y", **POOLED, ceil_mode=1), 0.0, ONE_SIDED, "Relu", "ceil_mode"),
        (node("MaxPool", ["p"], "y", **POOLED, dilations=[2, 2]), 0.0, ONE_SIDED, "Relu", "dilations"),
        (node("MaxPool", ["p"], "y", **POOLED), 0.0, (0, 0, 3, 0, 0, 0, 0, 0), "Relu", "windows of padding alone"),
        (node("AveragePool", ["p"], "y", **POOLED, pads=[1, 1, 0, 0]), 0.0, ONE_SIDED, "Relu", "over other padding"),
        (node("AveragePool", ["p"], "y", **POOLED), 0.5, ONE_SIDED, "Relu", "over other padding"),
    ],
)
def test_what_cannot_take_it_says_why(
    reader: onnx.NodeProto, value: float, pads: tuple[int, ...], before: str, reason: str
) -> None:
    model = padded(reader, value, pads, before=before)
    cleaned, plan = clean(model)
    assert "Pad" in ops(cleaned)
    assert reason in reasons(plan)["pad"]


@pytest.mark.parametrize("pads", [(0, 0, -1, 0, 0, 0, 0, 0), (0, 0, 0, 0, 0, 1, 1, 1), (1, 0, 0, 0, 0, 0, 0, 0)])
def test_other_padding_stays(pads: tuple[int, ...]) -> None:
    """Cut off, more channels, more samples."""
    assert "Pad" in ops(clean(padded(CONV, 0.0, pads))[0])


def test_a_pad_of_a_number_stays() -> None:
    nodes = [node("ReduceSum", ["x"], "sum", keepdims=0), node("Pad", ["sum", "pads"], "y", name="pad")]
    model = build(nodes, {"pads": np.empty(0, np.int64)}, shape=("n", 6, 12, 11))
    assert ops(clean(model, "pad")[0]) == ["ReduceSum", "Pad"]


def test_all_readers_take_it_or_none() -> None:
    constants = {"pads": np.array(ONE_SIDED), "w": weight(8, 6, 3, 3), "v": weight(8, 6, 1, 1)}
    first = [node("Pad", ["x", "pads"], "p", name="pad"), node("Conv", ["p", "w"], "a", name="three")]
    both = [*first, node("Conv", ["p", "v"], "b", name="one")]
    model = build(both, constants, shape=("n", 6, 12, 11), outputs=("a", "b"))
    cleaned, _ = clean(model)
    assert ops(cleaned) == ["Conv", "Conv"]
    assert_same_bits(model, cleaned)
    other = build(
        [*first, node("Relu", ["p"], "b", name="relu")], constants, shape=("n", 6, 12, 11), outputs=("a", "b")
    )
    cleaned, plan = clean(other)
    assert "Pad" in ops(cleaned)
    assert reasons(plan)["pad"] == "pad: 'relu' (Relu) has no padding of its own"


def test_an_excluded_reader_keeps_its_pad() -> None:
    cleaned, plan = clean(padded(CONV), context=PassContext(exclude=("reader",)))
    assert "Pad" in ops(cleaned)
    assert "'reader' is excluded" in reasons(plan)["pad"]


def test_a_plan_of_another_model_is_refused() -> None:
    plan = Plan("cleanup", ({"step": "pad", "round": 1, "node": "pad", "op": "Pad", "readers": ["reader"]},))
    with pytest.raises(RecipeError, match="takes 'pad' into its readers"):
        Cleanup(CleanupConfig()).apply(padded(CONV, 1.0), plan, PassContext())
