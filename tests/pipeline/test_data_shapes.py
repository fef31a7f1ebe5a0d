"""A detector that filters its boxes itself: as many rows as were found, which another model finds others of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcompress
from onnxcompress.graph import Model
from onnxcompress.passes.quantization import sparing
from onnxcompress.passes.quantization.sparing import Judge
from onnxcompress.passes.recovery.outputs import judged_tensors
from tests.tiny_models import detector_net, filtered_net, samples

CALIB = [{"x": samples(60, seed=5)}]
DATA = [{"x": samples(40, seed=2)}]


@pytest.fixture(scope="module")
def net() -> onnx.ModelProto:
    return filtered_net()


def decided(result: Any, name: str) -> list[Any]:
    return [plan.decisions for plan in result.plan.plans if plan.pass_name == name]


def test_what_was_filtered_is_judged_by_what_it_was_chosen_from(net: onnx.ModelProto) -> None:
    assert set(judged_tensors(Model.from_proto(net))) == {"scaled", "rated"}


@pytest.mark.parametrize(
    ("options", "name"),
    [({"target": {"macs": 0.7}}, "allocate"), ({"prune": 0.1, "importance": "response"}, "prune")],
)
def test_as_much_is_taken_as_of_the_network_without_the_filter(
    net: onnx.ModelProto, options: dict[str, Any], name: str
) -> None:
    own, unfiltered = (
        onnxcompress.compress(each, calib=CALIB, latency=False, **options) for each in (net, detector_net(joined=False))
    )
    assert decided(own, name) == decided(unfiltered, name) != []


def test_eight_bits_are_judged_by_it(net: onnx.ModelProto) -> None:
    plain = detector_net(joined=False)
    result = onnxcompress.compress(net, quantize="int8", calib=CALIB, latency=False)
    assert any(node.op == "QuantizeLinear" for node in result.model.nodes)
    judges = [Judge(Model.from_proto(each), lambda: iter(CALIB)) for each in (net, plain)]
    errors = []
    for each, judge in zip((net, plain), judges, strict=True):
        other = onnx.ModelProto.FromString(each.SerializeToString())
        weight = next(tensor for tensor in other.graph.initializer if tensor.name == "w_scores")
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.1), weight.name))
        errors.append(judge.error(other.SerializeToString()))
    assert errors[0] == pytest.approx(errors[1], rel=1e-5)
    assert 0.01 < errors[0] < 1.0
    assert 0.0 < judges[0].error(result.model.to_bytes()) < sparing.MOST_ERROR


@pytest.mark.parametrize("options", [{"tucker": "auto"}, {"prune": 0.1, "recover": "refit"}])
def test_the_error_is_that_of_what_it_was_chosen_from(net: onnx.ModelProto, options: dict[str, Any]) -> None:
    own, plain = (
        onnxcompress.compress(each, calib=CALIB, data=DATA, latency=False, max_error=60.0, **options)
        for each in (net, detector_net(joined=False))
    )
    accuracy, other = own.report.accuracy, plain.report.accuracy
    assert accuracy.made_from == ("rated", "scaled")
    assert accuracy.not_compared == ("kept", "rates")
    assert accuracy.output is None
    assert accuracy.relative_error == pytest.approx(other.relative_error, rel=1e-4)
    assert own.report.gates[0].value == pytest.approx(100.0 * accuracy.relative_error)
    assert any("what they are made from is compared: 'rated', 'scaled'" in line for line in own.report.warnings)
    compared = onnxcompress.compare(net, own.model, data=DATA, latency=False)
    assert compared.accuracy.relative_error == pytest.approx(accuracy.relative_error, rel=1e-6)


def test_a_model_with_its_weights_beside_it_is_judged_so_too(net: onnx.ModelProto, tmp_path: Path) -> None:
    whole, beside = tmp_path / "whole.onnx", tmp_path / "beside.onnx"
    onnx.save(net, whole)
    onnx.save(filtered_net(), beside, save_as_external_data=True, location="beside.data", size_threshold=200)
    assert (tmp_path / "beside.data").is_file()
    own, other = (onnxcompress.compare(path, net, data=DATA, latency=False, max_error=1.0) for path in (beside, whole))
    assert own.accuracy == other.accuracy
    assert own.accuracy.made_from == ("rated", "scaled")
    assert own.passed
    options = {"calib": CALIB, "data": DATA, "latency": False, "max_error": 60.0}
    found = onnxcompress.compress(beside, tucker="auto", external_data=True, **options)
    assert found.report.accuracy.made_from == ("rated", "scaled")
    assert found.passed


@pytest.mark.parametrize("outputs", [("kept",), ("kept", "rates")])
def test_where_nothing_can_be_compared_the_report_says_so_and_the_gate_fails(outputs: tuple[str, ...]) -> None:
    """The second model calls what it filters by other names, and finds other boxes."""
    net = filtered_net()
    del net.graph.output[len(outputs) :]
    other = onnx.ModelProto.FromString(net.SerializeToString())
    for node in other.graph.node:
        for names in (node.input, node.output):
            names[:] = [{"scaled": "a", "rated": "b"}.get(name, name) for name in names]
    least = next(tensor for tensor in other.graph.initializer if tensor.name == "least")
    least.CopyFrom(numpy_helper.from_array(np.array([0.3], np.float32), "least"))
    report = onnxcompress.compare(net, other, data=DATA, latency=False, max_error=5.0)
    assert (report.accuracy.relative_error, report.accuracy.made_from) == (None, ())
    assert report.accuracy.not_compared == outputs
    assert [(gate.value, gate.passed) for gate in report.gates] == [(None, False)]
    assert any("Not compared: 'kept'" in line for line in report.warnings)


def test_a_relu_that_eight_bits_stand_for_is_part_of_what_is_compared() -> None:
    """Features of the places where something was found: the quantizer leaves their Relu to the rounding."""
    model = detector_net(joined=False)
    graph = model.graph
    least = numpy_helper.from_array(np.array(0.12, np.float32), "least")
    weight = np.random.default_rng(0).standard_normal((16, 3)).astype(np.float32)
    graph.initializer.extend([least, numpy_helper.from_array(weight, "w_found")])
    graph.node.extend(
        [
            helper.make_node("ReduceMax", ["rated"], ["best"], "best", axes=[1], keepdims=0),
            helper.make_node("Greater", ["best", "least"], ["is_found"], "is_found"),
            helper.make_node("NonZero", ["is_found"], ["where"], "where"),
            helper.make_node("Transpose", ["where"], ["places"], "places", perm=[1, 0]),
            helper.make_node("Transpose", ["r2"], ["features"], "features", perm=[0, 2, 3, 1]),
            helper.make_node("GatherND", ["features", "places"], ["chosen"], "chosen"),
            helper.make_node("Gemm", ["chosen", "w_found"], ["kinds"], "kinds"),
        ]
    )
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("kinds", TensorProto.FLOAT, ["found", 3]))
    assert set(judged_tensors(Model.from_proto(model))) == {"best", "r2"}
    result = onnxcompress.compress(model, quantize="int8", calib=CALIB, data=DATA, latency=False)
    assert result.report.accuracy.made_from == ("best", "r2")
    assert result.report.accuracy.relative_error < 0.05
    assert not any(node.name == "relu2" for node in result.model.nodes)
