"""A model that leaves height and width open: with `--input-shape`, or data, everything works as if it did not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcompress
from onnxcompress.analysis.cost import model_cost
from onnxcompress.errors import RecipeError
from onnxcompress.graph import Model
from onnxcompress.pipeline.stages import check_target_can_be_counted
from onnxcompress.recipe import Recipe
from tests.tiny_models import MACS_OF_IMAGE_AND_TABLE, image_and_table

SHAPE = {"x": (1, 3, 12, 10)}


def network(height: int | str = "h", width: int | str = "w") -> onnx.ModelProto:
    """Return four convolutions with a second output in the middle, as detectors have: `x` (N, 3, H, W)."""
    generator = np.random.default_rng(0)
    nodes, weights, given = [], [], "x"
    for at, (into, out, kernel) in enumerate([(3, 24, 3), (24, 32, 1), (32, 32, 3), (32, 6, 1)]):
        values = generator.standard_normal((out, into, kernel, kernel)) / np.sqrt(into * kernel * kernel)
        weights += [numpy_helper.from_array(values.astype(np.float32), f"w{at}")]
        weights += [numpy_helper.from_array(generator.standard_normal(out).astype(np.float32), f"b{at}")]
        nodes.append(
            helper.make_node("Conv", [given, f"w{at}", f"b{at}"], [f"c{at}"], f"conv{at}", pads=4 * [kernel // 2])
        )
        nodes.append(helper.make_node("Relu" if at < 3 else "Sigmoid", [f"c{at}"], [f"r{at}"], f"relu{at}"))
        given = f"r{at}"
    weights += [numpy_helper.from_array(generator.standard_normal((4, 32, 1, 1)).astype(np.float32), "side")]
    nodes.insert(4, helper.make_node("Conv", ["r1", "side"], ["early"], "side"))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, height, width])]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", channels, height, width])
        for name, channels in (("early", 4), ("r3", 6))
    ]
    graph = helper.make_graph(nodes, "detector", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    generator = np.random.default_rng(1)
    coarse = generator.standard_normal((48, 3, 3, 5))
    np.savez(tmp_path / "data.npz", x=np.kron(coarse, np.ones((1, 1, 4, 2))).astype(np.float32))
    return tmp_path / "data.npz"


@pytest.mark.parametrize(
    "options",
    [
        {"target": {"macs": 0.6}},
        {"target": {"macs": 0.5}, "prune": "auto"},
        {"target": {"params": 0.5}},
        {"prune": 0.25, "importance": "response", "recover": "refit"},
        {"tucker": "energy=0.8", "svd": "energy=0.9"},
        {"quantize": "int8"},
    ],
)
def test_open_sizes_are_those_of_the_input_shape(options: dict[str, Any], data: Path) -> None:
    given = {"calib": data, "data": data, "latency": False, "round_to": 1, **options}
    fixed = onnxcompress.compress(network(12, 10), **given).report
    report = onnxcompress.compress(network(), input_shape=SHAPE, **given).report
    assert report.passed
    assert report.output.macs == fixed.output.macs
    assert report.output.params == fixed.output.params
    assert report.accuracy is not None
    for kind, share in options.get("target", {}).items():
        assert getattr(report.output, kind) <= share * getattr(report.input, kind)
    for stage, same in zip(report.stages, fixed.stages, strict=True):
        assert stage.decisions == same.decisions


def test_open_sizes_are_those_of_the_data(data: Path, tmp_path: Path) -> None:
    """Without `--input-shape` the first sample tells: what is counted, timed and searched is what will run."""
    given = {"data": data, "round_to": 1, "repeat": 2, "warmup": 0}
    search = {"calib": data, "tucker": "auto", "max_error": 30.0, "latency": False}
    reports = []
    for shape in ({}, {"input_shape": SHAPE}):
        for options in ({"target": {"macs": 0.6}, "calib": data}, search):
            result = onnxcompress.compress(network(), **{**given, **options, **shape})
            reports.append(result.report)
            assert result.report.recipe["input_shape"] == {"x": list(SHAPE["x"])}
        compared = onnxcompress.compare(network(), result.model, **{**given, **shape})
        reports.append(compared)
        assert compared.latency
        assert compared.input.macs
    assert [each.output.macs for each in reports[:3]] == [each.output.macs for each in reports[3:]]
    assert all(each.input.macs == reports[0].input.macs for each in reports)
    onnx.save(network(), tmp_path / "open.onnx")
    sweep = onnxcompress.sweep(
        tmp_path / "open.onnx", out=tmp_path / "sweep", tucker_range="ratio=0.5", method=["tucker"], **given
    )
    assert sweep.input.macs == reports[0].input.macs
    (point,) = [each for each in sweep.points if each.method == "tucker"]
    assert point.compression["macs"] > 1.0
    assert point.latency_ms is not None


def test_a_shape_that_is_given_wins(data: Path) -> None:
    """The data's samples are 12 x 10 pixels."""
    report = onnxcompress.compress(
        network(), input_shape={"x": (1, 3, 24, 10)}, target={"macs": 0.6}, calib=data, latency=False, round_to=1
    ).report
    fixed = onnxcompress.compress(network(12, 10), tucker="ratio=0.5", latency=False).report
    assert report.input.macs == 2 * fixed.input.macs


def test_without_data_open_sizes_are_not_known() -> None:
    report = onnxcompress.compress(network(), tucker="ratio=0.5", latency=False).report
    assert report.input.macs is None
    assert report.recipe["input_shape"] == {}


def test_sizes_are_those_of_the_inputs_that_the_data_name(data: Path) -> None:
    other = network()
    other.graph.input[0].name = other.graph.node[0].input[0] = "z"
    report = onnxcompress.compare(network(), other, data=data, latency=False)
    assert report.accuracy is not None
    assert report.accuracy.relative_error == 0.0
    assert report.input.macs
    assert report.output.macs is None
    assert report.recipe["input_shape"] == {"x": list(SHAPE["x"])}


def test_an_input_beside_the_image_has_the_batch_of_the_data(tmp_path: Path) -> None:
    """Its first axis goes by a symbol of its own, so that only the data say that it is a sample's."""
    generator = np.random.default_rng(1)
    arrays = {"x": generator.standard_normal((32, 6, 8, 8)), "t": generator.standard_normal((32, 3))}
    np.savez(tmp_path / "data.npz", **{name: array.astype(np.float32) for name, array in arrays.items()})
    given = {"target": {"macs": 0.7}, "round_to": 1, "latency": False, "calib": tmp_path / "data.npz"}
    for shape in ({}, {"x": (4, 6, 8, 8)}):
        report = onnxcompress.compress(image_and_table("n", "m"), input_shape=shape, **given).report
        assert report.input.macs == MACS_OF_IMAGE_AND_TABLE
        assert report.output.macs <= 0.7 * MACS_OF_IMAGE_AND_TABLE


@pytest.mark.parametrize("options", [{"target": {"macs": 0.7}}, {"prune": "auto", "max_error": 30.0}])
def test_a_target_that_cannot_be_counted_names_the_node_and_the_input(options: dict[str, Any]) -> None:
    model = Model.from_proto(image_and_table("n", "m"))
    with pytest.raises(RecipeError, match=r"the sizes at 'dense' \(MatMul\) are not known.*give --input-shape t:"):
        check_target_can_be_counted(model, model_cost(model), Recipe(**options))
    given = model.at({"t": (1, 3)})
    check_target_can_be_counted(given, model_cost(given), Recipe(**options))


def test_macs_that_are_not_known_are_told_with_what_would_tell_them() -> None:
    proto = image_and_table("n", "m")
    options: dict[str, Any] = {"prune": 0.3, "latency": False}
    report = onnxcompress.compress(proto, **options).report
    assert report.input.macs is None
    told = [line for line in report.warnings if "MACs are not known" in line]
    assert told == [
        "The model's MACs are not known: the sizes at 'dense' (MatMul) are not known before the run; give "
        "--input-shape t:..., or data"
    ]
    known = onnxcompress.compress(proto, input_shape={"t": (1, 3)}, **options).report
    assert known.input.macs == MACS_OF_IMAGE_AND_TABLE
    assert not any("not known" in line for line in known.warnings)
