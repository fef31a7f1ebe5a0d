"""What pruning leaves of graphs with joins, cuts, shuffles and norms: the exact network, in the fewest changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext, PassResult
from onnxcompress.passes.pruning import FilterPruning, PruningConfig, verify_pruning
from tests.small_models import build, node

Constants = dict[str, Any]
EXACT = 1e-5


def weight(*shape: int) -> np.ndarray:
    fan = float(np.prod(shape[1:])) or 1.0
    return (np.random.default_rng(sum(shape)).standard_normal(shape) / np.sqrt(fan)).astype(np.float32)


def conv(name: str, x: str, constants: Constants, inputs: int, filters: int, **attributes: Any) -> onnx.NodeProto:
    constants[f"{name}.w"] = weight(filters, inputs // attributes.get("group", 1), 1, 1)
    constants[f"{name}.b"] = weight(filters)
    return helper.make_node("Conv", [x, f"{name}.w", f"{name}.b"], [name], name, **attributes)


def prune(model: Model, ratio: float = 0.5, context: PassContext | None = None) -> Model:
    """Prune, prove, and return the pruned model."""
    one, context = FilterPruning(PruningConfig(ratio)), context or PassContext()
    result: PassResult = one.apply(model, one.plan(model, context), context)
    assert result.modified
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 6, 8, 8)).astype(np.float32)}
    verification = verify_pruning(model, result, feeds)
    assert verification.difference <= EXACT
    onnx.checker.check_model(result.model.to_proto(), full_check=True)
    return result.model


def shapes(model: Model) -> dict[str, tuple[int, ...]]:
    return {n.name: n.inputs[1].shape for n in model.nodes if n.op in ("Conv", "Gemm", "MatMul")}


def ops(model: Model) -> list[str]:
    return [n.op for n in model.nodes]


def test_concat_with_an_untouched_input() -> None:
    constants: Constants = {}
    nodes = [
        conv("a", "x", constants, 6, 4),
        conv("b", "x", constants, 6, 8),
        node("Concat", ["a", "x", "b"], "joined", axis=1),
        conv("c", "joined", constants, 18, 3),
    ]
    pruned = prune(build(nodes, constants))
    assert shapes(pruned) == {"a": (2, 6, 1, 1), "b": (4, 6, 1, 1), "c": (3, 12, 1, 1)}


def test_a_weight_shared_by_two_convolutions_is_sliced_for_each() -> None:
    constants: Constants = {}
    nodes = [
        conv("a", "x", constants, 6, 8),
        conv("b", "a", constants, 8, 8),
        helper.make_node("Conv", ["b", "b.w", "b.b"], ["c"], "c"),
        conv("d", "c", constants, 8, 2),
    ]
    model = build(nodes, constants)
    pruned = prune(model)
    assert shapes(pruned) == {"a": (4, 6, 1, 1), "b": (4, 4, 1, 1), "c": (4, 4, 1, 1), "d": (2, 4, 1, 1)}
    second = prune(build([*nodes[:2], nodes[2], conv("d", "c", constants, 8, 2)], constants), 0.25)
    assert shapes(second)["b"] == shapes(second)["c"] == (6, 6, 1, 1)


def test_a_bias_shared_through_identity_stays_whole_for_its_other_reader() -> None:
    constants: Constants = {}
    nodes = [
        node("Identity", ["a.b"], "copied"),
        conv("a", "x", constants, 6, 8),
        helper.make_node("Conv", ["a", "b.w", "copied"], ["b"], "b"),
    ]
    constants["b.w"] = weight(8, 8, 1, 1)
    pruned = prune(build(nodes, constants))
    biases = {n.name: n.inputs[2].values for n in pruned.nodes if n.op == "Conv"}
    assert biases["a"].shape == (4,)
    np.testing.assert_array_equal(biases["b"], constants["a.b"])


def test_lrn_keeps_its_window_in_original_places() -> None:
    constants: Constants = {}
    nodes = [
        conv("a", "x", constants, 6, 12),
        helper.make_node("LRN", ["a"], ["n"], "lrn", size=5, alpha=0.5, beta=0.75, bias=1.0),
        conv("b", "n", constants, 12, 3),
    ]
    pruned = prune(build(nodes, constants))
    assert "LRN" not in ops(pruned)
    band = next(n for n in pruned.nodes if n.name.startswith("lrn_band_window")).inputs[1].values[:, :, 0, 0]
    assert band.shape == (6, 6)
    (decision,) = FilterPruning(PruningConfig(0.5)).plan(build(nodes, constants), PassContext()).decisions
    kept = np.setdiff1d(np.arange(12), decision["removed"]["a"])
    np.testing.assert_array_equal(band > 0, np.abs(kept[:, None] - kept[None, :]) <= 2)


def test_a_shuffle_becomes_one_gather() -> None:
    constants: Constants = {"split": [0, 2, 4, -1], "merge": [0, 8, 8, 8]}
    nodes = [
        conv("a", "x", constants, 6, 8),
        node("Reshape", ["a", "split"], "rows"),
        node("Transpose", ["rows"], "turned", perm=[0, 2, 1, 3]),
        node("Reshape", ["turned", "merge"], "shuffled"),
        conv("b", "shuffled", constants, 8, 3),
    ]
    pruned = prune(build(nodes, constants, shape=("n", 6, 8, 8)), 0.375)
    assert ops(pruned) == ["Conv", "Gather", "Conv"]
    assert shapes(pruned)["a"] == (5, 6, 1, 1)


def test_depthwise_and_grouped() -> None:
    constants: Constants = {}
    nodes = [
        conv("a", "x", constants, 6, 24),
        conv("deep", "a", constants, 24, 24, group=24),
        conv("wide", "deep", constants, 24, 24, group=2),
        conv("thin", "wide", constants, 24, 24, group=12),
        conv("c", "thin", constants, 24, 3),
    ]
    pruned = prune(build(nodes, constants))
    groups = {n.name: n.attrs.get("group", 1) for n in pruned.nodes}
    assert groups == {"a": 1, "deep": 12, "wide": 2, "thin": 6, "c": 1}
    assert shapes(pruned) == {
        "a": (12, 6, 1, 1),
        "deep": (12, 1, 1, 1),
        "wide": (12, 6, 1, 1),
        "thin": (12, 2, 1, 1),
        "c": (3, 12, 1, 1),
    }


@pytest.mark.parametrize("opset", [11, 13, 18, 21])
def test_split_sizes_follow(opset: int) -> None:
    constants: Constants = {"sizes": [2, 6]}
    by_attribute: dict[str, Any] = {"split": [2, 6]} if opset < 13 else {}
    inputs = ["a"] if opset < 13 else ["a", "sizes"]
    nodes = [
        conv("a", "x", constants, 6, 8),
        helper.make_node("Split", inputs, ["p", "q"], "split", axis=1, **by_attribute),
        conv("b", "p", constants, 2, 2),
        conv("c", "q", constants, 6, 2),
        node("Concat", ["b", "c"], "y", axis=1),
    ]
    if opset < 13:
        del constants["sizes"]
    pruned = prune(build(nodes, constants, opset=opset))
    split = next(n for n in pruned.nodes if n.op == "Split")
    sizes = split.attrs["split"] if opset < 13 else split.inputs[1].values.tolist()
    assert sum(sizes) == 4
    assert min(sizes) >= 1
    assert [shapes(pruned)[name][1] for name in "bc"] == list(sizes)


def test_a_split_into_equal_parts_may_become_unequal() -> None:
    constants: Constants = {}
    nodes = [
        conv("a", "x", constants, 6, 8),
        helper.make_node("Split", ["a"], ["p", "q"], "split", axis=1, num_outputs=2),
        conv("b", "p", constants, 4, 2),
        conv("c", "q", constants, 4, 2),
        node("Concat", ["b", "c"], "y", axis=1),
    ]
    constants["a.w"][:4] *= 0.1  # the least important part; one of it stays, one of the other leaves instead
    pruned = prune(build(nodes, constants, opset=18))
    split = next(n for n in pruned.nodes if n.op == "Split")
    assert split.inputs[1].values.tolist() == [1, 3]
    assert "num_outputs" not in split.attrs


@pytest.mark.parametrize("opset", [9, 11, 17])
@pytest.mark.parametrize("second_axis", [False, True])
def test_a_slice_of_channels(opset: int, second_axis: bool) -> None:
    starts, ends, axes = ([2, 1], [7, 5], [1, 2]) if second_axis else ([2], [7], [1])
    if second_axis and opset >= 10:
        starts, ends, axes = starts[::-1], ends[::-1], axes[::-1]
    constants: Constants = {}
    inputs, attributes = ["a"], {"starts": starts, "ends": ends, "axes": axes}
    if opset >= 10:
        constants |= {"starts": starts, "ends": ends, "axes": [a - 4 for a in axes]}
        inputs, attributes = ["a", "starts", "ends", "axes"], {}
    nodes = [
        conv("a", "x", constants, 6, 8),
        helper.make_node("Slice", inputs, ["part"], "cut", **attributes),
        conv("b", "part", constants, 5, 3),
    ]
    pruned = prune(build(nodes, constants, opset=opset))
    assert shapes(pruned)["a"] == (4, 6, 1, 1)
    assert ops(pruned) == ["Conv", "Slice", "Conv"]


def test_a_slice_with_a_step_becomes_a_gather() -> None:
    constants: Constants = {"start": [7], "end": [-(2**63)], "axis": [-3], "step": [-2]}
    nodes = [
        conv("a", "x", constants, 6, 8),
        node("Slice", ["a", "start", "end", "axis", "step"], "part"),
        conv("b", "part", constants, 4, 3),
    ]
    assert ops(prune(build(nodes, constants), 0.375)) == ["Conv", "Gather", "Conv"]


def test_a_shortcut_padded_with_zero_channels() -> None:
    constants: Constants = {"pads": [0, 2, 0, 0, 0, 2, 0, 0]}
    nodes = [
        conv("a", "x", constants, 6, 4),
        node("Pad", ["a", "pads"], "padded"),
        conv("b", "a", constants, 4, 8),
        node("Add", ["padded", "b"], "sum"),
        conv("c", "sum", constants, 8, 3),
    ]
    pruned = prune(build(nodes, constants))
    pads = next(n for n in pruned.nodes if n.op == "Pad").inputs[1].values
    assert shapes(pruned)["a"][0] + pads[1] + pads[5] == shapes(pruned)["b"][0] == shapes(pruned)["c"][1]


def test_flatten_to_a_dense_layer() -> None:
    constants: Constants = {"g.w": weight(5, 8 * 64), "g.b": weight(5)}
    nodes = [
        conv("a", "x", constants, 6, 8),
        node("Flatten", ["a"], "flat"),
        helper.make_node("Gemm", ["flat", "g.w", "g.b"], ["y"], "g", transB=1),
    ]
    assert shapes(prune(build(nodes, constants, shape=("n", 6, 8, 8)))) == {"a": (4, 6, 1, 1), "g": (5, 256)}


def test_a_target_computed_from_shape_is_patched() -> None:
    constants: Constants = {"zero": [0], "two": [2], "four": [4], "eight": [8], "g.w": weight(8 * 64, 5)}
    nodes = [
        conv("a", "x", constants, 6, 8),
        node("Shape", ["a"], "shape"),
        node("Slice", ["shape", "zero", "two"], "front"),
        node("Slice", ["shape", "two", "four"], "space"),
        node("Concat", ["front", "space"], "target", axis=0),
        node("Relu", ["a"], "r"),
        node("Reshape", ["r", "target"], "same"),
        conv("b", "same", constants, 8, 3),
    ]
    pruned = prune(build(nodes, constants))
    assert shapes(pruned)["a"] == (4, 6, 1, 1)


@pytest.mark.parametrize("opset", [11, 14, 17])
def test_resize_to_the_size_of_another_map(opset: int) -> None:
    """A pyramid's way up, with height and width open: sizes are the channels of one map and the space of another."""
    constants: Constants = {"zero": [0], "two": [2], "four": [4], "none": np.zeros(0, np.float32)}
    nodes = [
        conv("a", "x", constants, 6, 8),
        conv("b", "a", constants, 8, 8, strides=[2, 2]),
        node("Shape", ["b"], "small"),
        node("Slice", ["small", "zero", "two"], "front"),
        node("Shape", ["a"], "large"),
        node("Slice", ["large", "two", "four"], "space"),
        node("Concat", ["front", "space"], "sizes", axis=0),
        helper.make_node("Resize", ["b", "none", "none", "sizes"], ["up"], "up", mode="nearest"),
        node("Concat", ["a", "up"], "joined", axis=1),
        conv("c", "joined", constants, 16, 3),
    ]
    pruned = prune(build(nodes, constants, opset=opset))
    assert shapes(pruned) == {"a": (4, 6, 1, 1), "b": (4, 4, 1, 1), "c": (3, 8, 1, 1)}


def test_expand_and_tile_of_pooled_channels() -> None:
    constants: Constants = {"target": [1, 8, 8, 8], "twice": [1, 2, 1, 1]}
    nodes = [
        conv("a", "x", constants, 6, 8),
        node("GlobalAveragePool", ["a"], "pooled"),
        node("Expand", ["pooled", "target"], "grown"),
        node("Tile", ["grown", "twice"], "tiled"),
        conv("b", "tiled", constants, 16, 3),
    ]
    pruned = prune(build(nodes, constants, shape=("n", 6, 8, 8)))
    assert shapes(pruned) == {"a": (4, 6, 1, 1), "b": (3, 8, 1, 1)}


def test_layer_norm_channels_last() -> None:
    constants: Constants = {"s": weight(8), "b": weight(8), "up": weight(8, 20), "down": weight(20, 8)}
    nodes = [
        conv("a", "x", constants, 6, 8),
        node("Transpose", ["a"], "last", perm=[0, 2, 3, 1]),
        node("LayerNormalization", ["last", "s", "b"], "normal", axis=-1),
        helper.make_node("MatMul", ["normal", "up"], ["wide"], "up"),
        node("Relu", ["wide"], "r"),
        helper.make_node("MatMul", ["r", "down"], ["narrow"], "down"),
        node("Transpose", ["narrow"], "first", perm=[0, 3, 1, 2]),
        node("Add", ["a", "first"], "sum"),
        conv("c", "sum", constants, 8, 3),
    ]
    pruned = prune(build(nodes, constants))
    assert shapes(pruned) == {"a": (4, 6, 1, 1), "up": (4, 10), "down": (10, 4), "c": (3, 4, 1, 1)}


def test_a_sum_over_rows_of_split_channels() -> None:
    """Split attention: (N, radix, C) summed over radix, weighed by a softmax over it (ResNeSt)."""
    constants: Constants = {"split": [0, 2, 4, 8, 8], "axis": [1]}
    nodes = [
        conv("a", "x", constants, 6, 8),
        node("Reshape", ["a", "split"], "rows"),
        node("Softmax", ["rows"], "weights", axis=1),
        node("Mul", ["rows", "weights"], "weighed"),
        node("ReduceSum", ["weighed", "axis"], "sum", keepdims=0),
        conv("b", "sum", constants, 4, 3),
    ]
    pruned = prune(build(nodes, constants, shape=("n", 6, 8, 8)))
    assert shapes(pruned) == {"a": (4, 6, 1, 1), "b": (3, 2, 1, 1)}


def test_spatial_attention_consumes_what_it_averages() -> None:
    constants: Constants = {"mask.w": weight(1, 2, 3, 3)}
    nodes = [
        conv("a", "x", constants, 6, 8),
        node("ReduceMean", ["a"], "mean", axes=[1]),
        node("ReduceMax", ["a"], "max", axes=[1]),
        node("Concat", ["mean", "max"], "both", axis=1),
        helper.make_node("Conv", ["both", "mask.w"], ["mask"], "mask", pads=[1, 1, 1, 1]),
        node("Sigmoid", ["mask"], "scale"),
        node("Mul", ["a", "scale"], "scaled"),
        conv("b", "scaled", constants, 8, 3),
    ]
    pruned = prune(build(nodes, constants))
    assert shapes(pruned)["mask"] == (1, 2, 3, 3)
    assert shapes(pruned)["a"] == (4, 6, 1, 1)


def test_group_normalisation_keeps_every_group_equal() -> None:
    constants: Constants = {"s": weight(12), "b": weight(12)}
    nodes = [
        conv("a", "x", constants, 6, 12),
        node("GroupNormalization", ["a", "s", "b"], "normal", num_groups=3),
        conv("c", "normal", constants, 12, 3),
    ]
    constants["a.w"][:4] *= 0.01  # without the constraint the whole first group would leave
    model = build(nodes, constants, opset=21)
    (decision,) = FilterPruning(PruningConfig(0.5)).plan(model, PassContext()).decisions
    assert np.bincount(np.array(decision["removed"]["a"]) // 4, minlength=3).tolist() == [2, 2, 2]
    assert shapes(prune(model))["a"] == (6, 6, 1, 1)


def test_balanced_rows_that_meet_the_ratio_best() -> None:
    """Of 4 groups of 4 a ratio of 0.3 would take 5 filters; one of each group is nearest."""
    constants: Constants = {"s": weight(16), "b": weight(16)}
    nodes = [
        conv("a", "x", constants, 6, 16),
        node("GroupNormalization", ["a", "s", "b"], "normal", num_groups=4),
        conv("c", "normal", constants, 16, 3),
    ]
    model = build(nodes, constants, opset=21)
    (decision,) = FilterPruning(PruningConfig(0.3)).plan(model, PassContext()).decisions
    norms = np.abs(constants["a.w"]).sum(axis=(1, 2, 3)).reshape(4, 4)
    assert decision["removed"]["a"] == [4 * row + int(norms[row].argmin()) for row in range(4)]


def test_unknown_operators_leave_the_rest_to_be_pruned() -> None:
    constants: Constants = {"axis": np.array(2)}
    nodes = [
        conv("a", "x", constants, 6, 8),
        conv("b", "a", constants, 8, 8),
        node("CumSum", ["b", "axis"], "summed"),
        conv("c", "summed", constants, 8, 4),
        conv("d", "c", constants, 4, 2),
    ]
    pruned = prune(build(nodes, constants))
    assert {name: shape[0] for name, shape in shapes(pruned).items()} == {"a": 4, "b": 8, "c": 2, "d": 2}


def test_inputs_with_defaults_of_ir_3() -> None:
    constants: Constants = {}
    nodes = [conv("a", "x", constants, 6, 8), conv("b", "a", constants, 8, 2)]
    initializers = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 6, 8, 8]),
            *(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in initializers),
        ],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [2, 2, 8, 8])],
        initializers,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=3)
    pruned = prune(Model.from_proto(proto)).to_proto()
    assert pruned.ir_version == 3
    listed = {info.name: [d.dim_value for d in info.type.tensor_type.shape.dim] for info in pruned.graph.input}
    assert listed == {"x": [2, 6, 8, 8], **{t.name: list(t.dims) for t in pruned.graph.initializer}}
    assert listed["a.w"] == [4, 6, 1, 1]
