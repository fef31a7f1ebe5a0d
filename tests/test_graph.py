"""The model in memory: nothing of the file is lost, constants are one thing, and edits touch only what they name."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.errors import ModelError
from onnxcompress.graph import Model
from tests.small_models import run_all
from tests.tiny_models import conv_net

FLOAT = TensorProto.FLOAT


def info(name: str, shape: list[Any], kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def proto_of(nodes: list[onnx.NodeProto], constants: dict[str, Any], **how: Any) -> onnx.ModelProto:
    """Return a model from `x` (2, 4) to `y` (2, 4)."""
    initializers = [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in constants.items()]
    inputs = [info("x", [2, 4]), *how.pop("more_inputs", [])]
    graph = helper.make_graph(nodes, "g", inputs, [info("y", [2, 4])], initializers, **how.pop("graph", {}))
    opsets = [helper.make_opsetid("", how.pop("opset", 17)), *how.pop("opsets", [])]
    return helper.make_model(graph, opset_imports=opsets, **{"ir_version": 8, **how})


# Nothing of the file is lost.


def test_metadata_opsets_and_documentation_stay() -> None:
    add = helper.make_node("Add", ["x", "c"], ["t"], "add", doc_string="adds")
    odd = helper.make_node("Odd", ["t"], ["y"], "odd", domain="com.example", level=3)
    proto = proto_of(
        [add, odd],
        {"c": np.ones(4)},
        opsets=[helper.make_opsetid("com.example", 2)],
        producer_name="exporter",
        producer_version="1.2",
        domain="org.example",
        model_version=7,
        doc_string="a model",
        graph={"doc_string": "a graph", "value_info": [info("t", [2, 4])]},
    )
    helper.set_model_props(proto, {"author": "someone", "classes": "[1, 2]"})
    proto.graph.node[0].metadata_props.add(key="line", value="12")
    back = Model.from_proto(proto).to_proto()
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string", "ir_version"):
        assert getattr(back, field) == getattr(proto, field)
    assert {p.key: p.value for p in back.metadata_props} == {"author": "someone", "classes": "[1, 2]"}
    assert [(o.domain, o.version) for o in back.opset_import] == [("", 17), ("com.example", 2)]
    assert back.graph.doc_string == "a graph"
    assert list(back.graph.node) == list(proto.graph.node)


def test_how_to_train_a_model_stays_as_long_as_its_weights_are_what_they_were() -> None:
    proto = proto_of([helper.make_node("Add", ["x", "c"], ["y"], "add")], {"c": np.ones(4)})
    info_of_training = proto.training_info.add()
    step = helper.make_node("Sub", ["c", "c"], ["next"])
    info_of_training.algorithm.CopyFrom(helper.make_graph([step], "step", [], [info("next", [4])]))
    info_of_training.update_binding.add(key="c", value="next")
    model = Model.from_proto(proto)
    assert list(model.to_proto().training_info) == list(proto.training_info)
    model.set_input(model.nodes[0], 1, np.zeros(4, np.float32))
    assert list(model.to_proto().training_info) == list(proto.training_info)
    model.set_input(model.nodes[0], 1, np.zeros(1, np.float32))
    assert not model.to_proto().training_info


def test_what_is_said_of_weights_stays() -> None:
    proto = proto_of([helper.make_node("Add", ["x", "c"], ["y"], "add")], {"c": np.ones(4)})
    proto.graph.initializer[0].doc_string = "ones"
    proto.graph.initializer[0].metadata_props.add(key="scale", value="1")
    model = Model.from_proto(proto)
    for back in (model.to_proto(), onnx.load_from_string(model.to_bytes())):
        assert list(back.graph.initializer) == list(proto.graph.initializer)
    assert model.size_bytes == len(model.to_bytes())
    assert len(model.skeleton().graph.initializer) == 1


def test_sub_graphs_and_tensor_attributes_stay() -> None:
    branches = [
        helper.make_graph([helper.make_node(op, ["x"], [out], doc_string="inside")], out, [], [info(out, [2, 4])])
        for op, out in (("Relu", "r"), ("Abs", "a"))
    ]
    fill = helper.make_node("ConstantOfShape", ["s"], ["f"], "fill", value=helper.make_tensor("v", FLOAT, [1], [2.5]))
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], "shape"),
        fill,
        helper.make_node("If", ["yes"], ["chosen"], "if", then_branch=branches[0], else_branch=branches[1]),
        helper.make_node("Add", ["chosen", "f"], ["y"], "add"),
    ]
    proto = proto_of(nodes, {})
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    back = Model.from_proto(proto).to_proto()
    assert list(back.graph.node) == list(proto.graph.node)


def test_a_round_trip_gives_the_same_bytes(tmp_path: Path) -> None:
    model = Model.from_proto(conv_net())
    content = model.to_bytes()
    assert Model.from_bytes(content).to_bytes() == content == model.copy().to_bytes()
    model.save(tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == content
    assert Model.load(tmp_path / "m.onnx").to_bytes() == content


def test_local_functions_are_inlined() -> None:
    body = [helper.make_node("Mul", ["a", "a"], ["b"]), helper.make_node("Relu", ["b"], ["c"])]
    square = helper.make_function("local", "Square", ["a"], ["c"], body, [helper.make_opsetid("", 17)])
    call = helper.make_node("Square", ["x"], ["y"], "call", domain="local")
    proto = proto_of([call], {}, opsets=[helper.make_opsetid("local", 1)], functions=[square])
    model = Model.from_proto(proto)
    assert [n.op for n in model.nodes] == ["Mul", "Relu"]
    assert not model.to_proto().functions


def test_a_functions_attributes_are_those_of_its_call() -> None:
    leaky = helper.make_node("LeakyRelu", ["a"], ["b"])
    leaky.attribute.add(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="slope")
    body = helper.make_function("local", "Leaky", ["a"], ["b"], [leaky], [helper.make_opsetid("", 17)], ["slope"])
    call = helper.make_node("Leaky", ["x"], ["y"], "call", domain="local", slope=0.25)
    proto = proto_of([call], {}, opsets=[helper.make_opsetid("local", 1)], functions=[body])
    assert [n.attrs for n in Model.from_proto(proto).nodes] == [{"alpha": 0.25}]


# Names and constants.


def test_every_node_gets_a_name_of_its_own() -> None:
    nodes = [
        helper.make_node("Relu", [a], [b], name) for a, b, name in (("x", "p", ""), ("p", "q", "n"), ("q", "r", "n"))
    ]
    nodes += [helper.make_node("Relu", ["r"], ["y"], "Relu_0")]
    model = Model.from_proto(proto_of(nodes, {}))
    names = [n.name for n in model.nodes]
    assert len(set(names)) == 4
    assert all(names)
    assert (names[1], names[3]) == ("n", "Relu_0")


def test_constants_are_one_thing_whatever_the_file_calls_them() -> None:
    value = np.arange(4, dtype=np.float32)
    nodes = [
        helper.make_node("Constant", [], ["as node"], value=numpy_helper.from_array(value, "v")),
        helper.make_node("Constant", [], ["as floats"], value_floats=value.tolist()),
        helper.make_node("Identity", ["stored"], ["as identity"]),
        helper.make_node("Identity", ["as node"], ["as identity of node"]),
        helper.make_node("Sum", ["x", "stored", "as node", "as floats", "as identity", "as identity of node"], ["y"]),
    ]
    model = Model.from_proto(proto_of(nodes, {"stored": value}))
    assert [n.op for n in model.nodes] == ["Sum"]
    assert all(model.is_constant(tensor) for tensor in model.nodes[0].inputs[1:])
    assert all(np.array_equal(tensor.values, value) for tensor in model.nodes[0].inputs[1:])
    feeds = {"x": np.ones((2, 4), np.float32)}
    np.testing.assert_array_equal(run_all(model, feeds)["y"], 1 + 5 * np.broadcast_to(value, (2, 4)))


def test_a_layer_applied_twice_behind_identities_is_stored_once() -> None:
    own = {"w": np.arange(16.0).reshape(4, 4), "c": np.ones(4), "b": np.arange(4.0)[None].repeat(4, 0)}
    own = {name: values.astype(np.float32) for name, values in own.items()}
    nodes = [helper.make_node("Identity", [name], [f"{name}2"]) for name in own]
    nodes += [helper.make_node("Gemm", [a, w, c], [y]) for a, w, c, y in (("x", "w", "c", "p"), ("p", "w2", "c2", "q"))]
    nodes += [helper.make_node("MatMul", ["q", "b"], ["r"]), helper.make_node("MatMul", ["r", "b2"], ["y"])]
    first, second, *blurs = Model.from_proto(proto_of(nodes, own)).nodes
    assert first.inputs[1] is second.inputs[1]
    assert first.inputs[2] is second.inputs[2]
    assert blurs[0].inputs[1] is not blurs[1].inputs[1]  # rows are equal: perhaps by chance


@pytest.mark.parametrize("ir_version", [3, 8])
def test_an_input_with_a_default_is_a_constant_that_stays_listed(ir_version: int) -> None:
    nodes = [helper.make_node("Add", ["x", "c"], ["y"], "add")]
    model = Model.from_proto(proto_of(nodes, {"c": np.ones(4)}, more_inputs=[info("c", [4])], ir_version=ir_version))
    assert model.is_constant(model.nodes[0].inputs[1])
    assert [tensor.name for tensor in model.graph.inputs] == ["x"]
    model.set_input(model.nodes[0], 1, np.zeros((1, 4), np.float32))
    back = model.to_proto()
    assert [i.name for i in back.graph.input] == ["x", "c"]
    assert [d.dim_value for d in back.graph.input[1].type.tensor_type.shape.dim] == [1, 4]
    onnx.checker.check_model(back, full_check=True)


def test_ir_3_lists_new_weights_once_however_large() -> None:
    nodes = [helper.make_node("Add", ["x", "c"], ["y"], "add")]
    model = Model.from_proto(proto_of(nodes, {"c": np.ones(4)}, more_inputs=[info("c", [4])], ir_version=3, opset=9))
    large = model.new_constant("large", np.ones((5000, 2, 4), np.float32))
    model.nodes[0].inputs[1] = large
    model.nodes[0].outputs[0].name = "z"
    assert [i.name for i in model.to_proto().graph.input] == ["x", "large"]
    assert [i.name for i in model.skeleton().graph.input].count("large") == 1


# Edits.


def test_a_shared_constant_is_unshared_before_it_changes() -> None:
    nodes = [helper.make_node("Add", ["x", "c"], ["t"], "one"), helper.make_node("Mul", ["t", "c"], ["y"], "two")]
    model = Model.from_proto(proto_of(nodes, {"c": np.ones(4)}))
    model.set_input(model.nodes[0], 1, np.zeros(4, np.float32))
    assert model.nodes[0].inputs[1].values.tolist() == [0.0] * 4
    assert model.nodes[1].inputs[1].values.tolist() == [1.0] * 4
    assert model.nodes[1].inputs[1].name == "c"


def test_a_constant_read_twice_by_one_node_is_unshared_too() -> None:
    model = Model.from_proto(proto_of([helper.make_node("Sum", ["x", "c", "c"], ["y"], "s")], {"c": np.ones(4)}))
    model.set_input(model.nodes[0], 1, np.zeros(4, np.float32))
    assert [t.values.sum() for t in model.nodes[0].inputs[1:]] == [0.0, 4.0]


def test_a_copy_can_change_without_its_original() -> None:
    model = Model.from_proto(conv_net())
    before = model.to_bytes()
    copied = model.copy()
    copied.nodes[0].attrs["pads"][0] = 9
    copied.set_input(copied.nodes[0], 1, np.zeros((1, 3, 3, 3), np.float32))
    copied.nodes[1].inputs[0].name = "other"
    copied.graph.nodes.pop()
    assert model.to_bytes() == before
    assert model.copy().constants()["w1"].values is model.constants()["w1"].values


def test_a_model_goes_to_other_processes_and_into_deep_copies() -> None:
    model = Model.from_proto(conv_net()).at({"x": (2, 3, 8, 8)})
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert (other.to_bytes(), other.input_shapes) == (model.to_bytes(), model.input_shapes)
        other.nodes[0].outputs[0].name = "other"
    assert model.nodes[0].outputs[0].name != "other"


def test_nodes_are_inserted_and_replaced_where_they_stand() -> None:
    model = Model.from_proto(conv_net())
    relu = next(n for n in model.nodes if n.name == "relu1")
    extra = model.new_variable("c1")
    assert extra.name != "c1"
    model.insert_before(relu, [gs.Node("Abs", model.unique_name("relu1"), {}, [relu.inputs[0]], [extra])])
    relu.inputs[0] = extra
    output = relu.outputs[0]
    source = relu.inputs[0]
    relu.outputs.clear()
    model.replace_node(relu, [gs.Node("Neg", "neg", {}, [source], [output])])
    assert [n.op for n in model.nodes] == ["Conv", "Abs", "Neg", "Conv", "Relu", "Flatten", "Gemm"]
    model.refresh_shapes()
    model.check()
    with pytest.raises(ValueError, match="is not in the graph"):
        model.insert_before(relu, [])


def test_what_nothing_reads_is_removed_and_what_a_sub_graph_reads_is_not() -> None:
    branch = [
        helper.make_graph([helper.make_node("Add", ["kept", "w"], [out])], out, [], [info(out, [2, 4])]) for out in "pq"
    ]
    nodes = [
        helper.make_node("Relu", ["x"], ["kept"], "kept"),
        helper.make_node("Abs", ["x"], ["dead"], "dead"),
        helper.make_node("Neg", ["dead"], ["dead too"], "dead too"),
        helper.make_node("If", ["yes"], ["y"], "if", then_branch=branch[0], else_branch=branch[1]),
    ]
    proto = proto_of(nodes, {"w": np.ones(4), "unused": np.ones(9)})
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model = Model.from_proto(proto)
    model.remove_unused()
    assert [n.name for n in model.nodes] == ["kept", "if"]
    assert set(model.constants()) == {"yes", "w"}
    assert model.captured_names() == {"kept", "w"}


def test_removing_readers_of_one_constant_compares_no_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """graphsurgeon's lists compare nodes by content for each link they cut, which is quadratic."""
    count = 50
    nodes = [helper.make_node("Add", ["x", "w"], [f"dead {i}"], f"dead {i}") for i in range(count)]
    model = Model.from_proto(proto_of([*nodes, helper.make_node("Mul", ["x", "w"], ["y"], "y")], {"w": np.ones(4)}))
    compared = []
    monkeypatch.setattr(gs.Node, "__eq__", lambda self, other: compared.append(self) or self is other)
    weight, dead = model.constants()["w"], model.nodes[0]
    model.remove_unused()
    assert compared == []
    assert [n.name for n in model.nodes] == ["y"]
    assert [id(n) for n in weight.outputs] == [id(model.nodes[0])]
    assert (len(dead.inputs), len(dead.outputs)) == (0, 0)


# Shapes.


def test_signature_names_inputs_and_outputs() -> None:
    assert Model.from_proto(conv_net()).signature() == (("x", FLOAT, ("batch", 3, 8, 8)), ("y", FLOAT, ("batch", 4)))


def test_what_is_no_sound_graph_is_refused() -> None:
    relu = helper.make_node("Relu", ["x"], ["y"])
    two_outputs = proto_of([relu], {})
    two_outputs.graph.output.append(info("y", [2, 4]))
    two_weights = proto_of([relu], {"c": np.ones(2)})
    two_weights.graph.initializer.append(two_weights.graph.initializer[0])
    cycle = proto_of([helper.make_node("Add", ["x", "t"], ["y"]), helper.make_node("Relu", ["y"], ["t"])], {})
    negative = proto_of([relu], {})
    negative.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -2
    gap = proto_of([helper.make_node("Sum", ["x", "", "x"], ["y"])], {})
    stray = proto_of([helper.make_node("Relu", ["x"], ["y"])], {})
    stray.graph.node[0].attribute.add(name="alpha", type=onnx.AttributeProto.FLOAT, f=1.0, ref_attr_name="slope")
    for proto, expected in [
        (stray, "attribute 'alpha' of node '' .Relu. takes the value of a function's attribute 'slope'"),
        (two_outputs, "two graph outputs are named 'y'"),
        (two_weights, "two initializers are named 'c'"),
        (cycle, "reads what is computed from its own output: the nodes form a cycle"),
        (negative, r"graph input 'x' declares a negative length \(-2\)"),
        (gap, "leaves out one of a list of inputs"),
        (proto_of([helper.make_node("Relu", ["z"], ["y"])], {}), "reads 'z', which no node produces"),
        (proto_of([helper.make_node("Relu", ["x"], ["z"])], {}), "graph output 'y' is produced by no node"),
        (proto_of([helper.make_node("NoSuchOp", ["x"], ["y"])], {}), "NoSuchOp"),
        (proto_of([relu], {}, opset=6), "uses opset 6"),
    ]:
        with pytest.raises(ModelError, match=expected):
            Model.from_proto(proto)


def test_a_documented_attribute_counts_and_keeps_its_documentation() -> None:
    model = conv_net()
    stride = next(a for a in model.graph.node[2].attribute if a.name == "strides")
    stride.doc_string = "two by two"
    loaded = Model.from_proto(model)
    assert loaded.nodes[2].attrs["strides"] == [2, 2]
    back = loaded.to_proto()
    assert [a.doc_string for a in back.graph.node[2].attribute if a.name == "strides"] == ["two by two"]
