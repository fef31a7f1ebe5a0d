"""A sequence of parts read one by one becomes a Split; what is read otherwise stays, and says why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcompress.errors import RecipeError
from onnxcompress.passes.base import PassContext
from onnxcompress.passes.cleanup import Cleanup
from tests.passes.cleanup_models import assert_same_bits, clean, ops
from tests.passes.test_pruning_graphs import Constants, conv, prune, shapes
from tests.small_models import build, node

PLACES: dict[str, Any] = {"first": np.array(0), "second": np.array(1), "last": np.array(-1)}


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize(("sizes", "parts"), [(3, [3, 3, 2]), ([2, 5, 1], [2, 5, 1])])
def test_parts_of_equal_and_of_given_sizes(opset: int, sizes: int | list[int], parts: list[int]) -> None:
    nodes = [
        node("SplitToSequence", ["x", "sizes"], "parts", axis=-1),
        node("SequenceAt", ["parts", "first"], "a"),
        node("SequenceAt", ["parts", "last"], "b"),
        node("SequenceAt", ["parts", "first"], "c"),
        node("Concat", ["a", "b", "c"], "y", axis=3),
    ]
    model = build(nodes, {**PLACES, "sizes": np.array(sizes)}, opset=opset, shape=(2, 6, 8, 8))
    cleaned, _ = clean(model, "split")
    split = next(each for each in cleaned.nodes if each.op == "Split")
    assert ops(cleaned) == ["Split", "Identity", "Concat"]
    assert [int(size) for size in (split.attrs["split"] if opset < 13 else split.inputs[1].values)] == parts
    assert_same_bits(model, cleaned)


def test_channels_of_a_chunk_are_pruned() -> None:
    constants: Constants = {**PLACES, "half": np.array(6)}
    nodes = [
        conv("a", "x", constants, 6, 12),
        node("SplitToSequence", ["a", "half"], "parts", axis=1),
        node("SequenceAt", ["parts", "first"], "value"),
        node("SequenceAt", ["parts", "second"], "gate"),
        node("Sigmoid", ["gate"], "open"),
        node("Mul", ["value", "open"], "gated"),
        conv("c", "gated", constants, 6, 3),
    ]
    cleaned, _ = clean(build(nodes, constants))
    assert shapes(prune(cleaned)) == {"a": (6, 6, 1, 1), "c": (3, 3, 1, 1)}


@pytest.mark.parametrize(
    ("shape", "reader", "reason"),
    [
        ((2, 6, 8, "w"), "SequenceAt", "the sizes of its parts are not known before the run"),
        ((2, 6, 8, 8), "ConcatFromSequence", "its parts are not only read one by one, at places known before the run"),
    ],
)
def test_what_stays_says_why(shape: tuple[int | str, ...], reader: str, reason: str) -> None:
    read = node(reader, ["parts", "first"], "y") if reader == "SequenceAt" else node(reader, ["parts"], "y", axis=0)
    nodes = [node("SplitToSequence", ["x", "sizes"], "parts", axis=3), read]
    constants = {"sizes": np.array(4), **({"first": np.array(0)} if reader == "SequenceAt" else {})}
    cleaned, plan = clean(build(nodes, constants, shape=shape), "split")
    assert ops(cleaned) == ["SplitToSequence", reader]
    assert [each.reason for each in plan.skipped] == [f"split: {reason}"]


def test_a_list_that_is_only_joined_is_a_concat() -> None:
    constants: Constants = {}
    nodes = [
        conv("a", "x", constants, 6, 4),
        conv("b", "x", constants, 6, 8),
        node("SequenceConstruct", ["b", "a", "b"], "list"),
        node("ConcatFromSequence", ["list"], "joined", axis=-3),
        conv("c", "joined", constants, 20, 3),
    ]
    model = build(nodes, constants)
    cleaned, _ = clean(model)
    assert ops(cleaned) == ["Conv", "Conv", "Concat", "Conv"]
    assert_same_bits(model, cleaned, h=8, w=8)
    assert shapes(prune(cleaned)) == {"a": (2, 6, 1, 1), "b": (4, 6, 1, 1), "c": (3, 10, 1, 1)}


@pytest.mark.parametrize("way", ["stacked", "read again"])
def test_a_list_that_is_stacked_or_read_again_stays(way: str) -> None:
    nodes = [
        node("SequenceConstruct", ["x", "x"], "list"),
        node("ConcatFromSequence", ["list"], "y", axis=0, new_axis=int(way == "stacked")),
        *([node("SequenceAt", ["list", "first"], "z")] if way == "read again" else []),
    ]
    outputs = ["y", "z"] if way == "read again" else ["y"]
    cleaned, _ = clean(build(nodes, {"first": np.array(0)}, shape=(2, 6, 8, 8), outputs=outputs), "split")
    assert ops(cleaned)[:2] == ["SequenceConstruct", "ConcatFromSequence"]


def test_a_plan_for_a_list_of_another_model_is_refused() -> None:
    join = node("ConcatFromSequence", ["list"], "y", name="join", axis=1)
    model = build([node("SequenceConstruct", ["x", "x"], "list"), join], shape=(2, 6, 8, 8))
    other = build([node("Concat", ["x", "x"], "y", name="join", axis=1)], shape=(2, 6, 8, 8))
    with pytest.raises(RecipeError, match=r"^plan: clean-up joins a list at 'join', which this model has not there"):
        Cleanup().apply(other, Cleanup().plan(model, PassContext()), PassContext())
