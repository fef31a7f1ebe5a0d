"""Which channels the analysis ties, lets go and keeps, and the reason it gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcompress.analysis.channels import ChannelAnalysis, ChannelGroups, Group, find_groups, group_members
from onnxcompress.analysis.channels.labels import Labels
from onnxcompress.analysis.channels.operators.layout import reshaped
from onnxcompress.analysis.shapes import fold_static_values
from onnxcompress.graph import Model
from tests.small_models import build, node

Constants = dict[str, Any]


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def conv(name: str, x: str, constants: Constants, inputs: int, filters: int, **attributes: Any) -> onnx.NodeProto:
    """Return a named 1x1 Conv with a weight of its own; its output is called as the node."""
    group = attributes.get("group", 1)
    constants[f"{name}.w"] = weight(filters, inputs // group, 1, 1)
    return helper.make_node("Conv", [x, f"{name}.w"], [name], name, **attributes)


def analysed(model: Model, excluded: frozenset[str] = frozenset()) -> ChannelGroups:
    if fold_static_values(model):
        model.refresh_shapes()
    return find_groups(ChannelAnalysis(model), excluded)


def by_producer(groups: ChannelGroups) -> Mapping[str, Group]:
    return {producer: group for group in groups.groups for producer in group.producers}


def reasons(group: Group) -> set[str]:
    return set(group.frozen.values())


def test_a_chain_has_a_group_for_each_layer_and_the_last_is_the_output() -> None:
    constants: Constants = {}
    nodes = [conv("a", "x", constants, 6, 8), node("Relu", ["a"], "r"), conv("b", "r", constants, 8, 5)]
    groups = by_producer(analysed(build(nodes, constants)))
    assert (groups["a"].size, groups["a"].consumers, groups["a"].frozen) == (8, ("b",), {})
    assert not groups["b"].prunable.any()
    assert reasons(groups["b"]) == {"is the graph output 'b', whose shape never changes"}


def test_concat_puts_each_input_at_its_offset() -> None:
    constants: Constants = {}
    nodes = [
        conv("a", "x", constants, 6, 4),
        conv("b", "x", constants, 6, 7),
        helper.make_node("Concat", ["a", "x", "b"], ["joined"], "join", axis=1),
        conv("c", "joined", constants, 17, 3),
    ]
    model = build(nodes, constants)
    groups = analysed(model)
    members = group_members(model, groups)
    assert {(m.node, m.role, m.offset, m.channels) for m in members["b"]} == {
        ("b", "produces", 0, 7),
        ("join", "carries", 10, 7),
        ("c", "consumes", 10, 7),
    }
    assert by_producer(groups)["a"] is not by_producer(groups)["b"]


def test_a_residual_ties_its_branches() -> None:
    constants: Constants = {}
    nodes = [
        conv("a", "x", constants, 6, 8),
        conv("b", "a", constants, 8, 8),
        node("Add", ["a", "b"], "sum"),
        conv("c", "sum", constants, 8, 2),
    ]
    groups = by_producer(analysed(build(nodes, constants)))
    assert groups["a"] is groups["b"]
    assert groups["a"].size == 8
    assert groups["a"].prunable.all()


def test_a_mask_of_one_channel_ties_nothing() -> None:
    constants: Constants = {}
    nodes = [
        conv("a", "x", constants, 6, 8),
        conv("mask", "x", constants, 6, 1),
        node("Mul", ["a", "mask"], "masked"),
        conv("c", "masked", constants, 8, 2),
    ]
    groups = by_producer(analysed(build(nodes, constants)))
    assert groups["a"].prunable.all()
    assert groups["a"] is not groups["mask"]
    assert not groups["mask"].prunable.any()


def test_squeeze_excite_ties_the_excitation_to_what_it_scales() -> None:
    constants: Constants = {}
    nodes = [
        conv("a", "x", constants, 6, 8),
        node("GlobalAveragePool", ["a"], "pooled"),
        conv("squeeze", "pooled", constants, 8, 4),
        conv("excite", "squeeze", constants, 4, 8),
        node("Sigmoid", ["excite"], "scale"),
        node("Mul", ["a", "scale"], "scaled"),
        conv("c", "scaled", constants, 8, 2),
    ]
    groups = by_producer(analysed(build(nodes, constants)))
    assert groups["a"] is groups["excite"]
    assert groups["squeeze"] is not groups["a"]
    assert groups["squeeze"].prunable.all()
    assert groups["a"].prunable.all()


def test_a_depthwise_convolution_passes_its_channels_through() -> None:
    constants: Constants = {}
    nodes = [
        conv("a", "x", constants, 6, 8),
        conv("deep", "a", constants, 8, 16, group=8),
        conv("c", "deep", constants, 16, 2),
    ]
    groups = by_producer(analysed(build(nodes, constants)))
    assert groups["a"] is groups["deep"]
    assert groups["a"].size == 8  # a class is an input channel with both of its filters
    assert groups["a"].prunable.all()


@pytest.mark.parametrize(("group", "rows"), [(2, (2, 4)), (4, None)])
def test_a_grouped_convolution_keeps_rows_equal_or_loses_whole_groups(group: int, rows: tuple[int, int] | None) -> None:
    constants: Constants = {}
    nodes = [
        conv("a", "x", constants, 6, 8),
        conv("grouped", "a", constants, 8, 8, group=group),
        conv("c", "grouped", constants, 8, 2),
    ]
    found = analysed(build(nodes, constants))
    groups = by_producer(found)
    if rows is None:
        assert groups["a"] is groups["grouped"]
        assert groups["a"].size == group
        assert found.balanced == ()
    else:
        assert groups["a"] is not groups["grouped"]
        assert [array.shape for _, array in found.balanced] == [rows, rows]


def shuffle(opset: int) -> Model:
    constants: Constants = {"split": [0, 2, 4, -1], "merge": [0, 8, 5, 5]}
    nodes = [
        conv("a", "x", constants, 6, 8),
        node("Reshape", ["a", "split"], "rows"),
        node("Transpose", ["rows"], "turned", perm=[0, 2, 1, 3]),
        node("Reshape", ["turned", "merge"], "shuffled"),
        conv("deep", "shuffled", constants, 8, 8, group=8),
        conv("c", "deep", constants, 8, 2),
    ]
    return build(nodes, constants, opset=opset, shape=("n", 6, 5, 5))


@pytest.mark.parametrize("opset", [9, 13, 21])
def test_a_shuffle_ties_nothing(opset: int) -> None:
    groups = analysed(shuffle(opset))
    group = by_producer(groups)["a"]
    assert group.size == 8
    assert group.prunable.all()
    assert groups.balanced == ()
    deep = next(p for p in groups.analysis.findings.producers if p.node == "deep")
    order = [group.classes.tolist().index(int(c)) for c in groups.class_of[deep.ids]]
    assert order == [0, 4, 1, 5, 2, 6, 3, 7]


@pytest.mark.parametrize("read_inside", ["rows", "turned", "shuffled"])
def test_a_shuffle_that_a_sub_graph_reads_anywhere_stays(read_inside: str) -> None:
    """The nodes of a shuffle are treated as one, and yet what an If reads of each keeps its shape."""
    constants: Constants = {"split": [0, 2, 4, -1], "merge": [0, 8, 5, 5], "yes": np.array(True)}
    outs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in ("p", "q")]
    branches = [helper.make_graph([node("Abs", [read_inside], out.name)], out.name, [], [out]) for out in outs]
    nodes = [
        conv("a", "x", constants, 6, 8),
        node("Reshape", ["a", "split"], "rows"),
        node("Transpose", ["rows"], "turned", perm=[0, 2, 1, 3]),
        node("Reshape", ["turned", "merge"], "shuffled"),
        conv("c", "shuffled", constants, 8, 2),
        node("If", ["yes"], "chosen", then_branch=branches[0], else_branch=branches[1]),
        node("ReduceSum", ["chosen"], "sum", keepdims=1),
        node("Add", ["c", "sum"], "y"),
    ]
    group = by_producer(analysed(build(nodes, constants, shape=("n", 6, 5, 5))))["a"]
    assert reasons(group) == {f"'{read_inside}' is read inside a sub-graph"}


def test_an_unknown_operator_keeps_what_it_reads_and_says_so() -> None:
    constants: Constants = {"axis": np.array(2)}
    nodes = [
        conv("a", "x", constants, 6, 8),
        conv("b", "a", constants, 8, 8),
        helper.make_node("CumSum", ["b", "axis"], ["summed"], "running"),
        conv("c", "summed", constants, 8, 4),
        conv("d", "c", constants, 4, 2),
    ]
    groups = by_producer(analysed(build(nodes, constants)))
    assert reasons(groups["b"]) == {"reaches 'running': operator CumSum is not known"}
    assert groups["a"].prunable.all()
    assert groups["c"].prunable.all()


def test_an_operator_of_another_domain_names_it() -> None:
    constants: Constants = {}
    nodes = [conv("a", "x", constants, 6, 8), conv("b", "odd", constants, 8, 2)]
    odd = helper.make_node("Relu", ["a"], ["odd"], "odd", domain="com.example")
    graph = helper.make_graph(
        [nodes[0], odd, nodes[1]],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 6, 5, 5])],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, 2, 5, 5])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
        value_info=[helper.make_tensor_value_info("odd", TensorProto.FLOAT, [1, 8, 5, 5])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    groups = by_producer(analysed(Model.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))))
    assert reasons(groups["a"]) == {"reaches 'odd': operator com.example.Relu is not known"}


def test_what_a_sub_graph_reads_stays() -> None:
    constants: Constants = {"yes": np.array(True)}
    branch = [
        helper.make_graph([node(op, ["a"], out)], out, [], [helper.make_tensor_value_info(out, 1, [None] * 4)])
        for op, out in (("Relu", "r"), ("Abs", "s"))
    ]
    nodes = [
        conv("a", "x", constants, 6, 8),
        helper.make_node("If", ["yes"], ["chosen"], "if", then_branch=branch[0], else_branch=branch[1]),
        conv("b", "chosen", constants, 8, 4),
        conv("c", "b", constants, 4, 2),
    ]
    groups = by_producer(analysed(build(nodes, constants, shape=(1, 6, 5, 5))))
    assert reasons(groups["a"]) == {"'a' is read inside a sub-graph"}
    assert groups["b"].prunable.all()


def test_a_computed_weight_keeps_its_input() -> None:
    constants: Constants = {"stored": np.ones((4, 8, 1, 1), np.int8), "scale": np.float32(0.1), "zero": np.int8(0)}
    nodes = [
        conv("a", "x", constants, 6, 8),
        node("DequantizeLinear", ["stored", "scale", "zero"], "w"),
        helper.make_node("Conv", ["a", "w"], ["b"], "b"),
    ]
    groups = by_producer(analysed(build(nodes, constants)))
    assert [reason for reason in reasons(groups["a"]) if "weight or bias is computed" in reason]


def test_channels_of_a_network_input_stay_where_they_are_added() -> None:
    constants: Constants = {}
    nodes = [conv("a", "x", constants, 6, 6), node("Add", ["x", "a"], "sum"), conv("b", "sum", constants, 6, 2)]
    groups = by_producer(analysed(build(nodes, constants)))
    assert [reason for reason in reasons(groups["a"]) if "'x', which does not come from a Conv" in reason]


def test_an_excluded_node_keeps_filters_and_inputs() -> None:
    constants: Constants = {}
    nodes = [conv(n, x, constants, i, 8) for n, x, i in (("a", "x", 6), ("b", "a", 8), ("c", "b", 8), ("d", "c", 8))]
    groups = by_producer(analysed(build(nodes, constants), frozenset({"b"})))
    assert reasons(groups["a"]) == reasons(groups["b"]) == {"'b' is excluded"}
    assert groups["c"].prunable.all()


def test_depth_to_space_ties_what_becomes_neighbours() -> None:
    for mode, order in (("DCR", [0, 1, 0, 1, 0, 1, 0, 1]), ("CRD", [0, 0, 0, 0, 1, 1, 1, 1])):
        constants: Constants = {}
        nodes = [
            conv("a", "x", constants, 6, 8),
            node("DepthToSpace", ["a"], "wide", blocksize=2, mode=mode),
            conv("b", "wide", constants, 2, 2),
        ]
        groups = analysed(build(nodes, constants))
        group = by_producer(groups)["a"]
        assert group.size == 2
        producer = group.records[0]
        assert [group.classes.tolist().index(int(c)) for c in groups.class_of[producer.ids]] == order


def test_a_dense_layer_made_a_map_loses_whole_channels() -> None:
    constants: Constants = {"dense.w": weight(36, 6), "map": [-1, 4, 3, 3]}
    nodes = [
        node("GlobalAveragePool", ["x"], "pooled"),
        node("Flatten", ["pooled"], "flat"),
        helper.make_node("Gemm", ["flat", "dense.w"], ["dense"], "dense", transB=1),
        node("Reshape", ["dense", "map"], "grid"),
        conv("b", "grid", constants, 4, 2),
    ]
    group = by_producer(analysed(build(nodes, constants)))["dense"]
    assert group.size == 4
    assert group.prunable.all()
    assert [len(record.ids) for record in group.records] == [36]


def normalised(groups: int, opset: int = 17) -> Model:
    """Group normalisation as it is exported below opset 21, dynamic in everything but the channels."""
    constants: Constants = {"split": [0, groups, -1], "one": np.ones(groups), "none": np.zeros(groups)}
    constants = {name: np.asarray(v, np.float32 if name != "split" else np.int64) for name, v in constants.items()}
    constants |= {"scale": weight(8, 1, 1), "shift": weight(8, 1, 1)}
    nodes = [
        conv("a", "x", constants, 6, 8),
        node("Reshape", ["a", "split"], "rows"),
        node("InstanceNormalization", ["rows", "one", "none"], "normal"),
        node("Shape", ["a"], "shape"),
        node("Reshape", ["normal", "shape"], "map"),
        node("Mul", ["map", "scale"], "scaled"),
        node("Add", ["scaled", "shift"], "shifted"),
        conv("b", "shifted", constants, 8, 2),
    ]
    return build(nodes, constants, opset=opset)


@pytest.mark.parametrize("opset", [11, 13, 17])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_group_normalisation_is_followed_though_lengths_are_open(groups: int, opset: int) -> None:
    found = analysed(normalised(groups, opset))
    group = by_producer(found)["a"]
    assert group.prunable.all()
    # Four groups of two channels lose whole groups, two of four the same share of each: whichever is finer.
    assert {rows.shape for _, rows in found.balanced} == ({(2, 4)} if groups == 2 else set())
    assert group.size == (4 if groups == 4 else 8)


def test_group_normalisation_as_an_operator() -> None:
    constants: Constants = {"scale": weight(8), "shift": weight(8)}
    nodes = [
        conv("a", "x", constants, 6, 8),
        node("GroupNormalization", ["a", "scale", "shift"], "normal", num_groups=2),
        conv("b", "normal", constants, 8, 4),
        conv("c", "b", constants, 4, 2),
    ]
    found = analysed(build(nodes, constants, opset=21))
    assert by_producer(found)["a"].prunable.all()
    assert [rows.shape for _, rows in found.balanced] == [(2, 4)]
    assert by_producer(found)["b"].prunable.all()  # inference goes on behind it


def test_softmax_over_channels_keeps_them_over_space_does_not() -> None:
    for axis, frozen in ((1, True), (2, False), (-1, False)):
        constants: Constants = {}
        nodes = [
            conv("a", "x", constants, 6, 8),
            helper.make_node("Softmax", ["a"], ["s"], "soft", axis=axis),
            conv("b", "s", constants, 8, 2),
        ]
        group = by_producer(analysed(build(nodes, constants)))["a"]
        assert reasons(group) == ({"'soft' (Softmax) normalises over them"} if frozen else set())


def test_every_frozen_channel_has_a_reason_and_every_group_a_name() -> None:
    constants: Constants = {}
    nodes = [
        conv("a", "x", constants, 6, 8),
        node("Split", ["a"], "p", "q", axis=1),
        conv("b", "p", constants, 4, 4),
        node("Add", ["b", "q"], "sum"),
    ]
    for group in analysed(build(nodes, constants, outputs=("sum",))).groups:
        assert group.name == group.producers[0]
        assert all(group.frozen[at] for at in range(group.size) if not group.prunable[at])


@pytest.mark.parametrize("op", ["Concat", "Tile", "Expand", "Flatten"])
def test_absurd_lengths_are_not_allocated(op: str) -> None:
    """A length of 2^40 that shape inference follows: what it touches stays, or the model is refused."""
    constants: Constants = {"repeats": np.array([1, 2**40, 1, 1]), "target": np.array([1, 2**40, 1, 1])}
    constants["kernel"] = weight(1, 6, 1, 1)
    large = onnx.helper.make_tensor_value_info("large", TensorProto.FLOAT, [1, 2**40, 5, 5])
    made = {
        "Concat": node("Concat", ["a", "large"], "t", axis=1),
        "Tile": node("Tile", ["a", "repeats"], "t"),
        "Expand": node("Expand", ["one", "target"], "t"),
        "Flatten": node("Flatten", ["wide"], "t"),
    }[op]
    nodes = [
        conv("a", "x", constants, 6, 8),
        conv("one", "x", constants, 6, 1),
        node("Resize", ["a", "", "scales"], "wide"),
        made,
        node("Relu", ["t"], "y"),
    ]
    constants["scales"] = np.array([1, 1, 2**20, 2**20], np.float32)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 6, 5, 5]), large],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * (2 if op == "Flatten" else 4))],
        [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10))
    groups = by_producer(analysed(model))
    assert not groups["one" if op == "Expand" else "a"].prunable.any()


def test_an_axis_without_length_divides_nothing() -> None:
    moved = reshaped(Labels.along(1, np.arange(4)), (0, 4), (2, 2, 0))
    assert moved is not None
    np.testing.assert_array_equal(moved.ids, [[0, 1], [2, 3]])
