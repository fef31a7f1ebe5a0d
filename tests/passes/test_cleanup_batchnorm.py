"""BatchNormalization folded into its neighbours: the same outputs to rounding, or left alone with the reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from onnxcompress.passes.base import PassContext
from tests.passes.cleanup_models import assert_close, assert_same_bits, clean, ops, reasons
from tests.small_models import build, node

TOLERANCE = {np.float16: 5e-3, np.float32: 1e-5, np.float64: 1e-13}
TYPES = {np.float16: TensorProto.FLOAT16, np.float32: TensorProto.FLOAT, np.float64: TensorProto.DOUBLE}
OPSETS = [9, 13, 14, 18, 23]


def statistics(channels: int, dtype: Any = np.float32, name: str = "", seed: int = 1) -> dict[str, Any]:
    """Return scale (of both signs), bias, mean and variance."""
    rng = np.random.default_rng(seed)
    return {
        f"{name}s": rng.uniform(-2, 2, channels).astype(dtype),
        f"{name}b": rng.standard_normal(channels).astype(dtype),
        f"{name}m": rng.standard_normal(channels).astype(dtype),
        f"{name}v": rng.uniform(0.1, 3, channels).astype(dtype),
    }


def norm(source: str, target: str, name: str = "", **attributes: Any) -> onnx.NodeProto:
    return node("BatchNormalization", [source, *(f"{name}{k}" for k in "sbmv")], target, **attributes)


def weight(*shape: int, dtype: Any = np.float32, seed: int = 2) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("group", [1, 2, 6])
def test_folds_into_the_conv_before(opset: int, bias: bool, group: int) -> None:
    constants = {"w": weight(12, 6 // group, 3, 3), "c": weight(12), **statistics(12)}
    conv = node("Conv", ["x", "w", *(["c"] if bias else [])], "a", group=group, pads=[1, 1, 1, 1], strides=[2, 2])
    model = build([conv, norm("a", "y", epsilon=1e-3)], constants, opset=opset)
    cleaned, plan = clean(model)
    assert ops(cleaned) == ["Conv"]
    assert plan.decisions == (
        {
            "step": "batchnorm",
            "round": 1,
            "node": "BatchNormalization_1",
            "op": "BatchNormalization",
            "into": "Conv_0",
            "side": "before",
            "weight": "w",
            "input": "a",
            "output": "y",
            "scale": "s",
            "bias": "b",
            "mean": "m",
            "variance": "v",
        },
    )
    assert_close(model, cleaned, TOLERANCE[np.float32], h=7, w=8)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_folds_in_any_float_type_and_rank(dtype: Any, rank: int) -> None:
    constants = {"w": weight(5, 4, *(3,) * rank, dtype=dtype), **statistics(5, dtype)}
    nodes = [node("Conv", ["x", "w"], "a"), norm("a", "y", epsilon=1e-3)]
    if dtype is not np.float32:
        nodes.insert(0, node("Cast", ["x"], "t", to=TYPES[dtype]))
        nodes[1].input[0] = "t"
    model = build(nodes, constants, shape=("n", 4, *(6,) * rank))
    cleaned, _ = clean(model)
    assert ops(cleaned)[-1] == "Conv"
    assert {t.values.dtype for t in cleaned.constants().values()} == {np.dtype(dtype)}
    assert_close(model, cleaned, TOLERANCE[dtype])


@pytest.mark.parametrize("group", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_folds_into_the_transposed_conv_before(group: int, bias: bool) -> None:
    constants = {"w": weight(6, 4, 2, 3), "c": weight(4 * group), **statistics(4 * group)}
    conv = node(
        "ConvTranspose", ["x", "w", *(["c"] if bias else [])], "a", group=group, strides=[2, 1], pads=[0, 1, 1, 0]
    )
    model = build([conv, norm("a", "y")], constants)
    cleaned, _ = clean(model)
    assert ops(cleaned) == ["ConvTranspose"]
    assert_close(model, cleaned, TOLERANCE[np.float32])


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [None, (), (1,), (5,), (1, 5), (3, 1), (3, 5)])
def test_folds_into_the_gemm_before(transposed: int, bias: tuple[int, ...] | None) -> None:
    constants = {"w": weight(*((5, 8) if transposed else (8, 5))), **statistics(5)}
    if bias is not None:
        constants["c"] = weight(*bias)
    inputs = ["x", "w", *(["c"] if bias is not None else [])]
    gemm = node("Gemm", inputs, "a", transB=transposed, alpha=0.5, beta=2.0)
    model = build([gemm, norm("a", "y")], constants, shape=(3, 8))
    cleaned, _ = clean(model)
    assert ops(cleaned) == ["Gemm"]
    assert_close(model, cleaned, TOLERANCE[np.float32])


@pytest.mark.parametrize("group", [1, 2, 6])
@pytest.mark.parametrize("bias", [True, False])
def test_folds_forward_into_an_unpadded_conv(group: int, bias: bool) -> None:
    constants = {"w": weight(12, 6 // group, 3, 3), "c": weight(12), **statistics(6)}
    conv = node("Conv", ["a", "w", *(["c"] if bias else [])], "y", group=group, dilations=[1, 2])
    model = build([norm("x", "a"), conv], constants)
    cleaned, plan = clean(model)
    assert ops(cleaned) == ["Conv"]
    assert plan.decisions[0]["side"] == "behind"
    assert_close(model, cleaned, TOLERANCE[np.float32], h=8, w=9)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [None, (5,), (3, 5)])
def test_folds_forward_into_a_gemm(transposed: int, bias: tuple[int, ...] | None) -> None:
    constants = {"w": weight(*((5, 8) if transposed else (8, 5))), **statistics(8)}
    if bias is not None:
        constants["c"] = weight(*bias)
    inputs = ["a", "w", *(["c"] if bias is not None else [])]
    model = build(
        [norm("x", "a"), node("Gemm", inputs, "y", transB=transposed, alpha=0.5, beta=2.0)], constants, shape=(3, 8)
    )
    cleaned, _ = clean(model)
    assert ops(cleaned) == ["Gemm"]
    assert_close(model, cleaned, TOLERANCE[np.float32])


@pytest.mark.parametrize(
    ("attributes", "folds"),
    [
        ({"pads": [0, 0, 0, 0]}, True),
        ({"auto_pad": "VALID"}, True),
        ({"pads": [0, 0, 1, 0]}, False),
        ({"auto_pad": "SAME_UPPER"}, False),
    ],
)
def test_padding_keeps_the_batchnorm_before_a_conv_unless_its_shift_is_zero(
    attributes: dict[str, Any], folds: bool
) -> None:
    constants = {"w": weight(4, 6, 3, 3), **statistics(6)}
    model = build([norm("x", "a"), node("Conv", ["a", "w"], "y", **attributes)], constants)
    cleaned, plan = clean(model)
    assert ops(cleaned) == (["Conv"] if folds else ["BatchNormalization", "Conv"])
    if not folds:
        assert "behind: 'Conv_1' pads with zeros" in reasons(plan)["BatchNormalization_0"]
    assert_close(model, cleaned, TOLERANCE[np.float32], h=6, w=6)

    constants |= {"b": np.zeros(6, np.float32), "m": np.zeros(6, np.float32)}
    model = build([norm("x", "a"), node("Conv", ["a", "w"], "y", **attributes)], constants)
    cleaned, _ = clean(model)
    assert ops(cleaned) == ["Conv"]
    assert_close(model, cleaned, TOLERANCE[np.float32], h=6, w=6)


def test_a_kernel_of_one_position_never_reaches_the_padding_of_auto_pad() -> None:
    constants = {"w": weight(4, 6, 1, 1), **statistics(6)}
    conv = node("Conv", ["a", "w"], "y", auto_pad="SAME_LOWER", strides=[2, 2])
    model = build([norm("x", "a"), conv], constants)
    cleaned, _ = clean(model)
    assert ops(cleaned) == ["Conv"]
    assert_close(model, cleaned, TOLERANCE[np.float32], h=5, w=6)


def test_weights_shared_by_several_nodes_are_unshared() -> None:
    nodes = [
        node("Conv", ["x", "w", "c"], "a"),
        norm("a", "p"),
        node("Conv", ["x", "w", "c"], "q"),
        node("Conv", ["x", "w", "c"], "d"),
        norm("d", "r", "other"),
        node("Sum", ["p", "q", "r"], "y"),
    ]
    constants = {"w": weight(6, 6, 1, 1), "c": weight(6), **statistics(6), **statistics(6, name="other", seed=5)}
    model = build(nodes, constants)
    before = {name: tensor.values.copy() for name, tensor in model.constants().items()}
    cleaned, _ = clean(model)
    assert ops(cleaned) == ["Conv", "Conv", "Conv", "Sum"]
    assert len({id(n.inputs[1]) for n in cleaned.nodes[:3]}) == 3
    assert_close(model, cleaned, TOLERANCE[np.float32])
    for name, tensor in model.constants().items():
        assert np.array_equal(tensor.values, before[name])


def test_a_chain_of_batchnorms_and_one_on_each_side_fold_over_several_rounds() -> None:
    nodes = [norm("x", "a", "p"), node("Conv", ["a", "w"], "b"), norm("b", "c", "q"), norm("c", "y", "r")]
    constants = {
        "w": weight(5, 6, 3, 3),
        **statistics(6, name="p"),
        **statistics(5, name="q"),
        **statistics(5, name="r"),
    }
    model = build(nodes, constants)
    cleaned, plan = clean(model)
    assert ops(cleaned) == ["Conv"]
    assert sorted({d["round"] for d in plan.decisions}) == [1, 2, 3]
    assert_close(model, cleaned, TOLERANCE[np.float32], h=6, w=6)


@pytest.mark.parametrize(
    ("nodes", "outputs", "reason"),
    [
        ([node("Relu", ["x"], "a"), norm("a", "y")], ["y"], "before: 'Relu_0' is a Relu, not one of Conv"),
        ([norm("x", "y")], ["y"], "before: 'x' is computed by no node; behind: 'y' is a graph output"),
        ([node("Conv", ["x", "w"], "a"), norm("a", "y")], ["y", "a"], "before: 'a' is a graph output"),
        (
            [node("Conv", ["x", "w"], "a"), norm("a", "n"), node("Add", ["a", "n"], "y")],
            ["y"],
            "before: 'a' has 2 readers; behind: 'Add_2' (Add) is not a Conv or Gemm of 'n'",
        ),
        (
            [
                node("ReduceMean", ["x"], "k", keepdims=0),
                node("Mul", ["w", "k"], "wk"),
                node("Conv", ["x", "wk"], "a"),
                norm("a", "y"),
            ],
            ["y"],
            "before: the weight of 'Conv_2' is computed",
        ),
    ],
)
def test_what_cannot_be_folded_says_why(nodes: list[onnx.NodeProto], outputs: list[str], reason: str) -> None:
    constants = {"w": weight(6, 6, 1, 1), **statistics(6)}
    model = build(nodes, constants, outputs=outputs, shape=(2, 6, 4, 4))
    cleaned, plan = clean(model)
    assert not plan.decisions
    (why,) = (text for name, text in reasons(plan).items() if name.startswith("BatchNormalization"))
    assert why.startswith(f"batchnorm: {reason}")
    assert_same_bits(model, cleaned)


def test_training_mode_computed_statistics_and_bad_variances_stay() -> None:
    conv = node("Conv", ["x", "w"], "a")
    base = {"w": weight(6, 6, 1, 1), **statistics(6)}
    training = node("BatchNormalization", ["a", *"sbmv"], "y", "rm", "rv", training_mode=1)
    negative = {**base, "v": np.array([1, 1, -1, 1, 1, 1], np.float32)}
    computed = [node("ReduceMean", ["x"], "mm", keepdims=0), node("Add", ["mm", "m"], "m2"), conv]
    computed.append(node("BatchNormalization", ["a", "s", "b", "m2", "v"], "y"))
    cases = [
        (build([conv, training], base, outputs=["y"]), "is in training mode"),
        (build([conv, norm("a", "y")], negative), "not positive"),
        (build(computed, base), "its mean 'm2' is computed"),
    ]
    for model, expected in cases:
        cleaned, plan = clean(model)
        assert "BatchNormalization" in ops(cleaned)
        assert any(expected in reason for reason in reasons(plan).values())


def test_weights_that_would_overflow_half_precision_stay() -> None:
    constants = {"w": np.full((2, 6, 1, 1), 3e4, np.float16), **statistics(2, np.float16)}
    constants |= {"v": np.full(2, 1e-3, np.float16), "s": np.ones(2, np.float16)}
    nodes = [node("Cast", ["x"], "t", to=TensorProto.FLOAT16), node("Conv", ["t", "w"], "a"), norm("a", "y")]
    _, plan = clean(build(nodes, constants))
    assert "would overflow float16" in reasons(plan)["BatchNormalization_2"]


def test_bfloat16_weights_fold_into_bfloat16() -> None:
    bfloat16 = onnx.helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
    exact = {"w": weight(4, 6, 1, 1), **statistics(4)}
    constants = {name: values.astype(bfloat16) for name, values in exact.items()}
    nodes = [node("Cast", ["x"], "t", to=TensorProto.BFLOAT16), node("Conv", ["t", "w"], "a"), norm("a", "y")]
    model = build(nodes, constants, opset=22)
    cleaned, _ = clean(model)
    assert ops(cleaned) == ["Cast", "Conv"]
    s, b, m, v, w = (constants[k].astype(np.float64) for k in ("s", "b", "m", "v", "w"))
    factor = s / np.sqrt(v + np.float32(1e-5))
    found = [t.values for t in cleaned.nodes[-1].inputs[1:]]
    assert {f.dtype for f in found} == {bfloat16}
    assert np.allclose(found[0].astype(np.float64), w * factor.reshape(-1, 1, 1, 1), rtol=2**-8, atol=0)
    assert np.allclose(found[1].astype(np.float64), b - factor * m, rtol=2**-8, atol=0)


def test_exclude_keeps_the_batchnorm_when_either_node_is_named() -> None:
    constants = {"w": weight(6, 6, 1, 1), **statistics(6)}
    model = build([node("Conv", ["x", "w"], "a"), norm("a", "y")], constants)
    for expression in ("^Conv_0$", "^BatchNormalization_1$"):
        cleaned, plan = clean(model, context=PassContext(exclude=(expression,)))
        assert ops(cleaned) == ["Conv", "BatchNormalization"]
        assert "is excluded by --exclude" in reasons(plan)["BatchNormalization_1"]


@given(
    layers=st.lists(
        st.tuples(
            st.sampled_from(["Conv", "DepthwiseConv", "ConvTranspose", "Norm", "LeakyRelu", "Skip"]), st.booleans()
        ),
        min_size=2,
        max_size=7,
    )
)
def test_random_networks_compute_the_same(layers: list[tuple[str, bool]]) -> None:
    nodes, constants, tensors = [], {}, ["x"]
    for number, (kind, flag) in enumerate(layers):
        source, target, name = tensors[-1], f"t{number}", f"n{number}"
        pads = [1, 1, 1, 1] if flag else [0, 0, 0, 0]
        if kind == "Norm":
            constants.update(statistics(6, name=name, seed=number))
            nodes.append(norm(source, target, name))
        elif kind == "LeakyRelu":
            nodes.append(node(kind, [source], target, alpha=0.5))
        elif kind == "Skip":
            nodes.append(node("Add", [source, source], target))
        else:
            group = 6 if kind == "DepthwiseConv" else 1
            constants[f"w{number}"] = weight(6, 6 // group, 3 if flag else 1, 3 if flag else 1, seed=number) / 3
            op = "ConvTranspose" if kind == "ConvTranspose" else "Conv"
            nodes.append(node(op, [source, f"w{number}"], target, group=group, pads=pads))
        tensors.append(target)
    model = build(nodes, constants, shape=("n", 6, 9, 9))
    cleaned, plan = clean(model)
    folded = sum(d["step"] == "batchnorm" for d in plan.decisions)
    assert ops(cleaned).count("BatchNormalization") == ops(model).count("BatchNormalization") - folded
    assert_close(model, cleaned, 3e-5, n=2)


@pytest.mark.parametrize("alike", [True, False])
def test_a_layer_applied_twice_stays_one_where_its_norms_are_alike(alike: bool) -> None:
    constants = {"w": weight(6, 6, 1, 1), "c": weight(6), **statistics(6), **statistics(6, name="other", seed=7)}
    nodes = [
        node("Conv", ["x", "w", "c"], "a"),
        norm("a", "p"),
        node("Relu", ["p"], "q"),
        node("Conv", ["q", "w", "c"], "d"),
        norm("d", "y", "" if alike else "other"),
    ]
    model = build(nodes, constants)
    cleaned, _ = clean(model)
    first, _, second = cleaned.nodes
    assert (first.inputs[1] is second.inputs[1], first.inputs[2] is second.inputs[2]) == (alike, alike)
    assert_close(model, cleaned, TOLERANCE[np.float32], h=7, w=8)
