"""What exporters make of a simple layer: forms that hold no channel, or all of them, may keep none from leaving."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.passes.cleanup_models import assert_same_bits, clean, ops
from tests.passes.test_pruning_graphs import Constants, conv, prune, shapes, weight
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


@pytest.mark.parametrize("batch", [1, "n"])
def test_a_pooled_map_that_is_gathered_in_order(batch: int | str) -> None:
    """As torch exports a strided view: everything in a row, gathered by numbers that are computed for each element."""
    constants: Constants = {"flat": [-1], "axes": [2, 3], "channels": np.arange(8).reshape(1, 8, 1, 1)}
    constants |= {"zero": np.array(0), "one": np.array(1), "eight": np.array(8), "first": [0], "behind": [1, 2, 3]}
    counting = [
        node("Shape", ["x"], "lengths", end=1),
        node("Squeeze", ["lengths"], "n"),
        node("Range", ["zero", "n", "one"], "samples"),
        node("Mul", ["samples", "eight"], "starts"),
        node("Unsqueeze", ["starts", "behind"], "rows"),
        node("Add", ["rows", "channels"], "numbers"),
    ]
    nodes = [
        conv("a", "x", constants, 6, 8),
        node("ReduceMean", ["a"], "pooled", axes=[2, 3]),
        node("Reshape", ["pooled", "flat"], "row"),
        *(counting if batch == "n" else []),
        node("Gather", ["row", "numbers" if batch == "n" else "channels"], "view", axis=0),
        conv("b", "view", constants, 8, 3),
    ]
    arrays = {name: np.asarray(values) for name, values in constants.items()}
    model = build(nodes, arrays, shape=(batch, 6, 8, 8))
    cleaned, _ = clean(model)
    assert ops(cleaned) == ["Conv", "ReduceMean", "Conv"]
    assert_same_bits(model, cleaned)
    if batch == "n":
        assert shapes(prune(cleaned)) == {"a": (4, 6, 1, 1), "b": (3, 4, 1, 1)}


@pytest.mark.parametrize(("opset", "batch"), [(17, "n"), (20, 2)])
def test_a_norm_that_is_expanded_to_what_it_divides(opset: int, batch: int | str) -> None:
    """As torch exports F.normalize: ReduceL2, Clip, Expand to the shape of the features, Div."""
    constants: Constants = {"least": np.float32(1e-12), "axis": [1]}
    by_input = opset >= 18
    nodes = [
        conv("a", "x", constants, 6, 8),
        node("ReduceL2", ["a", "axis"] if by_input else ["a"], "norm", **({} if by_input else {"axes": [1]})),
        node("Clip", ["norm", "least"], "above"),
        node("Shape", ["a"], "shape"),
        node("Expand", ["above", "shape"], "wide"),
        node("Div", ["a", "wide"], "unit"),
        conv("b", "unit", constants, 8, 3),
    ]
    arrays = {name: np.asarray(values) for name, values in constants.items()}
    model = build(nodes, arrays, shape=(batch, 6, 8, 8), opset=opset)
    cleaned, _ = clean(model)
    assert ops(cleaned) == ["Conv", "ReduceL2", "Clip", "Div", "Conv"]
    assert_same_bits(model, cleaned)
    assert shapes(prune(cleaned)) == {"a": (4, 6, 1, 1), "b": (3, 4, 1, 1)}


@pytest.mark.parametrize("opset", [7, 8, 9])
def test_opsets_before_where(opset: int) -> None:
    """What some channels left of is read by a sum, a maximum and a mean; from 8 on by an Expand to computed lengths."""
    constants: Constants = {"first": [0], "eight": [8], "behind": [2, 3]}
    nodes = [
        conv("a", "x", constants, 6, 8),
        node("Relu", ["a"], "r"),
        node("ReduceMax", ["a"], "largest", axes=[1]),
        node("ReduceMean", ["r"], "mean", axes=[1]),
        node("Add", ["r", "largest"], "s"),
        node("Sub", ["s", "mean"], "d"),
    ]
    if opset >= 8:
        nodes += [
            node("GlobalMaxPool", ["d"], "pooled"),
            node("Shape", ["x"], "shape"),
            node("Gather", ["shape", "first"], "n", axis=0),
            node("Gather", ["shape", "behind"], "hw", axis=0),
            node("Concat", ["n", "eight", "hw"], "lengths", axis=0),
            node("Expand", ["pooled", "lengths"], "wide"),
        ]
    nodes.append(conv("b", "wide" if opset >= 8 else "d", constants, 8, 3))
    arrays = {name: np.asarray(values) for name, values in constants.items()}
    pruned = prune(build(nodes, arrays, opset=opset))
    assert shapes(pruned) == {"a": (4, 6, 1, 1), "b": (3, 4, 1, 1)}
    assert ("Where" in ops(pruned)) == (opset >= 9)


@pytest.mark.parametrize(
    ("made", "kept"),
    [
        ([node("ReduceMean", ["a"], "mean", axes=[1]), node("Expand", ["mean", "shape"], "e")], 6),
        ([node("ReduceMean", ["a"], "mean", axes=[0, 1]), node("Expand", ["mean", "shape"], "e")], 6),
        ([node("ConstantOfShape", ["shape"], "e")], 12),
        ([node("Concat", ["x", "x"], "xx", axis=1), node("Reshape", ["xx", "shape"], "e")], 12),
    ],
)
@pytest.mark.parametrize("outputs", [["b", "e"], ["b", "c"]])
def test_a_tensor_of_the_shape_of_another_one(made: list[onnx.NodeProto], kept: int, outputs: list[str]) -> None:
    """What is as long as there are channels, and holds none of them, does not get shorter with them."""
    constants: Constants = {}
    nodes = [conv("a", "x", constants, 6, 12), node("Shape", ["a"], "shape"), *made]
    nodes += [conv("wide", "a", constants, 12, 8), conv("b", "wide", constants, 8, 3)]
    nodes += [conv("c", "e", constants, 12, 3)]
    pruned = prune(build(nodes, constants, outputs=outputs))
    assert shapes(pruned)["a"] == (kept, 6, 1, 1)
    assert shapes(pruned)["b"] == (3, 4, 1, 1)


def _statistics(source: str, axes: list[int]) -> list[onnx.NodeProto]:
    """Return the nodes that take `mean` and `deviation` over some axes."""
    return [
        node("ReduceMean", [source], "mean", axes=axes),
        node("Sub", [source, "mean"], "centred"),
        node("Mul", ["centred", "centred"], "squares"),
        node("ReduceMean", ["squares"], "variance", axes=axes),
        node("Add", ["variance", "least"], "above"),
        node("Sqrt", ["above"], "deviation"),
    ]


@pytest.mark.parametrize("shift_first", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_a_normalisation_in_single_operators(groups: int, shift_first: bool) -> None:
    """As tf2onnx writes Keras' layers: 1 / deviation times a scale for each channel, then times the channels."""
    size = 8 // groups
    constants: Constants = {"groups": [0, 0, 0, groups, size], "channels": [0, 0, 0, 8], "least": np.float32(1e-3)}
    constants |= {"scale": weight(groups, size), "shift": weight(size, groups).T}
    centred = [node("Mul", ["mean", "factor"], "away"), node("Sub", ["shift", "away"], "rest")]
    nodes = [
        conv("a", "x", constants, 6, 8),
        node("Transpose", ["a"], "last", perm=[0, 2, 3, 1]),
        node("Reshape", ["last", "groups"], "rows"),
        *_statistics("rows", [1, 2, 4]),
        node("Reciprocal", ["deviation"], "inverse"),
        node("Mul", ["inverse", "scale"], "factor"),
        *(centred if shift_first else []),
        node("Mul", ["rows", "factor"], "scaled"),
        *([] if shift_first else centred),
        node("Add", ["scaled", "rest"], "normal"),
        node("Reshape", ["normal", "channels"], "joined"),
        node("Transpose", ["joined"], "first", perm=[0, 3, 1, 2]),
        conv("b", "first", constants, 8, 3),
    ]
    arrays = {name: np.asarray(values) for name, values in constants.items()}
    pruned = prune(build(nodes, arrays, shape=("n", 6, 8, 8)))
    assert shapes(pruned) == {"a": (4, 6, 1, 1), "b": (3, 4, 1, 1)}


def test_a_layer_normalisation_in_single_operators() -> None:
    """Over the last axis: the scale meets one number for each pixel."""
    constants: Constants = {"least": np.float32(1e-3), "scale": weight(8), "shift": weight(1, 1, 8)}
    nodes = [
        conv("a", "x", constants, 6, 8),
        node("Transpose", ["a"], "last", perm=[0, 2, 3, 1]),
        *_statistics("last", [3]),
        node("Div", ["scale", "deviation"], "factor"),
        node("Mul", ["mean", "factor"], "away"),
        node("Mul", ["last", "factor"], "scaled"),
        node("Sub", ["shift", "away"], "rest"),
        node("Add", ["scaled", "rest"], "normal"),
        node("Transpose", ["normal"], "first", perm=[0, 3, 1, 2]),
        conv("b", "first", constants, 8, 3),
    ]
    arrays = {name: np.asarray(values) for name, values in constants.items()}
    pruned = prune(build(nodes, arrays, shape=("n", 6, "h", "w")))
    assert shapes(pruned) == {"a": (4, 6, 1, 1), "b": (3, 4, 1, 1)}


@pytest.mark.parametrize("reader", ["Conv", "MatMul"])
def test_tokens_made_a_map_again_by_lengths_that_are_all_computed(reader: str) -> None:
    """As SegFormer ends a stage at open sizes: only who reads the map tells which of its four lengths are channels."""
    constants: Constants = {
        "zero": [0],
        "one": [1],
        "two": [2],
        "three": [3],
        "four": [4],
        "open": [-1],
        "rows": [0, 12, -1],
    }
    flat = [
        node("Shape", ["map"], "of_map"),
        node("Slice", ["of_map", "zero", "two"], "n_channels"),
        node("Concat", ["n_channels", "open"], "flat_shape", axis=0),
        node("Reshape", ["map", "flat_shape"], "flat"),
        node("Transpose", ["flat"], "words", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["words", "c.w"], ["c"], "c"),
    ]
    nodes = [
        conv("a", "x", constants, 6, 12),
        node("Reshape", ["a", "rows"], "row"),
        node("Transpose", ["row"], "tokens", perm=[0, 2, 1]),
        node("Shape", ["a"], "shape"),
        node("Slice", ["shape", "two", "three"], "height"),
        node("Slice", ["shape", "three", "four"], "width"),
        node("Slice", ["shape", "zero", "one"], "n"),
        node("Mul", ["height", "width"], "count"),
        node("Slice", ["tokens", "zero", "count", "one"], "all"),
        node("Concat", ["n", "height", "width", "open"], "target", axis=0),
        node("Reshape", ["all", "target"], "last"),
        node("Transpose", ["last"], "map", perm=[0, 3, 1, 2]),
        *([conv("c", "map", constants, 12, 3)] if reader == "Conv" else flat),
    ]
    arrays = {"c.w": weight(12, 3), **{name: np.asarray(values) for name, values in constants.items()}}
    pruned = prune(build(nodes, arrays, shape=("n", 6, "h", "w")))
    assert shapes(pruned) == {"a": (6, 6, 1, 1), "c": (3, 6, 1, 1) if reader == "Conv" else (6, 3)}


@pytest.mark.parametrize("filters", [12, 24])
def test_columns_put_together_to_an_image(filters: int) -> None:
    """torch's `fold`: of 24 filters four make one channel, of 12 each makes four positions of its own."""
    constants: Constants = {"image": np.array([16, 16]), "block": np.array([2, 2]), "flat": np.array([0, 24, -1])}
    if filters == 12:
        constants["flat"] = np.array([0, 48, -1])
        constants["image"] = np.array([8, 8])
    channels = constants["flat"][1] // 4
    nodes = [
        conv("a", "x", constants, 6, filters),
        node("Reshape", ["a", "flat"], "columns"),
        node("Col2Im", ["columns", "image", "block"], "map", strides=[2, 2]),
        conv("c", "map", constants, channels, 3),
    ]
    pruned = prune(build(nodes, constants, opset=18, shape=("n", 6, 8, 8)))
    assert shapes(pruned) == {"a": (filters // 2, 6, 1, 1), "c": (3, channels // 2, 1, 1)}


@pytest.mark.parametrize("mode", ["CRD", "DCR"])
def test_patches_that_become_an_image_again(mode: str) -> None:
    """The end of a block of MobileViT v2: channels and the places in a patch on one axis, then DepthToSpace."""
    constants: Constants = {"patches": np.array([0, 32, 4, 4]), "places": np.array([0, -1, 8, 8])}
    nodes = [
        conv("a", "x", constants, 6, 8),
        node("Reshape", ["a", "patches"], "p"),
        node("DepthToSpace", ["p"], "wide", blocksize=2, mode=mode),
        node("SpaceToDepth", ["wide"], "deep", blocksize=2),
        node("Reshape", ["deep", "places"], "map"),
        conv("b", "map", constants, 8, 3),
    ]
    pruned = prune(build(nodes, constants, shape=("n", 6, 8, 8)))
    assert shapes(pruned) == {"a": (4, 6, 1, 1), "b": (3, 4, 1, 1)}
