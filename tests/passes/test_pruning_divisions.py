"""What pruning leaves of channels divided into groups, or put back together by lengths that a Reshape leaves open."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from tests.passes.test_pruning_graphs import Constants, conv, prune, shapes, weight
from tests.small_models import build, node


@pytest.mark.parametrize(("groups", "left"), [(12, 6), (6, 3)])
def test_group_normalisation_loses_whole_groups(groups: int, left: int) -> None:
    constants: Constants = {"s": weight(12), "b": weight(12)}
    nodes = [
        conv("a", "x", constants, 6, 12),
        node("GroupNormalization", ["a", "s", "b"], "normal", num_groups=groups),
        conv("c", "normal", constants, 12, 3),
    ]
    pruned = prune(build(nodes, constants, opset=21))
    (normal,) = [n for n in pruned.nodes if n.op == "GroupNormalization"]
    assert (normal.attrs["num_groups"], normal.inputs[1].shape, normal.inputs[2].shape) == (left, (6,), (6,))


@pytest.mark.parametrize("groups", [6, 2])
def test_instance_normalisation_over_groups_loses_rows_or_shares(groups: int) -> None:
    """As it is exported below opset 21, one scale and shift for each group, and a further factor for each."""
    constants: Constants = {"split": np.array([0, groups, -1]), "s": weight(groups), "b": weight(groups)}
    constants["factor"] = weight(groups, 1)
    nodes = [
        conv("a", "x", constants, 6, 12),
        node("Reshape", ["a", "split"], "rows"),
        node("InstanceNormalization", ["rows", "s", "b"], "normal"),
        node("Mul", ["normal", "factor"], "scaled"),
        node("Shape", ["a"], "shape"),
        node("Reshape", ["scaled", "shape"], "map"),
        conv("c", "map", constants, 12, 3),
    ]
    pruned = prune(build(nodes, constants))
    left = groups // 2 if groups == 6 else groups
    assert {n.op: n.inputs[1].shape for n in pruned.nodes if n.op in ("InstanceNormalization", "Mul")} == {
        "InstanceNormalization": (left,),
        "Mul": (left, 1),
    }
    assert shapes(pruned) == {"a": (6, 6, 1, 1), "c": (3, 6, 1, 1)}


def test_normalised_groups_of_positions_whose_number_only_a_run_tells() -> None:
    """Behind a Reshape to halves of lengths from Shape, which shape inference does not divide."""
    constants: Constants = {
        "split": np.array([0, 6, -1]),
        "s": weight(6),
        "b": weight(6),
        "halves": np.array([1, 4, 2, 2]),
    }
    nodes = [
        node("Shape", ["x"], "lengths"),
        node("Mul", ["lengths", "halves"], "more"),
        node("Div", ["more", "halves"], "back"),
        node("Reshape", ["x", "back"], "same"),
        conv("a", "same", constants, 6, 12),
        node("Reshape", ["a", "split"], "rows"),
        node("InstanceNormalization", ["rows", "s", "b"], "normal"),
        node("Shape", ["a"], "shape"),
        node("Reshape", ["normal", "shape"], "map"),
        conv("c", "map", constants, 12, 3),
    ]
    assert shapes(prune(build(nodes, constants, shape=("n", 6, "h", "w")))) == {"a": (6, 6, 1, 1), "c": (3, 6, 1, 1)}


def test_a_map_made_of_a_dense_layer_is_joined_to_another() -> None:
    constants: Constants = {"dense.w": weight(8, 6), "map": np.array([0, 4, 2]), "tail": weight(3, 12, 1)}
    constants["a.w"] = weight(8, 4, 1)
    nodes = [
        node("GlobalAveragePool", ["x"], "pooled"),
        node("Flatten", ["pooled"], "flat"),
        helper.make_node("Gemm", ["flat", "dense.w"], ["dense"], "dense", transB=1),
        node("Reshape", ["dense", "map"], "row"),
        helper.make_node("Conv", ["row", "a.w"], ["a"], "a"),
        node("Concat", ["row", "a"], "joined", axis=1),
        helper.make_node("Conv", ["joined", "tail"], ["c"], "c"),
    ]
    assert shapes(prune(build(nodes, constants))) == {"dense": (4, 6), "a": (4, 2, 1), "c": (3, 6, 1)}


@pytest.mark.parametrize("place", [0, 1])
def test_a_target_that_leaves_batch_or_channels_open(place: int) -> None:
    """Rows of channels put back together by [-1, 12, H, W] or [N, -1, H, W] with lengths from Shape."""
    constants: Constants = {"split": np.array([0, 3, 4, -1]), "open": np.array([-1]), "channels": np.array([12])}
    constants |= {"zero": np.array([0]), "one": np.array([1]), "two": np.array([2]), "four": np.array([4])}
    constants["scale"] = weight(4, 1)
    nodes = [
        conv("a", "x", constants, 6, 12),
        node("Reshape", ["a", "split"], "rows"),
        node("Mul", ["rows", "scale"], "scaled"),
        node("Shape", ["a"], "shape"),
        node("Slice", ["shape", "zero", "one"], "n"),
        node("Slice", ["shape", "two", "four"], "space"),
        node("Concat", ["open", "channels", "space"] if place == 0 else ["n", "open", "space"], "target", axis=0),
        node("Reshape", ["scaled", "target"], "map"),
        conv("c", "map", constants, 12, 3),
    ]
    assert shapes(prune(build(nodes, constants)))["c"] == (3, 6, 1, 1)


def test_channels_that_have_to_stay_are_replaced_by_the_next_ones() -> None:
    """Parts of one, one and six channels: the least important two are whole parts, two of the third leave instead."""
    kernel = weight(8, 6, 1, 1)
    kernel[:2] *= 1e-3
    constants: Constants = {"a.w": kernel, "sizes": np.array([1, 1, 6])}
    nodes = [
        node("Conv", ["x", "a.w"], "a"),
        node("Split", ["a", "sizes"], "b", "c", "d", axis=1),
        node("Sigmoid", ["b"], "e"),
        node("Tanh", ["c"], "f"),
        node("Concat", ["d", "e", "f"], "joined", axis=1),
        conv("g", "joined", constants, 8, 3),
    ]
    assert shapes(prune(build(nodes, constants), 0.25))["g"] == (3, 6, 1, 1)


@pytest.mark.parametrize("scalar", [True, False])
def test_masks_of_several_speakers_become_samples_whatever_the_batch(scalar: bool) -> None:
    """Channels as (speaker, feature), each speaker weighing the same features, decoded one by one (Conv-TasNet)."""
    constants: Constants = {
        "first": np.array(0) if scalar else np.array([0]),
        "speakers": np.array(2) if scalar else np.array([2]),
        "axis": [0],
        "second": [1],
        "parts": [0, 2, 8, 8, 8],
        "features": [8],
        "open": [-1],
    }
    nodes = [
        conv("encoder", "x", constants, 6, 8),
        conv("masks", "encoder", constants, 8, 16),
        node("Reshape", ["masks", "parts"], "each"),
        node("Unsqueeze", ["encoder", "second"], "one"),
        node("Mul", ["one", "each"], "weighed"),
        node("Shape", ["x"], "shape"),
        node("Gather", ["shape", "first"], "batch"),
        node("Mul", ["batch", "speakers"], "samples"),
        node("Unsqueeze", ["samples", "axis"], "length") if scalar else node("Identity", ["samples"], "length"),
        node("Concat", ["length", "features", "features", "open"], "target", axis=0),
        node("Reshape", ["weighed", "target"], "maps"),
        conv("decoder", "maps", constants, 8, 1),
    ]
    pruned = prune(build(nodes, constants, shape=("n", 6, 8, 8)))
    assert shapes(pruned) == {"encoder": (4, 6, 1, 1), "masks": (8, 4, 1, 1), "decoder": (1, 4, 1, 1)}
