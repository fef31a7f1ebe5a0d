"""A detector's head that is shared by its levels: whatever is done to it, it stays one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcompress
from onnxcompress.analysis.cost import model_cost
from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext
from onnxcompress.passes.recovery.families import find_families
from onnxcompress.passes.recovery.refit_layers import find_refit_layers
from onnxcompress.passes.recovery.refit_waves import Waves

LEVELS = ("fine", "coarse")


def detector(head_biases: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """Return two levels of features, the second behind the first, and a head of three convolutions read twice."""
    generator = np.random.default_rng(0)
    weights: list[TensorProto] = []

    def conv(name: str, given: str, weight: str, into: int, out: int, kernel: int = 3) -> onnx.NodeProto:
        bias = (head_biases or {}).get(name, f"{weight}.bias")
        present = {tensor.name for tensor in weights}
        values = {weight: generator.standard_normal((out, into, kernel, kernel)) / np.sqrt(into * kernel * kernel)}
        values[bias] = generator.standard_normal(out)
        weights.extend(numpy_helper.from_array(v.astype(np.float32), k) for k, v in values.items() if k not in present)
        return helper.make_node("Conv", [given, weight, bias], [name], name, pads=4 * [kernel // 2])

    nodes = [
        conv("first", "x", "first.weight", 3, 24),
        helper.make_node("Relu", ["first"], ["fine"], "fine"),
        helper.make_node("MaxPool", ["fine"], ["pooled"], "pooled", kernel_shape=[2, 2], strides=[2, 2]),
        conv("second", "pooled", "second.weight", 24, 24),
        helper.make_node("Relu", ["second"], ["coarse"], "coarse"),
    ]
    for level in LEVELS:
        nodes += [
            conv(f"{level}.a", level, "head.a", 24, 32),
            helper.make_node("Relu", [f"{level}.a"], [f"{level}.b"], f"{level}.relu"),
            conv(f"{level}.c", f"{level}.b", "head.c", 32, 24, 1),
            helper.make_node("Relu", [f"{level}.c"], [f"{level}.d"], f"{level}.relu2"),
            conv(f"{level}.e", f"{level}.d", "head.e", 24, 6),
        ]
    outputs = [
        helper.make_tensor_value_info(f"{level}.e", TensorProto.FLOAT, ["n", 6, size, size])
        for level, size in zip(LEVELS, (12, 6), strict=True)
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 12, 12])]
    graph = helper.make_graph(nodes, "detector", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    coarse = np.random.default_rng(1).standard_normal((64, 3, 4, 4))
    np.savez(tmp_path / "data.npz", x=np.kron(coarse, np.ones((1, 1, 3, 3))).astype(np.float32))
    return tmp_path / "data.npz"


def weight_of(model: Model, name: str) -> Any:
    return next(node for node in model.nodes if node.name == name).inputs[1]


def assert_shared(model: Model) -> None:
    """Every convolution that one level's head has, the other's has too, with the same constants."""
    heads = [[n for n in model.nodes if n.op == "Conv" and n.name.startswith(level)] for level in LEVELS]
    assert len(heads[0]) == len(heads[1]) >= 3
    for one, other in zip(*heads, strict=True):
        assert [t.name for t in one.inputs[1:]] == [t.name for t in other.inputs[1:]]
    with_constants = [tensor for node in model.nodes for tensor in node.inputs if model.is_constant(tensor)]
    assert model_cost(model).params == sum(t.values.size for t in {id(t): t for t in with_constants}.values())


@pytest.mark.parametrize(
    "options",
    [
        {"prune": 0.25},
        {"prune": 0.25, "recover": "refit"},
        {"prune": 0.25, "importance": "response", "recover": "refit"},
        {"tucker": "energy=0.8", "svd": "energy=0.8", "recover": "refit"},
        {"target": {"params": 0.6}},
        {"target": {"macs": 0.6}},
        {"target": {"macs": 0.6}, "prune": "auto"},
    ],
)
def test_a_shared_head_stays_one(options: dict[str, Any], data: Path) -> None:
    result = onnxcompress.compress(detector(), calib=data, data=data, latency=False, round_to=1, **options)
    assert_shared(result.model)
    report = result.report
    assert report.passed
    assert report.output.params < 0.75 * report.input.params
    for kind, share in options.get("target", {}).items():
        assert getattr(report.output, kind) <= share * getattr(report.input, kind)
    if "recover" in options:
        without = {**options, "recover": "none", "calib": data, "data": data, "latency": False, "round_to": 1}
        plain = onnxcompress.compress(detector(), **without).report
        assert report.accuracy.relative_error < 0.5 * plain.accuracy.relative_error


def test_layers_of_one_weight_are_a_family_unless_one_stays() -> None:
    model = Model.from_proto(detector())

    def families(context: PassContext, proto: onnx.ModelProto | None = None) -> tuple[list[list[str]], dict[str, str]]:
        own = model if proto is None else Model.from_proto(proto)
        found, skipped = find_families(own, find_refit_layers(own, own, context)[0], with_bias=True)
        return [[layer.node for layer in family] for family in found], {each.node: each.reason for each in skipped}

    heads = [[f"{level}.{at}" for level in LEVELS] for at in "ace"]
    assert families(PassContext()) == ([["first"], ["second"], *heads], {})
    left, reasons = families(PassContext(exclude=("coarse.c",)))
    assert left == [["first"], ["second"], heads[0], heads[2]]
    assert reasons == {"fine.c": "shares its weight with 'coarse.c', which keeps it"}
    other = detector({"coarse.e": "another"})
    assert set(families(PassContext(), other)[1]) == set(heads[2])
    layers = find_refit_layers(*2 * [Model.from_proto(other)], PassContext())[0]
    assert len(find_families(Model.from_proto(detector()), layers, with_bias=False)[1]) == 0


def test_a_weight_that_is_used_again_behind_itself_is_left() -> None:
    values = numpy_helper.from_array(np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1), "w")
    nodes = [helper.make_node("Conv", [a, "w"], [b], b) for a, b in (("x", "a"), ("a", "b"), ("x", "c"))]
    nodes.append(helper.make_node("Sum", ["b", "c"], ["y"], "y"))
    shape = ["n", 4, 5, 5]
    graph = helper.make_graph(
        nodes,
        "recurrent",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [values],
    )
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    families, skipped = find_families(model, find_refit_layers(model, model, PassContext())[0], with_bias=True)
    assert families == []
    assert {each.node: each.reason for each in skipped} == dict.fromkeys("abc", "its weight is used again behind it")


def test_weights_that_are_used_in_another_order_elsewhere_are_left() -> None:
    values = [numpy_helper.from_array(np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1), name) for name in ("v", "w")]
    order = [("x", "v", "a"), ("a", "w", "b"), ("x", "w", "c"), ("c", "v", "d")]
    nodes = [helper.make_node("Conv", [given, weight], [made], made) for given, weight, made in order]
    nodes.append(helper.make_node("Sum", ["b", "d"], ["y"], "y"))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4, 5, 5]) for name in "xy")
    graph = helper.make_graph(nodes, "crossed", [x], [y], values)
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    families, skipped = find_families(model, find_refit_layers(model, model, PassContext())[0], with_bias=True)
    assert families == []
    assert [each.node for each in skipped] == ["a", "b", "c", "d"]


def test_layers_that_are_fitted_together_have_one_depth() -> None:
    model = Model.from_proto(detector())
    chains = {node.name: (node.name,) for node in model.nodes if node.op == "Conv"}
    alone = Waves(model, chains)
    assert (alone.depth["fine.a"], alone.depth["coarse.a"], alone.depth["coarse.e"]) == (1, 2, 4)
    waves = Waves(model, chains, [("first",), ("fine.a", "coarse.a"), ("fine.e", "coarse.e")])
    assert [waves.depth[f"{level}.a"] for level in LEVELS] == [2, 2]
    assert [waves.depth[f"{level}.e"] for level in LEVELS] == [4, 4]
    assert waves.count == 5
    # What the earlier level reads stays until its turn.
    assert {"fine", "coarse"} <= set(waves.live(2))
    run: set[str] = set()
    for depth in range(waves.count + 1):
        before = waves.nodes_before(depth)
        assert run.isdisjoint(before)
        run |= before
    assert run == {node.name for node in model.nodes}
