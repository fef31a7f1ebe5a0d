"""A convolution that slides along the channels, as ECA's attention does: what leaves is zero to its neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcompress.analysis.channels import ChannelAnalysis, find_groups
from tests.passes.test_pruning_graphs import Constants, conv, prune, shapes, weight
from tests.small_models import build, node


def attending(kernel: Any, *, opset: int = 17, bias: bool = False, **attributes: Any) -> Any:
    """Return a network of 12 channels, each weighed by what a convolution along all of them makes of their means."""
    constants: Constants = {"k": kernel, "row": np.array([0, 1, -1]), "maps": np.array([0, -1, 1, 1])}
    own = ["k"]
    if bias:
        constants["k.b"] = np.array([0.3], np.float32)
        own.append("k.b")
    nodes = [
        conv("a", "x", constants, 6, 12),
        node("Relu", ["a"], "r"),
        node("GlobalAveragePool", ["r"], "p"),
        node("Reshape", ["p", "row"], "v"),
        node("Conv", ["v", *own], "e", name="along", **attributes),
        node("Sigmoid", ["e"], "s"),
        node("Reshape", ["s", "maps"], "m"),
        node("Mul", ["r", "m"], "w"),
        conv("c", "w", constants, 12, 4),
    ]
    return build(nodes, constants, opset=opset)


@pytest.mark.parametrize("opset", [10, 13, 18])
@pytest.mark.parametrize(
    ("size", "bias", "attributes"),
    [
        (3, False, {"pads": [1, 1]}),
        (5, True, {"pads": [2, 2]}),
        (3, False, {"pads": [2, 2], "dilations": [2]}),
        (5, True, {"auto_pad": "SAME_UPPER"}),
        (3, True, {"pads": [2, 0]}),
    ],
)
def test_channels_leave_and_their_neighbours_stay_apart(
    size: int, bias: bool, attributes: dict[str, Any], opset: int
) -> None:
    pruned = prune(attending(weight(1, 1, size), opset=opset, bias=bias, **attributes))
    assert shapes(pruned) == {"a": (6, 6, 1, 1), "along": (1, 1, size), "c": (4, 6, 1, 1)}
    along = next(each for each in pruned.nodes if each.name == "along")
    assert pruned.shape_of(along.inputs[0])[-1] == 12
    assert [each.op for each in pruned.nodes if each.op in ("Pad", "Gather")] == ["Pad", "Gather", "Gather"]


@pytest.mark.parametrize("attributes", [{}, {"strides": [2], "pads": [1, 1]}])
def test_results_that_are_not_one_for_each_channel_keep_them(attributes: dict[str, Any]) -> None:
    constants: Constants = {"k": weight(1, 1, 3), "row": np.array([0, 1, -1])}
    nodes = [
        conv("a", "x", constants, 6, 12),
        node("GlobalAveragePool", ["a"], "p"),
        node("Reshape", ["p", "row"], "v"),
        node("Conv", ["v", "k"], "e", name="along", **attributes),
    ]
    group, _ = find_groups(ChannelAnalysis(build(nodes, constants))).groups
    assert set(group.frozen.values()) == {"reaches 'along' on another axis than its channels"}
