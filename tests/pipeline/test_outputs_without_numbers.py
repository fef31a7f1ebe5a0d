"""Classic machine learning behind a network: words, sequences and maps are outputs, and beside them nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcompress
from onnxcompress.graph import Model
from onnxcompress.passes.verification import compared_tensors


def weight(*shape: int, seed: int) -> onnx.TensorProto:
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 0.3
    return numpy_helper.from_array(values, f"w{seed}")


def network(tail: list[onnx.NodeProto], outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
    """Return a network of two convolutions and `tail`, which reads its features 'f' (n, 16)."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "w2"], ["c"], "second"),
        helper.make_node("GlobalAveragePool", ["c"], ["e"], "pool"),
        helper.make_node("Flatten", ["e"], ["f"], "flat"),
        *tail,
    ]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])]
    graph = helper.make_graph(nodes, "g", given, outputs, [weight(16, 3, 3, 3, seed=1), weight(16, 16, 3, 3, seed=2)])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def classifier(classes: dict[str, Any]) -> onnx.NodeProto:
    coefficients = np.random.default_rng(3).standard_normal(3 * 16).tolist()
    return helper.make_node(
        "LinearClassifier",
        ["f"],
        ["label", "scores"],
        "classifier",
        domain="ai.onnx.ml",
        coefficients=coefficients,
        intercepts=[0.0] * 3,
        post_transform="SOFTMAX",
        multi_class=1,
        **classes,
    )


def with_map() -> onnx.ModelProto:
    number, one = TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    kind = helper.make_sequence_type_proto(helper.make_map_type_proto(number, one))
    zipped = helper.make_node("ZipMap", ["scores"], ["z"], "zip", domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2])
    outputs = [helper.make_tensor_value_info("label", number, ["n"]), helper.make_value_info("z", kind)]
    return network([classifier({"classlabels_ints": [0, 1, 2]}), zipped], outputs)


def with_words() -> onnx.ModelProto:
    names = [f"class {number}" for number in range(16)]
    tail = [
        helper.make_node("ArgMax", ["f"], ["most"], "most", axis=1, keepdims=0),
        helper.make_node(
            "LabelEncoder", ["most"], ["y"], "names", domain="ai.onnx.ml", keys_int64s=range(16), values_strings=names
        ),
    ]
    return network(tail, [helper.make_tensor_value_info("y", TensorProto.STRING, ["n"])])


def with_words_and_scores() -> onnx.ModelProto:
    label = helper.make_tensor_value_info("label", TensorProto.STRING, ["n"])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3])
    return network([classifier({"classlabels_strings": ["a", "b", "c"]})], [label, scores])


@pytest.mark.parametrize("make", [with_map, with_words, with_words_and_scores])
def test_what_outputs_without_numbers_are_made_from_is_compared(make: Any, tmp_path: Path) -> None:
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(make(), path)
    data = tmp_path / "x.npz"
    np.savez(data, x=np.random.default_rng(0).standard_normal((24, 3, 8, 8)).astype(np.float32))
    result = onnxcompress.compress(path, prune=0.5, data=str(data), latency=False)
    result.model.save(out)
    assert result.report.compression.params > 1.1
    assert result.report.self_checks
    assert result.report.accuracy is not None
    result = onnxcompress.compress(path, quantize="int8", calib=str(data), latency=False)
    assert result.report.self_checks
    given, written = onnx.load(path).graph, onnx.load(out).graph
    assert list(written.output) == list(given.output)
    assert [node for node in written.node if node.domain] == [node for node in given.node if node.domain]


def test_a_check_tells_words_of_other_features_apart() -> None:
    proto = with_words()
    model = Model.from_proto(proto)
    assert compared_tensors(model, model) == {"f": "f"}
