"""A model that leaves height and width open: with `--input-shape` everything works as if it did not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcompress
from onnxcompress.errors import RecipeError

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


@pytest.mark.parametrize("kind", ["macs", "params", "size"])
def test_sizes_that_are_not_known_are_asked_for_before_anything_is_measured(kind: str, data: Path) -> None:
    told: list[str] = []
    given = {"target": {kind: 0.5}, "calib": data, "latency": False, "progress": lambda what, *_: told.append(what)}
    with pytest.raises(RecipeError, match="target: input 'x' leaves sizes open: give --input-shape x:1x3xNxN"):
        onnxcompress.compress(network(), **given)
    assert told == ["loading the model"]


def test_a_search_asks_for_sizes_too(data: Path) -> None:
    given = {"tucker": "auto", "max_error": 5.0, "calib": data, "data": data, "latency": False}
    with pytest.raises(RecipeError, match="a search counts MACs: input 'x' leaves sizes open: give --input-shape"):
        onnxcompress.compress(network(), **given)
