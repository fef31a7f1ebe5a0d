"""Clean-up makes no file larger: what is stored once, or in half precision, stays so."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.errors import RecipeError
from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext
from onnxcompress.passes.cleanup import Cleanup, Lowering
from tests.passes.cleanup_models import assert_same_bits, clean, ops, reasons, weight
from tests.small_models import build, node


def test_a_weight_that_is_turned_for_each_of_its_layers_is_stored_once() -> None:
    """Equal rows, which may be so by chance, stay apart, and so do other weights of the same shape."""
    nodes = [
        *(node("Transpose", [name], f"{name}{of}", perm=[1, 0]) for name in ("w", "v", "ones") for of in (1, 2)),
        node("MatMul", ["x", "w1"], "a"),
        node("MatMul", ["a", "v1"], "b"),
        node("MatMul", ["b", "w2"], "c"),
        node("MatMul", ["c", "v2"], "d"),
        node("MatMul", ["d", "ones1"], "e"),
        node("Tanh", ["e"], "f"),
        node("MatMul", ["f", "ones2"], "y"),
    ]
    constants = {"w": weight(32, 32), "v": weight(32, 32, seed=3), "ones": np.ones((32, 32), np.float32)}
    model = build(nodes, constants, shape=("n", 32))
    cleaned, _ = clean(model)
    assert ops(cleaned) == ["MatMul"] * 5 + ["Tanh", "MatMul"]
    first, second, third, fourth, *equal = (each.inputs[1] for each in cleaned.nodes if each.op == "MatMul")
    assert first is third
    assert second is fourth
    assert first is not second
    assert equal[0] is not equal[1]
    assert_same_bits(model, cleaned)


def functions(body: list[onnx.NodeProto]) -> onnx.ModelProto:
    own = helper.make_function("local", "Own", ["a"], ["c"], body, [helper.make_opsetid("", 17)])
    calls = [helper.make_node("Own", [f"t{n}"], [f"t{n + 1}"], f"call{n}", domain="local") for n in range(2)]
    given, made = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 32]) for name in ("t0", "t2"))
    graph = helper.make_graph(calls, "g", [given], [made])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, functions=[own], opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize("turned", [False, True])
def test_a_weight_in_the_body_of_a_function_is_stored_once_for_all_calls(turned: bool) -> None:
    values = numpy_helper.from_array(weight(32, 32))
    body = [helper.make_node("Constant", [], ["w"], value=values)]
    body += [helper.make_node("Transpose", ["w"], ["used"], perm=[1, 0])] if turned else []
    body += [
        helper.make_node("MatMul", ["a", "used" if turned else "w"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
    ]
    proto = functions(body)
    model = Model.from_proto(proto)
    cleaned = Cleanup().apply(model, Cleanup().plan(model, PassContext()), PassContext()).model
    assert ops(cleaned) == ["MatMul", "Relu"] * 2
    assert cleaned.nodes[0].inputs[1] is cleaned.nodes[2].inputs[1]
    assert cleaned.size_bytes <= len(proto.SerializeToString())


@pytest.mark.parametrize("kind", [np.dtype(np.float16), np.dtype(np.int8)], ids=str)
def test_weights_that_are_stored_narrow_stay_so_however_many_of_them_are_small(kind: Any) -> None:
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, Any] = {}
    for number in range(8):
        constants[f"w{number}"] = np.rint(weight(6, 6, 3, 3, seed=number) * 20).astype(kind)
        constants[f"b{number}"] = weight(6, seed=number).astype(np.float16)
        nodes += [node("Cast", [f"{of}{number}"], f"{of}f{number}", to=TensorProto.FLOAT) for of in "wb"]
        source = f"y{number - 1}" if number else "x"
        nodes.append(node("Conv", [source, f"wf{number}", f"bf{number}"], f"y{number}", pads=[1, 1, 1, 1]))
    model = build(nodes, constants)
    cleaned, plan = clean(model)
    assert ops(cleaned) == ["Cast", "Conv"] * 8  # a bias of six is not worth a node
    assert sum("larger than may be stored" in reason for reason in reasons(plan).values()) == 8
    assert cleaned.weight_bytes < 1.2 * model.weight_bytes
    assert_same_bits(model, cleaned)


def tied(table: Any, head: Any = None) -> Model:
    """Return a network whose last layer is its embedding turned around: as it is, or as two weights."""
    nodes = [
        node("ReduceMean", ["x"], "m", axes=[1], keepdims=0),
        node("Cast", ["m"], "ids", to=TensorProto.INT64),
        node("Gather", ["table", "ids"], "e"),
        node("MatMul", ["e", "w"], "h"),
        node("Relu", ["h"], "r"),
        *([node("Transpose", ["table"], "head", perm=[1, 0])] if head is None else []),
        node("MatMul", ["r", "head"], "y", name="scores"),
    ]
    constants = {"table": table, "w": weight(32, 32), **({} if head is None else {"head": head})}
    return build(nodes, constants, shape=("n", 8))


def lowered(model: Model) -> tuple[Model, list[str]]:
    cleaned, _ = clean(model)
    result, plan = clean(cleaned, kind=Lowering)
    assert_same_bits(model, result)
    return result, [str(decision["step"]) for decision in plan.decisions]


def test_an_embedding_that_is_the_last_layer_is_stored_once() -> None:
    model = tied(weight(600, 32))
    cleaned, _ = clean(model)
    assert cleaned.size_bytes > 1.8 * model.size_bytes  # two layers, for the passes in between
    result, steps = lowered(model)
    assert steps == ["share"]
    assert result.size_bytes < 1.01 * model.size_bytes
    assert ops(result)[-2:] == ["Transpose", "MatMul"]


def test_equal_weights_are_stored_once_and_what_only_looks_alike_is_not() -> None:
    values = weight(64, 64)
    others = [values.copy(), values.copy(), values.copy(), -values]
    others[1][3, 4] += 1.0
    others[3][0, 0], others[3][-1, -1] = values[0, 0], values[-1, -1]
    names = ["w", *(f"w{number}" for number in range(4))]
    nodes = []
    for number, name in enumerate(names):
        nodes += [node("MatMul", [f"r{number - 1}" if number else "x", name], f"y{number}")]
        nodes += [node("Tanh", [f"y{number}"], f"r{number}")]
    model = build(nodes, dict(zip(names, [values, *others], strict=True)), shape=("n", 64))
    result, steps = lowered(model)
    assert steps == ["share", "share"]
    read = [each.inputs[1].name for each in result.nodes if each.op == "MatMul"]
    assert read == ["w", "w", "w1", "w", "w3"]


def test_tables_that_differ_or_are_small_stay_two() -> None:
    table = weight(600, 32)
    other = table.T.copy()
    other[5, 7] += 1.0
    assert lowered(tied(table, other))[1] == []
    assert lowered(tied(weight(60, 32)))[1] == []


def test_a_plan_of_other_weights_is_refused() -> None:
    table = weight(600, 32)
    model, other = (tied(table, head) for head in (table.T.copy(), -table.T))
    plan = Lowering().plan(model, PassContext())
    with pytest.raises(RecipeError, match=r"^plan: clean-up stores 'head' once, which this model does not twice"):
        Lowering().apply(other, plan, PassContext())
