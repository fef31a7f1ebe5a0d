"""What exporters make of a simple layer: forms that hold no channel, or all of them, may keep none from leaving."""

from __future__ import annotations

import numpy as np

from tests.passes.test_pruning_graphs import Constants, conv, prune, shapes
from tests.small_models import build, node


def test_computed_pads_that_pass_through_a_split() -> None:
    """As tf2onnx pads by a length read from a tensor: ends and starts are put in order by Split and Concat."""
    constants: Constants = {"zero": [0], "two": [2], "three": [3], "far": [9], "minus": [-7]}
    nodes = [
        conv("a", "x", constants, 6, 8),
        node("Shape", ["a"], "shape"),
        node("Slice", ["shape", "two", "three"], "height"),
        node("Add", ["height", "minus"], "more"),
        node("Concat", ["zero"] * 5 + ["more", "zero", "zero"], "pairs", axis=0),
        node("Split", ["pairs"], *(f"p{i}" for i in range(8)), axis=0),
        node("Concat", [f"p{i}" for i in (0, 2, 4, 6, 1, 3, 5, 7)], "pads", axis=0),
        node("Pad", ["a", "pads"], "padded"),
        conv("b", "padded", constants, 8, 3),
    ]
    pruned = prune(build(nodes, {name: np.asarray(values) for name, values in constants.items()}))
    assert shapes(pruned) == {"a": (4, 6, 1, 1), "b": (3, 4, 1, 1)}
