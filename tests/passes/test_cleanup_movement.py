"""Clean-up of what moves nothing: Gathers that count through everything in order, Expands that broadcasting does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcompress.analysis.positions import positions
from onnxcompress.analysis.shapes import ShapeValues
from onnxcompress.passes.base import PassContext
from tests.passes.cleanup_models import assert_same_bits, clean, ops, reasons
from tests.small_models import build, node


@pytest.mark.parametrize(
    ("numbers", "axis", "shape", "kept"),
    [
        (np.arange(24).reshape(2, 3, 4), 1, (2, 24, 5), False),
        (np.arange(6), 1, ("n", 6, "h"), False),
        (np.arange(6).reshape(2, 3), -1, ("n", 3, 6), False),
        (np.arange(6).reshape(2, 3), 1, ("n", 6, "h"), False),
        (np.arange(6).reshape(2, 3), 0, (6, "h", "w"), True),  # two lengths are open
        (np.arange(5), 1, ("n", 6, 4), True),  # the first ones only
        (np.arange(6)[::-1], 1, ("n", 6, 4), True),
        (np.arange(6).reshape(2, 3).T, 1, (2, 6, 4), True),
        (np.array([0, 1, 2, 3, 5, 4]), 1, ("n", 6, 4), True),
        (np.arange(6) - 6, 1, ("n", 6, 4), True),
        (np.array([0]), 1, ("n", 1, 4), True),
    ],
)
def test_a_gather_of_all_in_order_is_a_reshape(numbers: Any, axis: int, shape: Any, kept: bool) -> None:
    nodes = [node("Relu", ["x"], "r"), node("Gather", ["r", "numbers"], "g", axis=axis), node("Neg", ["g"], "y")]
    model = build(nodes, {"numbers": np.ascontiguousarray(numbers, np.int64)}, shape=shape)
    cleaned, _ = clean(model)
    assert ("Gather" in ops(cleaned)) == kept
    assert_same_bits(model, cleaned)


def test_computed_numbers_must_count_through_each_sample() -> None:
    """`n * step + c` over samples of 6 numbers each is in order for a step of 6 alone."""
    for step, kept in ((6, False), (5, True)):
        nodes = [
            node("Reshape", ["x", "flat"], "row"),
            node("Shape", ["x"], "lengths"),
            node("Gather", ["lengths", "zero"], "n"),
            node("Range", ["zero", "n", "one"], "samples"),
            node("Mul", ["step", "samples"], "starts"),
            node("Unsqueeze", ["starts", "behind"], "rows"),
            node("Add", ["six", "rows"], "numbers"),
            node("Gather", ["row", "numbers"], "g"),
            node("Neg", ["g"], "y"),
        ]
        constants = {"flat": [-1], "zero": 0, "one": 1, "step": step, "behind": [1], "six": np.arange(6)}
        model = build(nodes, {name: np.asarray(value) for name, value in constants.items()}, shape=("n", 6))
        found = positions(model, ShapeValues(model), model.graph.tensors()["numbers"])
        assert found is not None
        assert (found.shape, found.offset, found.strides) == (("n", 6), 0, (step, 1))
        cleaned, _ = clean(model)
        assert ("Gather" in ops(cleaned)) == kept
        assert_same_bits(model, cleaned)


def test_what_is_no_sum_of_positions_is_not_known() -> None:
    nodes = [
        node("Shape", ["x"], "lengths"),
        node("Gather", ["lengths", "zero"], "n"),
        node("Range", ["one", "n", "one"], "from one"),
        node("Range", ["zero", "n", "one"], "samples"),
        node("Mul", ["samples", "samples"], "squares"),
        node("Add", ["samples", "six"], "other lengths"),
        node("Sub", ["samples", "one"], "difference"),
        node("Neg", ["x"], "y"),
    ]
    constants = {"zero": np.array(0), "one": np.array(1), "six": np.arange(6), "odd": np.array([0, 1, 3])}
    model = build(nodes, constants, outputs=["y", "from one", "squares", "other lengths", "difference"])
    shape_values, tensors = ShapeValues(model), model.graph.tensors()
    for name in ("from one", "squares", "other lengths", "difference", "n", "x"):
        assert positions(model, shape_values, tensors[name]) is None, name


@pytest.mark.parametrize(
    ("reader", "kept"),
    [
        (node("Mul", ["x", "e"], "y"), False),
        (node("Where", ["c", "e", "x"], "y"), False),
        (node("Max", ["e", "one", "x"], "y"), False),
        (node("Mul", ["e", "e"], "y"), True),
        (node("Mul", ["e", "p"], "y"), True),  # as wide as what is expanded
        (node("Concat", ["e", "x"], "y", axis=1), True),
        (node("PRelu", ["e", "x"], "y"), True),  # the slope alone is broadcast
    ],
)
def test_an_expand_goes_where_its_readers_broadcast(reader: Any, kept: bool) -> None:
    nodes = [
        node("GlobalMaxPool", ["x"], "p"),
        node("Shape", ["x"], "shape"),
        node("Expand", ["p", "shape"], "e"),
        node("Greater", ["x", "p"], "c"),
        reader,
    ]
    model = build(nodes, {"one": np.float32(1.0)}, shape=("n", 6, 5, "w"))
    cleaned, _ = clean(model)
    assert ("Expand" in ops(cleaned)) == kept
    assert_same_bits(model, cleaned)


def test_an_expand_stays_for_one_reader_or_one_side() -> None:
    """Two expanded operands need one of the two; what is an output stays, and so does what the user excludes."""
    nodes = [
        node("ReduceMax", ["x"], "row", axes=[2]),
        node("ReduceMax", ["x"], "column", axes=[3]),
        node("Shape", ["x"], "shape"),
        node("Expand", ["row", "shape"], "e1", name="first"),
        node("Expand", ["column", "shape"], "e2", name="second"),
        node("Add", ["e1", "e2"], "y"),
    ]
    model = build(nodes, shape=("n", 6, 5, 4))
    cleaned, _ = clean(model)
    assert ops(cleaned).count("Expand") == 0  # a row and a column broadcast to the map
    assert_same_bits(model, cleaned)
    narrow = build([*nodes[:1], *nodes[2:4], node("Expand", ["row", "shape"], "e2"), nodes[-1]], shape=("n", 6, 5, 4))
    cleaned, _ = clean(narrow)
    assert ops(cleaned).count("Expand") == 1
    assert_same_bits(narrow, cleaned)
    seen = build([*nodes[:1], *nodes[2:4], node("Add", ["e1", "x"], "y")], shape=("n", 6, 5, 4), outputs=["y", "e1"])
    assert "Expand" in ops(clean(seen)[0])
    _, plan = clean(model, context=PassContext(exclude=("first", "second")))
    assert set(reasons(plan)) >= {"first", "second"}
