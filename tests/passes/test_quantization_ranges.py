"""Ranges that go by what becomes of a tensor's values, and tensors that eight bits are too few for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from onnxcompress.graph import Model
from onnxcompress.linalg.histogram import Histogram
from onnxcompress.passes.base import PassContext
from onnxcompress.passes.quantization import Int8Config, Int8Quantization, int8, sparing
from onnxcompress.passes.quantization.curves import curves
from tests.small_models import build, node, run_all

SHAPE = ("n", 6, 8, 8)
Numbers = npt.NDArray[np.float64]


def data(samples: int = 16) -> npt.NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((samples, 6, 8, 8)).astype(np.float32)


def batches() -> Iterator[dict[str, Any]]:
    yield {"x": data()}


CONTEXT = PassContext(calibration=batches)


@pytest.fixture(autouse=True)
def _signed_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same plans on every machine."""
    monkeypatch.setattr(int8, "saturates_signed_weights", lambda provider: False)


def hard_swish(x: Numbers) -> Numbers:
    return x * np.clip(x / 6 + 0.5, 0, 1)


def swish(x: Numbers) -> Numbers:
    return x / (1 + np.exp(-x))


FORMS = {
    "operator": ([node("HardSwish", ["a"], "b")], hard_swish),
    "decomposed": (
        [
            node("Add", ["a", "three"], "a3"),
            node("Clip", ["a3", "zero", "six"], "cut"),
            node("Mul", ["a", "cut"], "product"),
            node("Div", ["product", "six"], "b"),
        ],
        hard_swish,
    ),
    "swish": ([node("Sigmoid", ["a"], "s"), node("Mul", ["s", "a"], "b")], swish),
}


def activated(nodes: list[onnx.NodeProto], *more: onnx.NodeProto, outputs: tuple[str, ...] = ("y",)) -> Model:
    """Return a convolution that reaches far below zero, nodes that make `b` of its output `a`, and another one."""
    generator = np.random.default_rng(0)
    constants = {
        "w": generator.standard_normal((8, 6, 1, 1)).astype(np.float32),
        "bias": np.full(8, -9, np.float32),
        "v": generator.standard_normal((4, 8, 1, 1)).astype(np.float32),
        "three": np.float32(3),
        "zero": np.float32(0),
        "six": np.full((1, 1, 1), 6, np.float32),
        "each": np.arange(1, 9, dtype=np.float32).reshape(8, 1, 1),
    }
    own = [node("Conv", ["x", "w", "bias"], "a", name="first"), *nodes, node("Conv", ["b", "v"], "y", name="second")]
    read = {name for each in [*own, *more] for name in each.input}
    used = {name: values for name, values in constants.items() if name in read}
    if "six" in used:  # bounds of Clip are scalars, factors may have axes of length 1
        used["six"] = used["six"].reshape(())
    return build([*own, *more], used, shape=SHAPE, outputs=outputs)


@pytest.mark.parametrize("form", FORMS)
def test_the_function_behind_a_tensor_is_found_in_any_form(form: str) -> None:
    nodes, expected = FORMS[form]
    points = np.linspace(-12, 12, 200)
    (curve,) = curves(activated(nodes), ["a"]).values()
    np.testing.assert_allclose(curve(points), expected(points), atol=1e-5)


@pytest.mark.parametrize("name", ["x", "points", "curve"])
def test_the_tensor_may_have_any_name(name: str) -> None:
    nodes = [node("Relu", ["given"], name, name="first"), node("Neg", [name], "b"), node("Conv", ["b", "v"], "y")]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("given", onnx.TensorProto.FLOAT, SHAPE)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ("n", 2, 8, 8))],
        [onnx.numpy_helper.from_array(np.ones((2, 6, 1, 1), np.float32), "v")],
    )
    model = Model.from_proto(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]))
    (curve,) = curves(model, [name]).values()
    np.testing.assert_array_equal(curve(np.arange(3.0)), [0.0, -1.0, -2.0])


def test_what_something_reads_as_it_is_has_no_function() -> None:
    swish_nodes = FORMS["swish"][0]
    again = node("Conv", ["a", "v"], "z", name="again")
    assert not curves(activated(swish_nodes, again, outputs=("y", "z")), ["a"])
    assert not curves(activated(swish_nodes, outputs=("y", "a")), ["a"])
    # A tensor in between that others read: two functions.
    between = node("Conv", ["s", "v"], "z", name="between")
    assert not curves(activated(swish_nodes, between, outputs=("y", "z")), ["a"])
    # A function of each channel's own.
    assert not curves(activated([node("Mul", ["a", "each"], "b")]), ["a"])
    assert not curves(activated(swish_nodes), ["x", "y"])


def test_no_bits_are_spent_where_an_activation_makes_nothing_of_them() -> None:
    values = np.random.default_rng(2).normal(-8, 6, 100_000)
    histogram = Histogram()
    histogram.add(values.astype(np.float32))
    plain, found = histogram.best_range(), histogram.best_range(curve=hard_swish)
    assert plain.low < -20
    assert -4 < found.low < -2.5

    def error(low: float, high: float) -> float:
        step = (high - low) / 255
        stored = np.round((np.clip(values, low, high) - low) / step) * step + low
        return float(np.mean((hard_swish(stored) - hard_swish(values)) ** 2))

    own = error(found.low, found.high)
    assert own < 0.5 * error(plain.low, plain.high)
    assert own == pytest.approx(found.error * np.mean(hard_swish(values) ** 2), rel=0.2)


def test_a_function_with_a_pole_does_not_count() -> None:
    histogram = Histogram()
    histogram.add(np.random.default_rng(2).standard_normal(10_000).astype(np.float32))

    def inverse(x: Numbers) -> Numbers:
        with np.errstate(divide="ignore"):
            return 1 / x

    assert histogram.best_range(curve=inverse) == histogram.best_range()


def relative_error(model: Model, config: Int8Config | None = None, part: slice = slice(None)) -> float:
    each = Int8Quantization(config)
    result = each.apply(model, each.plan(model, CONTEXT), CONTEXT)
    wanted, seen = (run_all(m, {"x": data()})["y"][:, part] for m in (model, result.model))
    return float(np.linalg.norm(seen - wanted) / np.linalg.norm(wanted))


def test_outputs_are_closer_with_ranges_behind_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    model = activated(FORMS["operator"][0])
    behind = relative_error(model)
    monkeypatch.setattr(int8, "curves", lambda model, tensors: {})
    assert behind < 0.7 * relative_error(model)


def detector() -> Model:
    """Return boxes of hundreds (6 channels) and scores (2) that only look at the same map, joined and handed on."""
    generator = np.random.default_rng(0)
    constants = {
        name: generator.standard_normal(shape).astype(np.float32)
        for name, shape in {"w": (32, 6, 3, 3), "boxes": (6, 32, 1, 1), "scores": (2, 32, 1, 1)}.items()
    }
    constants["boxes"] *= 30
    constants["scores"] /= 8
    constants["bias"] = np.full(2, -2, np.float32)
    constants["eye"] = np.eye(8, dtype=np.float32)[:, :, None, None]
    nodes = [
        node("Conv", ["x", "w"], "c", name="backbone"),
        node("Relu", ["c"], "r", name="relu"),
        node("Conv", ["r", "boxes"], "large", name="regression"),
        node("Conv", ["r", "scores", "bias"], "logits", name="classification"),
        node("Sigmoid", ["logits"], "small", name="sigmoid"),
        node("Concat", ["large", "small"], "both", name="joined", axis=1),
        node("Conv", ["both", "eye"], "y", name="last"),
    ]
    return build(nodes, constants, shape=SHAPE)


@pytest.mark.parametrize("symmetric", [False, True])
def test_scores_that_are_joined_with_boxes_survive(monkeypatch: pytest.MonkeyPatch, symmetric: bool) -> None:
    model, config, scores = detector(), Int8Config(symmetric=symmetric), slice(6, None)
    plan = Int8Quantization(config).plan(model, CONTEXT)
    reasons = {each.node: each.reason for each in plan.skipped if "eight bits for" in each.reason}
    assert reasons["joined"].startswith("eight bits for 'both' alone would change the outputs by ")
    assert {"backbone", "regression"} <= {str(decision["node"]) for decision in plan.decisions}
    assert relative_error(model, config, scores) < 0.15
    monkeypatch.setattr(sparing, "MOST_ERROR", 10.0)
    assert relative_error(model, config, scores) > 0.5


def chain(length: int, wide: int) -> Model:
    """Return 1x1 convolutions `0`, `1`, ...; of what number `wide` makes one channel, which nothing uses, is large."""
    generator = np.random.default_rng(3)
    constants: dict[str, Any] = {}
    nodes = []
    for at in range(length):
        weight = np.linalg.qr(generator.standard_normal((6, 6)))[0]
        if at == wide:
            weight[0] *= 25
        if at == wide + 1:
            weight[:, 0] = 0
        constants[f"w{at}"] = weight.astype(np.float32)[:, :, None, None]
        nodes.append(node("Conv", [f"t{at - 1}" if at else "x", f"w{at}"], f"t{at}", name=str(at)))
    return build(nodes, constants, shape=SHAPE)


def test_the_one_tensor_among_many_is_found_and_only_what_touches_it_is_spared() -> None:
    plan = Int8Quantization().plan(chain(40, 17), CONTEXT)
    spared = {each.node: each.reason for each in plan.skipped if "eight bits for" in each.reason}
    assert set(spared) == {"17", "18"}
    assert all("'t17'" in reason for reason in spared.values())
    assert len(plan.decisions) == 38


def test_nothing_is_spared_where_all_is_well_or_too_much_would_have_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    model = chain(40, 17)
    assert not [s for s in Int8Quantization().plan(chain(12, -5), CONTEXT).skipped if "eight bits for" in s.reason]
    monkeypatch.setattr(sparing, "_MOST_SPARED", 0.01)
    assert len(Int8Quantization().plan(model, CONTEXT).decisions) == 40
