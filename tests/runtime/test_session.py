"""Sessions: what they describe, what they refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcompress.errors import DataError, ModelError
from onnxcompress.runtime.session import Session, SessionSettings
from onnxcompress.runtime.tensors import TensorInfo
from tests.runtime.networks import classifier, identity, proto_of


def test_inputs_outputs_and_classes() -> None:
    session = Session(classifier(classes=7).SerializeToString())
    assert session.inputs == (TensorInfo("x", np.dtype(np.float32), ("n", 3, 8, 8)),)
    assert session.outputs[0].name == "y"
    assert session.classes == 7
    assert session.fixed_batch is None
    assert Session(classifier(batch=2).SerializeToString()).fixed_batch == 2
    assert Session(identity(("n", 3, 8, 8)).SerializeToString()).classes is None
    assert Session(identity(("n", 9, 1, 1)).SerializeToString()).classes == 9


@pytest.mark.parametrize(("sizes", "classes"), [((2, 10), 10), ((10, 2), 10), ((1, 3), 3)])
def test_of_several_outputs_the_most_classes_count(sizes: tuple[int, int], classes: int) -> None:
    nodes = [helper.make_node("MatMul", ["x", f"w{n}"], [f"y{n}"]) for n in range(2)]
    weights = {f"w{n}": np.ones((5, size), np.float32) for n, size in enumerate(sizes)}
    outputs = {f"y{n}": (TensorProto.FLOAT, ("n", size)) for n, size in enumerate(sizes)}
    proto = proto_of(nodes, {"x": (TensorProto.FLOAT, ("n", 5))}, outputs, weights)
    assert Session(proto.SerializeToString(), settings=SessionSettings(optimize=False)).classes == classes


def test_a_model_from_a_path_with_its_side_file(tmp_path: Path) -> None:
    whole = classifier().SerializeToString()
    onnx.save_model(classifier(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    x = np.ones((2, 3, 8, 8), np.float32)
    for path in (tmp_path / "m.onnx", str(tmp_path / "m.onnx")):
        seen = Session(path).run({"x": x})["y"]
        np.testing.assert_array_equal(seen, Session(whole).run({"x": x})["y"])


@pytest.mark.parametrize("spinning", ["always", "within_run", "never"])
def test_settings_change_no_bit(spinning: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8), dtype=np.float32)
    model = classifier().SerializeToString()
    settings = SessionSettings(threads=2, spinning=spinning)  # type: ignore[arg-type]
    np.testing.assert_array_equal(
        Session(model, settings=settings).run({"x": x})["y"], Session(model).run({"x": x})["y"]
    )


def test_a_model_that_does_not_load_is_named_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    path.write_text("hello")
    with pytest.raises(ModelError, match=r"text\.onnx: onnxruntime cannot load it") as failure:
        Session(path)
    assert "\n" not in str(failure.value)
    with pytest.raises(ModelError, match="the model: onnxruntime cannot load it"):
        Session(b"")


def test_inputs_that_do_not_fit() -> None:
    session = Session(classifier().SerializeToString())
    with pytest.raises(DataError, match="does not take this input"):
        session.run({"x": np.zeros((1, 3, 9, 9), np.float32)})
    with pytest.raises(DataError, match="does not take this input"):
        session.run({})


def test_a_model_that_fails_while_running() -> None:
    nodes = [helper.make_node("Reshape", ["x", "s"], ["y"], "reshape")]
    shapes = {"x": (TensorProto.FLOAT, ("n",)), "s": (TensorProto.INT64, (2,))}
    session = Session(proto_of(nodes, shapes, {"y": (TensorProto.FLOAT, ("a", "b"))}).SerializeToString())
    with pytest.raises(ModelError, match=r"failed while running on CPUExecutionProvider.*reshape"):
        session.run({"x": np.zeros(6, np.float32), "s": np.array([4, 4])})


def test_a_sequence_is_no_tensor() -> None:
    info = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None)
    node = helper.make_node("SequenceLength", ["x"], ["y"])
    graph = helper.make_graph([node], "g", [info], [helper.make_tensor_value_info("y", TensorProto.INT64, [])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    with pytest.raises(ModelError, match="'x' is a seq"):
        Session(model.SerializeToString())
