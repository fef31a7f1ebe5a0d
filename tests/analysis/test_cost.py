"""Parameters and MACs against counts by hand, and the known figures of the real models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcompress.analysis.cost import model_cost, node_macs, open_inputs, sample_shapes
from onnxcompress.errors import RecipeError
from onnxcompress.graph import Model
from tests.passes.tucker_models import conv_model, model_of, weight_of
from tests.tiny_models import MACS_OF_IMAGE_AND_TABLE, image_and_table


@pytest.mark.parametrize(
    ("weight", "shape", "attributes", "positions"),
    [
        ((8, 6, 3, 3), (1, 6, 9, 10), {}, 7 * 8),
        ((8, 6, 3, 3), ("batch", 6, 9, 10), {}, 7 * 8),
        ((8, 6, 3, 3), (4, 6, 9, 10), {}, 7 * 8),
        ((8, 6, 3, 3), (1, 6, 9, 10), {"strides": [2, 2], "pads": [1, 1, 1, 1]}, 5 * 5),
        ((8, 6, 3, 3), (1, 6, 9, 10), {"dilations": [2, 2]}, 5 * 6),
        ((8, 6, 3, 3), (1, 6, 9, 10), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, 5 * 5),
        ((8, 3, 3, 3), (1, 6, 9, 10), {"group": 2}, 7 * 8),
        ((8, 1, 3, 3), (1, 8, 9, 10), {"group": 8}, 7 * 8),
        ((8, 6, 5), (1, 6, 9), {}, 5),
        ((8, 6, 3, 3, 3), (1, 6, 5, 5, 5), {}, 27),
    ],
)
def test_conv_costs_its_weights_at_every_output_position(weight, shape, attributes, positions):
    cost = model_cost(conv_model(weight_of(*weight), shape, **attributes))
    assert cost.macs == np.prod(weight) * positions
    assert cost.params == np.prod(weight) + weight[0]


@pytest.mark.parametrize(("weight", "group"), [((6, 8, 4, 4), 1), ((6, 4, 4, 4), 2)])
def test_conv_transpose_costs_its_weights_at_every_input_position(weight, group):
    model = conv_model(weight_of(*weight), (2, 6, 5, 7), op="ConvTranspose", strides=[2, 2], group=group)
    assert model_cost(model).macs == np.prod(weight) * 5 * 7
    assert model_cost(model).layers[0].op == "ConvTranspose"


@pytest.mark.parametrize("attributes", [{}, {"transB": 1}, {"transA": 1}, {"transA": 1, "transB": 1}])
def test_gemm(attributes):
    weight = weight_of(7, 12) if "transB" in attributes else weight_of(12, 7)
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], name="g", **attributes)]
    if "transA" in attributes:
        nodes[0].input[0] = "t"
        nodes.insert(0, helper.make_node("Transpose", ["x"], ["t"], name="t"))
    model = model_of(nodes, {"w": weight}, ("n", 12))
    assert (model_cost(model).macs, model_cost(model).params) == (84, 84)


@pytest.mark.parametrize(
    ("shape", "macs"), [(("n", 12), 84), ((5, 12), 84), ((1, 4, 12), 4 * 84), (("n", 2, 4, 12), 8 * 84), ((12,), 84)]
)
def test_matmul(shape, macs):
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"], name="m")], {"w": weight_of(12, 7)}, shape)
    assert model_cost(model).macs == macs


def test_matmul_of_two_activations_is_counted():
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], name="t", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "t"], ["y"], name="m"),
    ]
    cost = model_cost(model_of(nodes, {}, ("n", 5, 6)))
    assert (cost.macs, cost.params) == (5 * 5 * 6, 0)


def test_the_other_operators_cost_no_macs_but_count_their_weights():
    nodes = [
        helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["h"], name="bn"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Reshape", ["r", "shape"], ["y"], name="reshape"),
    ]
    vectors = {name: np.ones(6, np.float32) for name in "sbmv"}
    model = model_of(nodes, {**vectors, "shape": np.array([0, -1])}, (1, 6, 4, 4))
    cost = model_cost(model)
    assert (cost.macs, cost.params) == (0, 24)
    assert [(layer.node, layer.params, layer.macs) for layer in cost.layers] == [("bn", 24, 0)]
    assert cost.ops == {"BatchNormalization": 1, "Relu": 1, "Reshape": 1}
    assert cost.weight_bytes == 24 * 4 + 2 * 8
    assert cost.layer("relu") is None


def test_a_shared_weight_counts_once_but_multiplies_twice():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], name="one", pads=[1] * 4),
        helper.make_node("Conv", ["h", "w"], ["y"], name="two", pads=[1] * 4),
    ]
    cost = model_cost(model_of(nodes, {"w": weight_of(6, 6, 3, 3)}, (1, 6, 8, 8)))
    assert cost.params == 6 * 6 * 9
    assert [layer.params for layer in cost.layers] == [324, 0]
    assert cost.macs == 2 * 324 * 64


def test_layers_sum_to_the_whole():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], name="conv"),
        helper.make_node("GlobalAveragePool", ["h"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "g", "c"], ["y"], name="gemm"),
    ]
    constants = {"w": weight_of(8, 6, 3, 3), "g": weight_of(8, 5), "c": weight_of(5)}
    cost = model_cost(model_of(nodes, constants, ("n", 6, 8, 8)))
    assert cost.macs == sum(layer.macs for layer in cost.layers) == 8 * 6 * 9 * 36 + 40
    assert cost.params == sum(layer.params for layer in cost.layers) == 432 + 45


def test_what_is_not_known_is_none_and_can_be_given():
    model = conv_model(weight_of(8, 6, 3, 3), ("n", 6, "h", "w"))
    cost = model_cost(model)
    assert cost.macs is None
    assert cost.layers[0].macs is None
    assert cost.params == 8 * 6 * 9 + 8
    assert model_cost(model.at({"x": (1, 6, 9, 10)})).macs == 432 * 56
    assert model_cost(model.at({"x": (4, 6, 9, 10)})).macs == 432 * 56


def test_an_unknown_layer_leaves_the_known_ones():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], name="conv"),
        helper.make_node("GlobalAveragePool", ["h"], ["p"], name="pool"),
        helper.make_node("Conv", ["p", "v"], ["y"], name="last"),
    ]
    model = model_of(nodes, {"w": weight_of(8, 6, 3, 3), "v": weight_of(4, 8, 1, 1)}, ("n", 6, "h", "w"))
    cost = model_cost(model)
    assert [layer.macs for layer in cost.layers] == [None, 32]
    assert cost.macs is None


def test_sizes_behind_shape_arithmetic_are_known():
    """`x.reshape(n, 3, 2, h, w)` as exporters spell it: the lengths are computed from the input's shape."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], name="shape"),
        *(helper.make_node("Gather", ["shape", f"at{i}"], [f"d{i}"], name=f"gather{i}", axis=0) for i in (0, 2, 3)),
        *(helper.make_node("Unsqueeze", [f"d{i}", "zero"], [f"u{i}"], name=f"unsqueeze{i}") for i in (0, 2, 3)),
        helper.make_node("Concat", ["u0", "six", "u2", "u3"], ["target"], name="concat", axis=0),
        helper.make_node("Reshape", ["x", "target"], ["r"], name="reshape"),
        helper.make_node("Conv", ["r", "w"], ["y"], name="conv"),
    ]
    positions = {f"at{i}": np.array(i) for i in (0, 2, 3)}
    constants = {**positions, "zero": np.array([0]), "six": np.array([6]), "w": weight_of(8, 6, 3, 3)}
    model = model_of(nodes, constants, ("n", 6, 9, 10))
    before = model.to_bytes()
    assert model_cost(model).macs == 432 * 56
    assert model.to_bytes() == before


def test_sizes_of_what_only_shapes_make_are_known():
    """Queries of zeros, one row for each sample, as a detector's decoder begins."""
    nodes = [
        helper.make_node("Shape", ["x"], ["n"], name="shape", start=0, end=1),
        helper.make_node("Concat", ["n", "two"], ["once"], name="once", axis=0),
        helper.make_node("Tile", ["rows", "once"], ["queries"], name="tile"),
        helper.make_node("Shape", ["queries"], ["lengths"], name="lengths"),
        helper.make_node("ConstantOfShape", ["lengths"], ["zeros"], name="zeros"),
        helper.make_node("MatMul", ["zeros", "w"], ["y"], name="product"),
    ]
    constants = {"two": np.array([1, 1]), "rows": weight_of(1, 5, 6), "w": weight_of(6, 4)}
    assert model_cost(model_of(nodes, constants, ("n", 6, 9, 10))).macs == 5 * 6 * 4


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"z": (1, 6, 9, 9)}, "no input 'z'"),
        ({"x": (1, 5, 9, 9)}, "1x5x9x9 does not fit"),
        ({"x": (1, 6, 9)}, "1x6x9 does not fit"),
        ({"x": (0, 6, 9, 9)}, "0x6x9x9 does not fit"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes, message):
    with pytest.raises(RecipeError, match=message):
        model_cost(conv_model(weight_of(8, 6, 3, 3), ("n", 6, "h", "w")).at(shapes))


def test_shapes_that_contradict_the_model_are_refused():
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["f"], name="reshape"),
        helper.make_node("MatMul", ["f", "w"], ["y"], name="last"),
    ]
    constants = {"flat": np.array([1, -1]), "w": weight_of(6 * 4, 5)}
    model = model_of(nodes, constants, (1, 6, "h", "w"))
    assert model_cost(model.at({"x": (1, 6, 2, 2)})).macs == 120
    with pytest.raises(RecipeError, match="cannot run at these shapes"):
        model_cost(model.at({"x": (1, 6, 3, 3)}))


def test_sample_shapes_leave_the_model_alone():
    model = conv_model(weight_of(8, 6, 3, 3), ("n", 6, 9, 9))
    before = dict(model.shapes)
    shapes, batch = sample_shapes(model)
    assert (shapes["y"], batch) == ((1, 8, 7, 7), 1)
    assert model.shapes == before
    assert node_macs(model.nodes[0], shapes) == 432 * 49
    assert node_macs(model.nodes[0], {}) is None


def test_only_floating_point_elements_are_parameters():
    weights = {"w": weight_of(6, 6, 1, 1, dtype=np.float16)}
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], name="cast", to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["h", "w"], ["y"], name="conv"),
    ]
    cost = model_cost(model_of(nodes, weights, (1, 6, 2, 2)))
    assert (cost.params, cost.weight_bytes) == (36, 72)


@pytest.mark.parametrize(
    ("name", "params", "mega_macs", "convs"),
    [("googlenet-bvlc", 6_998_552, 1582.67, 57), ("squeezenet-1.0", 1_235_496, None, 26)],
)
def test_real_models(shared_data: Path, name, params, mega_macs, convs):
    cost = model_cost(Model.load(shared_data / f"{name}.onnx"))
    assert cost.params == params
    assert cost.ops["Conv"] == convs
    assert cost.macs is not None
    if mega_macs is not None:
        assert cost.macs / 1e6 == pytest.approx(mega_macs, abs=0.005)


@pytest.mark.parametrize("shapes", [{}, {"x": (4, 6, 8, 8)}, {"t": (4, 3)}])
def test_an_input_of_two_axes_has_the_batch_whose_symbol_it_shares(shapes):
    model = Model.from_proto(image_and_table())
    assert open_inputs(model) == []
    assert model_cost(model.at(shapes)).macs == MACS_OF_IMAGE_AND_TABLE


def test_an_input_of_two_axes_with_a_symbol_of_its_own_is_open_until_its_shape_is_given():
    model = Model.from_proto(image_and_table("n", "m"))
    assert open_inputs(model) == ["t"]
    assert [layer.node for layer in model_cost(model).layers if layer.macs is None] == ["dense"]
    assert model_cost(model.at({"t": (1, 3)})).macs == MACS_OF_IMAGE_AND_TABLE
    assert model_cost(model.at({"t": (4, 3), "x": (4, 6, 8, 8)})).macs == MACS_OF_IMAGE_AND_TABLE
    assert open_inputs(Model.from_proto(image_and_table("n", 1))) == []


def test_parameters_in_sub_graphs_count_and_what_is_multiplied_there_does_not() -> None:
    def branch(name: str, *, deeper: bool) -> onnx.GraphProto:
        weight = onnx.numpy_helper.from_array(np.ones((4, 8, 1, 1), np.float32), f"w_{name}")
        nodes = [
            helper.make_node("Constant", [], [f"c_{name}"], value=onnx.numpy_helper.from_array(np.float32(1.0))),
            helper.make_node("Constant", [], [f"i_{name}"], value=onnx.numpy_helper.from_array(np.arange(5))),
            helper.make_node("Conv", ["a", f"w_{name}"], [f"d_{name}"]),
            helper.make_node("Add", [f"d_{name}", f"c_{name}"], [f"y_{name}"]),
        ]
        if deeper:
            inner = [branch(f"{name}{side}", deeper=False) for side in "lr"]
            nodes = [helper.make_node("If", ["flag"], [f"y_{name}"], then_branch=inner[0], else_branch=inner[1])]
        out = helper.make_tensor_value_info(f"y_{name}", TensorProto.FLOAT, None)
        return helper.make_graph(nodes, name, [], [out], [] if deeper else [weight])

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv"),
        helper.make_node(
            "If", ["flag"], ["y"], "if", then_branch=branch("t", deeper=True), else_branch=branch("e", deeper=False)
        ),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 6, 6]),
        helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    weight = onnx.numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "w")
    graph = helper.make_graph(nodes, "g", inputs, [output], [weight])
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    cost = model_cost(model)
    assert (cost.params, cost.nested_params) == (216 + 3 * 33, 3 * 33)
    assert cost.macs == 216 * 16
    own = cost.layer("if")
    assert own is not None
    assert (own.params, own.macs) == (99, 0)
