"""A sequence of parts read one by one becomes a Split; what is read otherwise stays, and says why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

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
