"""Local functions: attributes that calls leave to defaults, and opsets other than the model's."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcompress.errors import ModelError
from onnxcompress.graph import Model
from tests.small_models import session


def calling(body: list[onnx.NodeProto], *, function: int, model: int) -> onnx.ModelProto:
    """Return a model in opset `model` whose one node calls a function of `body`, from `a` to `c`, in another opset."""
    imports = [helper.make_opsetid("", function)]
    own = helper.make_function("local", "Own", ["a"], ["c"], body, imports)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4]) for name in "xy")
    call = helper.make_node("Own", ["x"], ["y"], "call", domain="local")
    opsets = [helper.make_opsetid("", model), helper.make_opsetid("local", 1)]
    graph = helper.make_graph([call], "g", [x], [y])
    return helper.make_model(graph, functions=[own], opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize(("function", "model"), [(12, 17), (17, 13)])
def test_a_function_of_another_opset_is_inlined_where_its_operators_mean_the_same(function: int, model: int) -> None:
    body = [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("LeakyRelu", ["b"], ["c"], alpha=0.1)]
    proto = calling(body, function=function, model=model)
    before = proto.SerializeToString(deterministic=True)
    found = Model.from_proto(proto)
    assert [node.op for node in found.nodes] == ["Relu", "LeakyRelu"]
    assert proto.SerializeToString(deterministic=True) == before
    x = {"x": np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)}
    expected = session(before).run(None, x)
    np.testing.assert_array_equal(session(found.to_bytes()).run(None, x), expected)


@pytest.mark.parametrize(
    "body",
    [
        [helper.make_node("ReduceSum", ["a"], ["c"], axes=[1], keepdims=1)],
        [helper.make_node("Softmax", ["a"], ["c"], axis=0)],
    ],
    ids=lambda body: str(body[0].op_type),
)
def test_a_function_whose_operators_mean_something_else_in_the_models_opset_is_refused(
    body: list[onnx.NodeProto],
) -> None:
    with pytest.raises(ModelError, match=rf"'Own' .* opset 12 .* the model opset 17, and {body[0].op_type} differs"):
        Model.from_proto(calling(body, function=12, model=17))


def sloped(name: str, body: list[onnx.NodeProto], default: float | None) -> onnx.FunctionProto:
    """Return a function from `a` to `c` whose body takes its slope, `k`; without a default calls have to give it."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    named, valued = (["k"], []) if default is None else ([], [helper.make_attribute("k", default)])
    return helper.make_function("local", name, ["a"], ["c"], body, imports, named, valued)


def taking(op: str, attribute: str, domain: str = "") -> onnx.NodeProto:
    """Return a node from `a` to `c` that takes the value of its function's `k`."""
    node = helper.make_node(op, ["a"], ["c"], domain=domain)
    kind = onnx.AttributeProto.FLOAT
    node.attribute.append(onnx.AttributeProto(name=attribute, ref_attr_name="k", type=kind))
    return node


def test_attributes_that_a_call_leaves_out_have_their_functions_defaults() -> None:
    """In a call of the graph, in one within a function, and in a sub-graph; a value that is given goes before."""
    leaky = [taking("LeakyRelu", "alpha")]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4]) for name in "xy")
    inner = helper.make_graph(
        [helper.make_node("Leaky", ["n2"], ["z"], domain="local")],
        "then",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, 4])],
    )
    other = helper.make_graph([helper.make_node("Identity", ["n2"], ["z"])], "else", [], list(inner.output))
    nodes = [
        helper.make_node("Leaky", ["x"], ["n0"], domain="local"),
        helper.make_node("Leaky", ["n0"], ["n1"], domain="local", k=0.9),
        helper.make_node("Outer", ["n1"], ["n2"], domain="local"),
        helper.make_node("ReduceMin", ["x"], ["least"], keepdims=0),
        helper.make_node("Less", ["least", "n3"], ["cond"]),
        helper.make_node("If", ["cond"], ["y"], then_branch=inner, else_branch=other),
    ]
    functions = [
        sloped("Outer", [taking("Passing", "k", "local")], 0.7),
        sloped("Leaky", leaky, 0.5),
        sloped("Passing", leaky, None),
    ]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], [helper.make_tensor("n3", TensorProto.FLOAT, [], [1e9])]),
        functions=functions,
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("local", 1)],
        ir_version=9,
    )
    found = Model.from_proto(proto)
    assert [node.attrs["alpha"] for node in found.nodes[:3]] == pytest.approx([0.5, 0.9, 0.7])
    x0 = {"x": -np.ones((2, 4), np.float32)}
    for model in (proto.SerializeToString(), found.to_bytes()):
        (made,) = session(model).run(None, x0)
        np.testing.assert_allclose(made, np.full((2, 4), -0.5 * 0.9 * 0.7 * 0.5), rtol=1e-6)


def test_a_domain_that_only_a_function_imports_is_imported_by_the_model() -> None:
    body = [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Own", ["b"], ["c"], domain="com.example")]
    proto = calling(body, function=17, model=17)
    proto.functions[0].opset_import.append(helper.make_opsetid("com.example", 3))
    found = Model.from_proto(proto)
    assert [(node.domain, node.op) for node in found.nodes] == [(None, "Relu"), ("com.example", "Own")]
    imported = {opset.domain: opset.version for opset in found.to_proto().opset_import}
    assert imported == {"": 17, "local": 1, "com.example": 3}
