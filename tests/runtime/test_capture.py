"""Activations of inner tensors."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxcompress.errors import DataError, ModelError
from onnxcompress.graph import Model
from onnxcompress.runtime import capture
from onnxcompress.runtime.capture import Capture, capture_activations, check_finite
from onnxcompress.runtime.session import Session
from tests.runtime.networks import classifier, proto_of

X = np.random.default_rng(0).standard_normal((6, 3, 8, 8), dtype=np.float32)


def test_inner_tensors_inputs_and_outputs() -> None:
    model = Model.from_proto(classifier())
    before = model.to_bytes()
    batches = [{"x": X[:4]}, {"x": X[4:]}]
    captured = list(capture_activations(model, ["y", "c", "r", "x", "c"], batches))
    assert model.to_bytes() == before
    assert [list(batch) for batch in captured] == [["x", "c", "r", "y"]] * 2
    assert [batch["c"].shape for batch in captured] == [(4, 5, 8, 8), (2, 5, 8, 8)]
    joined = {name: np.concatenate([batch[name] for batch in captured]) for name in captured[0]}
    np.testing.assert_array_equal(joined["x"], X)
    np.testing.assert_array_equal(joined["r"], np.maximum(joined["c"], 0))
    expected = Session(before).run({"x": X})["y"]
    np.testing.assert_allclose(joined["y"], expected, rtol=1e-5, atol=1e-5)


def test_a_large_model_is_loaded_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = Model.from_proto(classifier())
    (expected,) = capture_activations(model, ["r", "y"], [{"x": X}])
    monkeypatch.setattr(capture, "IN_MEMORY_BYTES", 100)
    monkeypatch.setattr(Model, "to_proto", None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (seen,) = capture_activations(model, ["r", "y"], [{"x": X}])
    for name, values in expected.items():
        np.testing.assert_allclose(seen[name], values, rtol=1e-5, atol=1e-6)
    assert list(tmp_path.iterdir()) == []


def test_only_an_input_needs_no_run() -> None:
    np.testing.assert_array_equal(Capture(Model.from_proto(classifier()), ["x"]).run({"x": X})["x"], X)


def test_samples_that_fill_a_batch_are_dropped() -> None:
    captured = Capture(Model.from_proto(classifier(batch=6)), ["c", "x"]).run({"x": X}, size=4)
    assert [array.shape[0] for array in captured.values()] == [4, 4]


def test_a_tensor_that_the_model_lacks() -> None:
    with pytest.raises(ModelError, match="tensor 'nowhere'"):
        Capture(Model.from_proto(classifier()), ["c", "nowhere"])
    with pytest.raises(ModelError, match="tensor 'w'"):
        Capture(Model.from_proto(classifier()), ["w"])


def test_no_batches() -> None:
    with pytest.raises(DataError, match="no calibration samples"):
        list(capture_activations(Model.from_proto(classifier()), ["c"], []))


def test_infinity_is_named_where_it_begins() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["positive"]),
        helper.make_node("Log", ["positive"], ["logarithm"]),
        helper.make_node("Sub", ["logarithm", "logarithm"], ["y"]),
    ]
    model = proto_of(nodes, {"x": (TensorProto.FLOAT, ("n", 2))}, {"y": (TensorProto.FLOAT, ("n", 2))})
    batches = [{"x": np.ones((2, 2), np.float32)}, {"x": np.array([[0, 1]], np.float32)}]
    with pytest.raises(DataError, match="tensor 'logarithm', batch 1: 0 NaN and 1 infinite values of 2"):
        list(capture_activations(Model.from_proto(model), ["y", "logarithm", "positive"], batches))


@pytest.mark.parametrize("values", [[np.nan, 1], [np.inf, -np.inf], [-np.inf, 0]])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_values_that_are_not_finite(values: list[float], dtype: type) -> None:
    with pytest.raises(DataError, match="here: "):
        check_finite(np.array(values, dtype), "here")


def test_large_values_are_finite() -> None:
    for dtype in (np.float16, np.float32, np.float64):
        check_finite(np.full(100, np.finfo(dtype).max, dtype), "here")
    check_finite(np.array([2**62]), "here")
