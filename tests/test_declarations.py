"""What files declare and how they order it: open lengths, wrong shapes and nodes in any order are read as meant."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.errors import ModelError
from onnxcompress.graph import Model
from tests.small_models import run_all, session
from tests.test_graph import info, proto_of
from tests.tiny_models import conv_net


def test_nodes_in_any_order_are_sorted_and_otherwise_stay() -> None:
    proto = conv_net()
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([nodes[3], nodes[1], nodes[0], nodes[5], nodes[4], nodes[2]])
    model = Model.from_proto(proto)
    assert [n.name for n in model.nodes] == [n.name for n in nodes]
    onnx.checker.check_model(model.to_proto(), full_check=True)
    # Two branches keep the order that they have in the file.
    branches = [helper.make_node(op, ["x"], [op], op) for op in ("Relu", "Abs", "Neg")]
    last = helper.make_node("Sum", ["Abs", "Relu", "Neg"], ["y"], "last")
    for given, expected in (([*branches, last], "Relu Abs Neg last"), ([last, *branches[::-1]], "Neg Abs Relu last")):
        assert " ".join(n.name for n in Model.from_proto(proto_of(given, {})).nodes) == expected


def test_a_length_of_minus_one_is_an_open_one() -> None:
    proto = conv_net()
    for declared in (proto.graph.input[0], proto.graph.output[0]):
        declared.type.tensor_type.shape.dim[0].dim_value = -1
    model = Model.from_proto(proto)
    assert model.shapes["x"] == (None, 3, 8, 8)
    onnx.checker.check_model(model.to_proto(), full_check=True)
    x = np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32)
    same = run_all(Model.from_proto(conv_net()), {"x": x})
    np.testing.assert_array_equal(run_all(model, {"x": x})["y"], same["y"])


def test_what_a_file_wrongly_declares_of_an_output_is_corrected() -> None:
    relu = helper.make_node("Relu", ["x"], ["y"])
    for wrong in ([2], [2, 5], [2, "n", 1]):
        proto = proto_of([relu], {})
        proto.graph.output[0].CopyFrom(info("y", wrong))
        model = Model.from_proto(proto)
        assert model.shapes["y"] == (2, 4)
        back = model.to_proto()
        onnx.checker.check_model(back, full_check=True)
        assert back.graph.output[0] == info("y", [2, 4])
    wrong_type = proto_of([relu], {})
    wrong_type.graph.output[0].CopyFrom(info("y", [2, 5], TensorProto.INT64))
    with pytest.raises(ModelError, match="contradict"):
        Model.from_proto(wrong_type)


def test_an_output_declared_without_a_shape_has_the_one_that_follows() -> None:
    """As tf2onnx and scripts leave it; the checker wants one."""
    proto = conv_net()
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    model = Model.from_proto(proto)
    back = model.to_proto()
    onnx.checker.check_model(back, full_check=True)
    assert list(back.graph.output) == list(conv_net().graph.output)
    assert model.signature() == Model.from_proto(conv_net()).signature()
    proto.graph.node[-1].op_type, proto.graph.node[-1].domain = "Unheard", "com.example"
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    with pytest.raises(ModelError, match="'y' is declared without a shape, and none follows"):
        Model.from_proto(proto)


@pytest.mark.parametrize("has_shape", [True, False])
def test_an_output_declared_without_a_type_has_the_one_that_follows(has_shape: bool) -> None:
    proto = conv_net()
    if has_shape:
        proto.graph.output[0].type.tensor_type.elem_type = TensorProto.UNDEFINED
    else:
        proto.graph.output[0].ClearField("type")
    written = Model.from_proto(proto).to_proto()
    onnx.checker.check_model(written, full_check=True)
    assert written.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    x = {"x": np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32)}
    expected, found = (session(each.SerializeToString()).run(None, x)[0] for each in (conv_net(), written))
    np.testing.assert_array_equal(found, expected)


def test_an_output_whose_type_nothing_tells_is_refused() -> None:
    proto = conv_net()
    proto.graph.node.append(helper.make_node("Own", ["y"], ["z"], "own", domain="of.mine"))
    proto.graph.output[0].CopyFrom(onnx.ValueInfoProto(name="z"))
    proto.opset_import.append(helper.make_opsetid("of.mine", 1))
    with pytest.raises(ModelError, match="output 'z' is declared without an element type, and none follows"):
        Model.from_proto(proto)


def test_an_output_that_is_an_input_or_a_constant_has_that_ones_shape_whatever_it_declares() -> None:
    """onnx took what the output declares for the input or weight, too: nothing was known behind it."""
    expected = Model.from_proto(conv_net())
    for shape in (None, ["n", "c", "h", "w"]):
        proto = conv_net()
        proto.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "w1"))
        model = Model.from_proto(proto)
        assert {name: model.shapes[name] for name in expected.shapes} == expected.shapes
        assert model.shapes["w1"] == (16, 3, 3, 3)
        onnx.checker.check_model(model.to_proto(), full_check=True)


def test_a_graph_without_a_name_gets_one() -> None:
    proto = conv_net()
    proto.graph.name = ""
    written = Model.from_proto(proto).to_proto()
    onnx.checker.check_model(written, full_check=True)
    assert written.graph.name


@pytest.mark.skipif(not hasattr(onnx, "NodeDeviceConfigurationProto"), reason="this release of onnx has none")
def test_devices_that_nodes_are_meant_for_are_kept() -> None:
    proto = conv_net()
    proto.ir_version = 11
    proto.configuration.add(name="two", num_devices=2)
    given = proto.graph.node[0].device_configurations.add(configuration_id="two", pipeline_stage=1)
    written = Model.from_proto(proto).copy().to_proto()
    onnx.checker.check_model(written, full_check=True)
    assert list(written.configuration) == list(proto.configuration)
    assert [list(node.device_configurations) for node in written.graph.node[:2]] == [[given], []]


def test_the_default_domain_is_named_once() -> None:
    """Runtimes know it as ai.onnx, too; the checker does not, and a quantizer wants one import of it."""
    for named in (True, False):
        proto = conv_net()
        proto.opset_import.append(helper.make_opsetid("ai.onnx", 17))
        if named:
            proto.opset_import.reverse()
        branch = helper.make_graph([helper.make_node("Identity", ["f"], ["b"])], "g", [], [info("b", ["n", 256])])
        choice = helper.make_node("If", ["yes"], ["chosen"], "choice", then_branch=branch, else_branch=branch)
        proto.graph.node.insert(5, choice)
        proto.graph.node[6].input[0] = "chosen"
        proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
        for each in (*proto.graph.node, *(graph.g.node[0] for graph in proto.graph.node[5].attribute)):
            each.domain = "ai.onnx"
        back = Model.from_proto(proto).to_proto()
        assert [(each.domain, each.version) for each in back.opset_import] == [("", 17)]
        onnx.checker.check_model(back, full_check=True)
    proto.opset_import[-1].version = 18
    with pytest.raises(ModelError, match="in two versions"):
        Model.from_proto(proto)
