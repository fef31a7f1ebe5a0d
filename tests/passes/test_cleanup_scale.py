"""Constant factors and summands of channels, folded into their neighbours: the same outputs to rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcompress.passes.base import PassContext, Plan
from tests.passes.cleanup_models import assert_close, clean, ops, reasons
from tests.small_models import build, node

TOLERANCE = 1e-5
OPERATORS = ["Mul", "Div", "Add", "Sub"]


def weight(*shape: int, seed: int = 2) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def factors(*shape: int, seed: int = 3) -> Any:
    """Return numbers of both signs, none near zero."""
    random = np.random.default_rng(seed)
    return (random.uniform(0.5, 2.0, shape) * random.choice([-1.0, 1.0], shape)).astype(np.float32)


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("shape", [(), (1,), (8, 1, 1), (1, 8, 1, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_folds_into_the_conv_before(op: str, shape: tuple[int, ...], bias: bool) -> None:
    constants = {"w": weight(8, 6, 3, 3), "b": weight(8), "k": factors(*shape)}
    nodes = [node("Conv", ["x", "w", *(["b"] if bias else [])], "a", pads=[1, 1, 1, 1]), node(op, ["a", "k"], "y")]
    model = build(nodes, constants, shape=("n", 6, 7, 5))
    cleaned, plan = clean(model)
    assert ops(cleaned) == ["Conv"]
    assert plan.decisions == (
        {
            "step": "scale",
            "round": 1,
            "node": f"{op}_1",
            "op": op,
            "into": "Conv_0",
            "side": "before",
            "weight": "w",
            "input": "a",
            "output": "y",
            "constant": "k",
        },
    )
    assert_close(model, cleaned, TOLERANCE)


@pytest.mark.parametrize("op", ["Mul", "Add", "Sub"])
def test_the_constant_may_stand_first(op: str) -> None:
    constants = {"w": weight(8, 6, 3, 3), "k": factors(8, 1, 1)}
    model = build([node("Conv", ["x", "w"], "a"), node(op, ["k", "a"], "y")], constants, shape=("n", 6, 7, 5))
    cleaned, _ = clean(model)
    assert ops(cleaned) == ["Conv"]
    assert_close(model, cleaned, TOLERANCE)


@pytest.mark.parametrize("group", [1, 2])
def test_it_folds_into_a_transposed_conv_and_a_gemm(group: int) -> None:
    nodes = [
        node("ConvTranspose", ["x", "w"], "a", group=group),
        node("Mul", ["a", "k"], "b"),
        node("GlobalAveragePool", ["b"], "p"),
        node("Flatten", ["p"], "f"),
        node("Gemm", ["f", "g"], "z", transB=1),
        node("Add", ["z", "t"], "y"),
    ]
    constants = {"w": weight(6, 8 // group, 3, 3), "k": factors(8, 1, 1), "g": weight(5, 8), "t": factors(5)}
    model = build(nodes, constants, shape=("n", 6, 7, 5))
    cleaned, _ = clean(model)
    assert ops(cleaned) == ["ConvTranspose", "GlobalAveragePool", "Flatten", "Gemm"]
    assert_close(model, cleaned, TOLERANCE)


@pytest.mark.parametrize(
    ("op", "pads", "stays"), [("Mul", 1, False), ("Add", 0, False), ("Add", 1, True), ("Sub", 1, True)]
)
def test_it_folds_forward_where_the_padding_allows(op: str, pads: int, stays: bool) -> None:
    constants = {"w": weight(8, 6, 3, 3), "k": factors(6, 1, 1)}
    nodes = [node("Relu", ["x"], "r"), node(op, ["r", "k"], "a"), node("Conv", ["a", "w"], "y", pads=[pads] * 4)]
    model = build(nodes, constants, shape=("n", 6, 7, 5))
    cleaned, _ = clean(model)
    assert ops(cleaned) == (["Relu", op, "Conv"] if stays else ["Relu", "Conv"])
    assert_close(model, cleaned, TOLERANCE)


def test_a_learned_affine_behind_a_conv_goes_over_several_rounds() -> None:
    nodes = [
        node("Conv", ["x", "w"], "a", group=2),
        node("Mul", ["s", "a"], "b"),
        node("Add", ["b", "t"], "c"),
        node("Sub", ["c", "u"], "y"),
    ]
    constants = {"w": weight(8, 3, 3, 3), "s": factors(1), "t": factors(8, 1, 1), "u": factors()}
    model = build(nodes, constants, shape=("n", 6, 7, 5))
    cleaned, plan = clean(model)
    assert ops(cleaned) == ["Conv"]
    assert [decision["round"] for decision in plan.decisions] == [1, 2, 3]
    assert_close(model, cleaned, TOLERANCE)


def conv_and(op: str, inputs: list[str], **extra: Any) -> list[onnx.NodeProto]:
    return [node("Conv", ["x", "w"], "a"), node(op, inputs, "y", **extra)]


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        (conv_and("Div", ["k", "a"]), {"k": np.float32(2)}),
        (conv_and("Div", ["a", "k"]), {"k": np.zeros((8, 1, 1), np.float32)}),
        (conv_and("Mul", ["a", "k"]), {"k": np.float32("inf")}),
        (conv_and("Mul", ["a", "k"]), {"k": factors(5)}),  # along the width
        (conv_and("Add", ["a", "k"]), {"k": factors(1, 8, 7, 5)}),
        (conv_and("Mul", ["a", "k"]), {"k": factors(1, 1, 1, 1, 1)}),
        (conv_and("Mul", ["a", "a"]), {}),
        ([node("Relu", ["x"], "r"), node("Mul", ["r", "k"], "y")], {"k": np.float32(2)}),
        ([*conv_and("Mul", ["a", "k"]), node("Add", ["a", "y"], "z")], {"k": np.float32(2)}),
    ],
)
def test_what_is_no_scale_of_channels_stays(nodes: list[onnx.NodeProto], constants: dict[str, Any]) -> None:
    model = build(nodes, {"w": weight(8, 6, 1, 1), **constants}, shape=(2, 6, 7, 5))
    cleaned, plan = clean(model)
    assert ops(cleaned) == ops(model)
    assert plan == Plan("cleanup")


def test_one_channel_is_not_made_many() -> None:
    nodes = [node("Conv", ["x", "w"], "a"), node("Mul", ["a", "k"], "y")]
    model = build(nodes, {"w": weight(1, 6, 1, 1), "k": factors(8, 1, 1)}, shape=(2, 6, 7, 5))
    assert ops(clean(model)[0]) == ["Conv", "Mul"]


def test_levels_that_share_a_head_keep_their_own_factors() -> None:
    nodes = [
        node("MaxPool", ["x"], "half", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["x", "w"], "a"),
        node("Conv", ["half", "w"], "b"),
        node("Mul", ["a", "k"], "y"),
        node("Mul", ["b", "l"], "z"),
    ]
    constants = {"w": weight(8, 6, 3, 3), "k": np.float32(2), "l": np.float32(3)}
    model = build(nodes, constants, shape=("n", 6, 8, 8), outputs=["y", "z"])
    cleaned, plan = clean(model)
    assert ops(cleaned) == ops(model)
    assert plan == Plan("cleanup")


@pytest.mark.parametrize("op", ["Erf", "Tanh"])
def test_the_half_of_a_gelu_stays_with_it(op: str) -> None:
    """onnxruntime knows x (1 + erf(x / sqrt 2)) / 2 as one operator, which is faster than what is left without."""
    nodes = [
        node("Div", ["x", "root"], "a"),
        node(op, ["a"], "b"),
        node("Add", ["b", "one"], "c"),
        node("Mul", ["x", "c"], "d"),
        node("Mul", ["d", "half"], "e"),
        node("Conv", ["e", "w"], "y"),
    ]
    constants = {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5), "w": weight(8, 6, 1, 1)}
    model = build(nodes, constants, shape=(2, 6, 7, 5))
    assert ops(clean(model)[0]) == ops(model)


def test_the_scale_and_the_shift_of_a_layer_norm_stay_with_it() -> None:
    nodes = [
        node("ReduceMean", ["x"], "m", axes=[-1]),
        node("Sub", ["x", "m"], "d"),
        node("Pow", ["d", "two"], "p"),
        node("ReduceMean", ["p"], "v", axes=[-1]),
        node("Add", ["v", "e"], "w"),
        node("Sqrt", ["w"], "r"),
        node("Div", ["d", "r"], "n"),
        node("Mul", ["n", "scale"], "s"),
        node("Add", ["s", "shift"], "t"),
        node("Gemm", ["t", "g"], "y"),
    ]
    constants = {
        "two": np.float32(2),
        "e": np.float32(1e-5),
        "scale": factors(6),
        "shift": factors(6),
        "g": weight(6, 4),
    }
    model = build(nodes, constants, shape=(2, 6))
    assert ops(clean(model)[0]) == ops(model)


def test_exclude_keeps_it_when_either_node_is_named() -> None:
    model = build(conv_and("Mul", ["a", "k"]), {"w": weight(8, 6, 1, 1), "k": factors(8, 1, 1)})
    for expression in ("^Conv_0$", "^Mul_1$"):
        cleaned, plan = clean(model, context=PassContext(exclude=(expression,)))
        assert ops(cleaned) == ["Conv", "Mul"]
        assert "is excluded by --exclude" in reasons(plan)["Mul_1"]


@given(
    layers=st.lists(
        st.tuples(st.sampled_from([*OPERATORS, "Conv", "Depthwise", "LeakyRelu"]), st.booleans(), st.booleans()),
        min_size=2,
        max_size=8,
    )
)
def test_random_networks_compute_the_same(layers: list[tuple[str, bool, bool]]) -> None:
    nodes, constants, tensor = [], {}, "x"
    for place, (kind, flag, other) in enumerate(layers):
        target = f"t{place}"
        if kind in OPERATORS:
            constants[f"k{place}"] = factors(*((6, 1, 1) if flag else ()), seed=place)
            inputs = [tensor, f"k{place}"]
            nodes.append(node(kind, inputs if other or kind == "Div" else inputs[::-1], target))
        elif kind == "LeakyRelu":
            nodes.append(node("LeakyRelu", [tensor], target, alpha=0.5))
        else:
            group, size = (6 if kind == "Depthwise" else 1), (3 if flag else 1)
            constants[f"w{place}"] = weight(6, 6 // group, size, size, seed=place) / size
            nodes.append(node("Conv", [tensor, f"w{place}"], target, group=group, pads=[int(flag and other)] * 4))
        tensor = target
    model = build(nodes, constants, shape=("n", 6, 19, 19))
    cleaned, plan = clean(model)
    folded = sum(decision["step"] == "scale" for decision in plan.decisions)
    assert sum(op in OPERATORS for op in ops(cleaned)) == sum(op in OPERATORS for op in ops(model)) - folded
    assert_close(model, cleaned, 5e-5, n=2)
