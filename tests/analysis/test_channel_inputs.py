"""Channels that reach an operator where it expects none, and outputs beside the first."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcompress.analysis.channels.labels import FIXED
from onnxcompress.graph import Model
from tests.analysis.test_channels import Constants, analysed, by_producer, conv, reasons
from tests.small_models import build, node


@pytest.mark.parametrize(
    ("op", "inputs"),
    [
        ("LayerNormalization", ["given", "scale"]),
        ("Clip", ["given", "scale"]),
    ],
)
def test_channels_at_an_input_that_is_not_made_for_them_stay(op: str, inputs: list[str]) -> None:
    constants: Constants = {"given": np.ones((1, 1, 1, 8), np.float32)}
    nodes = [
        conv("scale", "x", constants, 6, 8),
        node(op, inputs, "y"),
        conv("end", "y", constants, 1, 3),
    ]
    group = by_producer(analysed(build(nodes, constants)))["scale"]
    assert not group.prunable.any()
    assert reasons(group) == {f"reaches '{op}_1' ({op}) at an input that is not made for channels"}


def test_the_mean_of_a_layer_normalization_has_the_channels_of_what_it_reads() -> None:
    constants: Constants = {"scale": np.ones(5, np.float32)}
    nodes = [
        conv("a", "x", constants, 6, 8),
        node("LayerNormalization", ["a", "scale"], "normal", "mean", "deviation"),
        conv("of_normal", "normal", constants, 8, 3),
        conv("of_mean", "mean", constants, 8, 3),
        conv("of_deviation", "deviation", constants, 8, 3),
    ]
    model = build(nodes, constants, shape=("n", 6, 5, 5), outputs=("of_normal", "of_mean", "of_deviation"))
    group = by_producer(analysed(model))["a"]
    assert (group.prunable.all(), set(group.consumers)) == (True, {"of_normal", "of_mean", "of_deviation"})


def test_the_second_input_of_castlike_gives_no_more_than_its_type() -> None:
    constants: Constants = {"slope": np.array(0.1, np.float64)}
    nodes = [
        conv("a", "x", constants, 6, 8),
        node("CastLike", ["slope", "a"], "narrow"),
        node("Mul", ["a", "narrow"], "y"),
        conv("end", "y", constants, 8, 3),
    ]
    assert by_producer(analysed(build(nodes, constants)))["a"].prunable.all()


@pytest.mark.parametrize(("counted", "kept"), [("a", True), ("x", False)])
def test_channels_whose_number_is_a_result_stay(counted: str, kept: bool) -> None:
    """One number out of the shape would have been folded; all of them, the batch open, are not."""
    constants: Constants = {"two": np.array(2)}
    nodes = [
        conv("a", "x", constants, 6, 8),
        node("Shape", [counted], "lengths"),
        node("Mul", ["lengths", "two"], "twice"),
        conv("end", "a", constants, 8, 3),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6, "h", "w"])],
        [
            helper.make_tensor_value_info("end", TensorProto.FLOAT, ["n", 3, "h", "w"]),
            helper.make_tensor_value_info("twice", TensorProto.INT64, [4]),
        ],
        [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10))
    group = by_producer(analysed(model))["a"]
    assert group.prunable.any() != kept


@pytest.mark.parametrize(("mode", "order"), [("DCR", [0, 1, 0, 1, 0, 1, 0, 1]), ("CRD", [0, 0, 0, 0, 1, 1, 1, 1])])
def test_space_to_depth_has_two_orders(mode: str, order: list[int]) -> None:
    """The attribute is of opset 28, which shape inference of older versions of onnx does not know."""
    constants: Constants = {}
    nodes = [
        conv("a", "x", constants, 6, 2),
        node("SpaceToDepth", ["a"], "y", blocksize=2),
        conv("end", "y", constants, 8, 3),
    ]
    model = build(nodes, constants, shape=("n", 6, 4, 4))
    next(each for each in model.nodes if each.op == "SpaceToDepth").attrs["mode"] = mode
    groups = analysed(model)
    read = groups.analysis.of(next(each for each in model.nodes if each.name == "end").inputs[0])
    assert read is not None
    assert FIXED not in read.ids
    assert [int(each) for each in np.unique(read.ids, return_inverse=True)[1]] == order


def test_a_part_along_one_of_two_axes_is_told_from_an_unknown_one() -> None:
    """Single channels of every head: which, is no question of the filters (for ranges, see the tests of pruning)."""
    constants: Constants = {"target": np.array([1, 4, 6, 25]), "two": np.array([2])}
    nodes = [
        conv("qkv", "x", constants, 6, 24),
        node("Reshape", ["qkv", "target"], "heads"),
        node("Gather", ["heads", "two"], "q", name="cut", axis=2),
        node("Relu", ["q"], "y"),
    ]
    group = by_producer(analysed(build(nodes, constants, shape=(1, 6, 5, 5))))["qkv"]
    assert reasons(group) == {"'cut' picks some of them along one of the 2 axes that they lie on"}
