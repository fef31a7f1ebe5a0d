"""Einsum carries channels, sums over them, or ties them to those of another operand."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from onnxcompress.analysis.channels import ChannelAnalysis, find_groups
from tests.passes.test_pruning_graphs import Constants, conv, prune, shapes, weight
from tests.small_models import build, node


@pytest.mark.parametrize(
    ("equation", "kernel", "left"),
    [
        ("bchw,cd->bdhw", (12, 5), (6, 5)),
        ("bchw, dc -> bhwd", (5, 12), (5, 6)),
        ("bchw,hcwd->bd", (8, 12, 8, 5), (8, 6, 8, 5)),
    ],
)
def test_channels_are_summed_over(equation: str, kernel: tuple[int, ...], left: tuple[int, ...]) -> None:
    constants: Constants = {"k": weight(*kernel)}
    nodes = [
        conv("a", "x", constants, 6, 12),
        node("Relu", ["a"], "r"),
        node("Einsum", ["r", "k"], "y", equation=equation),
    ]
    pruned = prune(build(nodes, constants))
    assert shapes(pruned) == {"a": (6, 6, 1, 1)}
    assert next(n for n in pruned.nodes if n.op == "Einsum").inputs[1].shape == left


def test_channels_are_carried_and_meet_a_constant() -> None:
    """A sum over positions with weights of their own for every channel, channels last afterwards."""
    constants: Constants = {"k": weight(8, 8, 12), "c.w": weight(12, 3)}
    nodes = [
        conv("a", "x", constants, 6, 12),
        node("Einsum", ["a", "k"], "pooled", equation="bchw,hwc->bc"),
        helper.make_node("MatMul", ["pooled", "c.w"], ["c"], "c"),
    ]
    pruned = prune(build(nodes, constants))
    assert shapes(pruned) == {"a": (6, 6, 1, 1), "c": (6, 3)}
    assert next(n for n in pruned.nodes if n.op == "Einsum").inputs[1].shape == (8, 8, 6)


def test_channels_of_two_operands_leave_together() -> None:
    """As masks are made of queries and pixels: both have the embedding's channels."""
    constants: Constants = {}
    nodes = [
        conv("a", "x", constants, 6, 12),
        conv("b", "x", constants, 6, 12),
        node("Relu", ["b"], "r"),
        node("Einsum", ["a", "r"], "y", equation="bcij,bchw->bijhw"),
    ]
    assert shapes(prune(build(nodes, constants))) == {"a": (6, 6, 1, 1), "b": (6, 6, 1, 1)}


@pytest.mark.parametrize(
    ("equation", "reason"),
    [
        ("bchw,bqc->bqhw", "combined by 'product' with 'z', which does not come from a Conv"),
        ("b...hw,bqc->bqhw", "reaches 'product': Einsum of an equation with '...', a repeated letter or no '->'"),
        ("bchw,bdij->bcd", "is multiplied with channels of another axis or number by 'product'"),
    ],
)
def test_what_cannot_leave_is_told(equation: str, reason: str) -> None:
    constants: Constants = {"one": np.ones(1, np.float32)}
    nodes = [
        conv("a", "x", constants, 6, 12),
        conv("other", "x", constants, 6, 12),
        node("ReduceMean", ["x"], "means", axes=[2, 3], keepdims=0),
        node("Concat", ["means", "means"], "twice", axis=1),
        node("Unsqueeze", ["twice", "axis"], "z"),
        helper.make_node("Einsum", ["a", "other" if "ij" in equation else "z"], ["y"], "product", equation=equation),
    ]
    constants["axis"] = np.array([1])
    groups = find_groups(ChannelAnalysis(build(nodes, constants)), frozenset()).groups
    (group,) = [each for each in groups if "a" in each.producers]
    assert set(group.frozen.values()) == {reason}
