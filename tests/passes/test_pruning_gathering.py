"""GatherElements and GatherND: what is picked by number stays, channels beside it are carried."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcompress.analysis.channels import ChannelAnalysis, find_groups
from tests.passes.test_pruning_graphs import Constants, conv, prune, shapes, weight
from tests.small_models import build, node

TOKENS = [node("Reshape", ["r", "flat"], "t"), node("Transpose", ["t"], "tokens", perm=[0, 2, 1])]


def network(middle: list[Any], read: str, constants: Constants, *, size: Any = ("n", 6, 8, 8)) -> Any:
    """Return a network of 12 channels, as tokens (n, 64, 12), that a dense layer reads behind `middle`."""
    nodes = [
        conv("a", "x", constants, 6, 12),
        node("Relu", ["a"], "r"),
        *TOKENS,
        *middle,
        node("MatMul", [read, "c.w"], "y", name="c"),
    ]
    own = {**constants, "flat": np.array([0, 12, 64]), "c.w": weight(12, 5)}
    return build(nodes, own, shape=size)


CHOSEN = [
    node("ReduceMax", ["tokens"], "score", axes=[2], keepdims=0),
    node("TopK", ["score", "k"], "best", "where", axis=1),
]
REPEATED = {
    "tile": [node("Unsqueeze", ["where", "last"], "column"), node("Tile", ["column", "times"], "index")],
    "expand": [node("Unsqueeze", ["where", "last"], "column"), node("Expand", ["column", "times"], "index")],
    "counted": [
        node("Unsqueeze", ["where", "last"], "column"),
        node("Shape", ["tokens"], "lengths"),
        node("Slice", ["lengths", "last", "end"], "channels"),
        node("Concat", ["ones", "channels"], "many", axis=0),
        node("Tile", ["column", "many"], "index"),
    ],
}


@pytest.mark.parametrize("way", sorted(REPEATED))
def test_tokens_that_are_picked_for_all_channels_alike_carry_them(way: str) -> None:
    constants: Constants = {"k": np.array([7]), "last": np.array([2]), "times": np.array([1, 1, 12])}
    constants |= {"end": np.array([3]), "ones": np.array([1, 1])}
    middle = [*CHOSEN, *REPEATED[way], node("GatherElements", ["tokens", "index"], "picked", axis=1)]
    assert shapes(prune(network(middle, "picked", constants))) == {"a": (6, 6, 1, 1), "c": (6, 5)}


def test_constant_positions_of_each_channel_leave_with_it() -> None:
    index = np.random.default_rng(0).integers(0, 64, (2, 7, 12))
    middle = [node("GatherElements", ["tokens", "index"], "picked", axis=-2)]
    pruned = prune(network(middle, "picked", {"index": index}, size=(2, 6, 8, 8)))
    assert shapes(pruned) == {"a": (6, 6, 1, 1), "c": (6, 5)}
    assert next(each for each in pruned.nodes if each.op == "GatherElements").inputs[1].shape == (2, 7, 6)


@pytest.mark.parametrize("batch", [0, 1])
def test_rows_that_gather_nd_picks_carry_their_channels(batch: int) -> None:
    rows = np.array([[[3], [5], [60]], [[1], [0], [2]]]) if batch else np.array([[0, 3], [1, 60], [1, 5]])
    middle = [node("GatherND", ["tokens", "index"], "picked", batch_dims=batch)]
    pruned = prune(network(middle, "picked", {"index": rows}, size=(2, 6, 8, 8)))
    assert shapes(pruned) == {"a": (6, 6, 1, 1), "c": (6, 5)}


def test_channels_that_gather_nd_picks_by_known_numbers_are_followed() -> None:
    """As exporters write features[:, numbers]: turned, picked along the first axis, turned back."""
    numbers = np.array([11, 3, 3, -2, 0, 7, 8, 9, 1, 2, 5, 6])[:, None]
    middle = [
        node("Transpose", ["tokens"], "first", perm=[2, 0, 1]),
        node("GatherND", ["first", "numbers"], "chosen"),
        node("Transpose", ["chosen"], "back", perm=[1, 2, 0]),
    ]
    pruned = prune(network(middle, "back", {"numbers": numbers}))
    assert shapes(pruned)["a"] == (6, 6, 1, 1)
    assert shapes(pruned)["c"][0] == len(next(n for n in pruned.nodes if n.op == "GatherND").inputs[1].values)


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        ([node("GatherElements", ["tokens", "index"], "picked", name="pick", axis=2)], "'pick' picks some of them by"),
        (
            [
                node("ArgMax", ["tokens"], "where", axis=1, keepdims=1),
                node("GatherElements", ["tokens", "where"], "picked", name="pick", axis=1),
            ],
            "reaches 'pick': GatherElements by computed indices",
        ),
        ([node("GatherND", ["tokens", "three"], "picked", name="pick")], "'pick' picks some of them by number"),
    ],
)
def test_what_is_picked_by_number_stays(middle: list[Any], reason: str) -> None:
    constants: Constants = {"index": np.zeros((2, 64, 12), np.int64)}
    constants |= {"three": np.zeros((3, 12, 3), np.int64), "flat": np.array([0, 12, 64])}
    nodes = [conv("a", "x", constants, 6, 12), node("Relu", ["a"], "r"), *TOKENS, *middle]
    model = build([*nodes, node("Sigmoid", ["picked"], "y")], constants, shape=(2, 6, 8, 8))
    (group,) = find_groups(ChannelAnalysis(model)).groups
    assert len(group.frozen) == 12
    assert any(why.startswith(reason) for why in group.frozen.values())
