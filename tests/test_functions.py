"""Local functions that are written in another opset than the model: taken where that means the same, else refused."""

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
