"""Running a model in stretches of its nodes: the same values as at once, whatever a cut would have to hand over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcompress.graph import Model
from onnxcompress.passes import execution
from onnxcompress.passes.execution import run_model
from tests.small_models import build, node

GENERATOR = np.random.default_rng(5)
FEEDS = {"x": GENERATOR.standard_normal((2, 6, 5, 5)).astype(np.float32)}


def weight(*shape: int) -> np.ndarray:
    return GENERATOR.standard_normal(shape).astype(np.float32)


def residual(**further: Any) -> Model:
    """Convolutions of about 30 kB each, what the first one makes read again at the end."""
    constants = {name: weight(*shape) for name, shape in (("a.w", (28, 6, 7, 7)), ("b.w", (28, 28, 3, 3)))}
    constants |= {"c.w": weight(28, 28, 3, 3), "bias": weight(28), **further}
    nodes = [
        node("Conv", ["x", "a.w"], "a", pads=[3] * 4),
        node("Conv", ["a", "b.w"], "b", pads=[1] * 4),
        node("Conv", ["b", "c.w", "bias"], "c", pads=[1] * 4),
        node("Add", ["a", "c"], "y"),
    ]
    return build(nodes, constants)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Cut after every 20 kB; return what the nodes of each session make, in order."""
    monkeypatch.setattr(execution, "_WEIGHT_BYTES_AT_A_TIME", 20_000)
    ran: list[list[str]] = []
    opened = execution._session

    def recorded(proto: onnx.ModelProto, tensors: Any, **how: Any) -> Any:
        ran.append([each.output[0] for each in proto.graph.node])
        return opened(proto, tensors, **how)

    monkeypatch.setattr(execution, "_session", recorded)
    return ran


def at_once(model: Model, tensors: list[str], feeds: Any = FEEDS) -> dict[str, np.ndarray]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution, "_WEIGHT_BYTES_AT_A_TIME", 2**40)
        return run_model(model, feeds, tensors)


def assert_same(seen: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(seen) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(seen[name], values, rtol=1e-5, atol=1e-5 * float(np.abs(values).max()))


def test_stretches_hand_over_what_is_read_later(sessions: list[list[str]]) -> None:
    model = residual()
    expected = at_once(model, ["b", "y"])
    sessions.clear()
    assert_same(run_model(model, FEEDS, ["b", "y"]), expected)
    assert sessions == [["a"], ["b"], ["c", "y"]]


def test_tensors_may_be_inputs_and_constants(sessions: list[list[str]]) -> None:
    seen = run_model(residual(), FEEDS, ["x", "bias", "y"])
    np.testing.assert_array_equal(seen["x"], FEEDS["x"])
    assert seen["bias"].shape == (28,)


def test_what_nothing_asked_for_needs_does_not_run(sessions: list[list[str]]) -> None:
    run_model(residual(), FEEDS, ["b"])
    assert sessions == [["a"], ["b"]]


def test_mapped_weights_give_the_same(tmp_path: Path, sessions: list[list[str]]) -> None:
    model = residual()
    model.save(tmp_path / "m.onnx", external=True)
    assert_same(run_model(Model.load(tmp_path / "m.onnx"), FEEDS, ["y"]), at_once(model, ["y"]))
    assert len(sessions) == 4  # of which one at once


@pytest.mark.parametrize("name", ["bias", "b.w"], ids=["small", "large"])
def test_made_weights_stand_in_for_those_of_the_model(name: str, sessions: list[list[str]]) -> None:
    made = weight(*((28,) if name == "bias" else (28, 28, 3, 3)))
    model = residual()
    count = 0

    def maker() -> np.ndarray:
        nonlocal count
        count += 1
        return made

    before = at_once(model, ["y"])["y"]
    seen = run_model(model, FEEDS, ["y"], {name: maker})
    assert count == 1
    model.constants()[name].values = made
    assert_same(seen, at_once(model, ["y"]))
    assert not np.allclose(seen["y"], before)


def test_sub_graphs_read_from_earlier_stretches(sessions: list[list[str]]) -> None:
    """Both branches of an If read tensors and a weight that belong to the graph around it."""
    info = helper.make_tensor_value_info("branch", TensorProto.FLOAT, None)
    kept = helper.make_graph([node("Identity", ["a"], "branch")], "kept", [], [info])
    turned = helper.make_graph([node("Conv", ["a", "b.w"], "branch", pads=[1] * 4)], "turned", [], [info])
    constants = {"a.w": weight(28, 6, 7, 7), "b.w": weight(28, 28, 3, 3), "c.w": weight(28, 28, 3, 3)}
    nodes = [
        node("Conv", ["x", "a.w"], "a", pads=[3] * 4),
        node("Conv", ["a", "c.w"], "c", pads=[1] * 4),
        node("ReduceSum", ["c"], "sum", keepdims=0),
        node("Greater", ["sum", "zero"], "positive"),
        node("If", ["positive"], "chosen", then_branch=kept, else_branch=turned),
        node("Add", ["chosen", "c"], "y"),
    ]
    model = build(nodes, constants | {"zero": np.float32(0)})
    for feeds in (FEEDS, {"x": -FEEDS["x"]}):
        expected = at_once(model, ["y"], feeds)
        sessions.clear()
        assert_same(run_model(model, feeds, ["y"]), expected)
        assert sessions == [["a"], ["c", "sum", "positive"], ["chosen", "y"]]


def test_no_cut_where_a_sequence_would_be_handed_over(sessions: list[list[str]]) -> None:
    constants = {"a.w": weight(28, 6, 7, 7), "b.w": weight(28, 14, 3, 3), "c.w": weight(28, 28, 3, 3)}
    nodes = [
        node("Conv", ["x", "a.w"], "a", pads=[3] * 4),
        node("SplitToSequence", ["a", "halves"], "parts", axis=1),
        node("SequenceAt", ["parts", "first"], "half"),
        node("Conv", ["half", "b.w"], "b", pads=[1] * 4),
        node("Conv", ["b", "c.w"], "c", pads=[1] * 4),
        node("SequenceAt", ["parts", "first"], "again"),
        node("Concat", ["c", "again"], "y", axis=1),
    ]
    model = build(nodes, constants | {"halves": np.int64(14), "first": np.int64(0)})
    expected = at_once(model, ["y"])
    sessions.clear()
    assert_same(run_model(model, FEEDS, ["y"]), expected)
    assert sessions == [["a", "parts", "half", "b", "c", "again", "y"]]


def test_bfloat16_is_computed_in_float32_in_every_stretch(sessions: list[list[str]]) -> None:
    constants = {"a.w": weight(56, 6, 7, 7), "b.w": weight(56, 56, 3, 3)}
    nodes = [
        node("Cast", ["x"], "half", to=TensorProto.BFLOAT16),
        node("Conv", ["half", "a.w"], "a", pads=[3] * 4),
        node("Conv", ["a", "b.w"], "b", pads=[1] * 4),
        node("Conv", ["b", "b.w"], "y", pads=[1] * 4),
    ]
    model = build(nodes, {name: values.astype(ml_dtypes.bfloat16) for name, values in constants.items()}, opset=22)
    expected = at_once(model, ["y"])
    sessions.clear()
    assert_same(run_model(model, FEEDS, ["y"]), expected)
    assert (expected["y"].dtype, len(sessions)) == (np.float32, 2)


def test_weights_of_less_than_a_byte_are_read_from_the_model() -> None:
    """There are more than are written into every model, and onnxruntime takes none as an input."""
    stored = GENERATOR.integers(-8, 8, (56, 6, 7, 7)).astype(ml_dtypes.int4)
    scales = GENERATOR.uniform(0.01, 0.1, 56).astype(np.float32)
    nodes = [node("DequantizeLinear", ["q", "s"], "w", axis=0), node("Conv", ["x", "w"], "y", pads=[3] * 4)]
    packed = build(nodes, {"q": stored, "s": scales}, opset=21)
    plain = build(nodes[1:], {"w": stored.astype(np.float32) * scales[:, None, None, None]}, opset=21)
    found, expected = (run_model(model, FEEDS, ["y"])["y"] for model in (packed, plain))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
