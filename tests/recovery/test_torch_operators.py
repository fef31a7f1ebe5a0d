"""Operators in torch against the ONNX standard's own examples, and the cases that networks bring and those lack."""

from __future__ import annotations

import functools
import re
import warnings
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from onnxcompress.errors import UnsupportedOpError
from onnxcompress.graph import Model
from onnxcompress.passes.recovery.graph_module import GraphModule, as_tensor
from onnxcompress.passes.recovery.torch_operators import OPERATORS, Call

# What the table leaves out on purpose, each with its error.
UNSUPPORTED = re.compile(
    r"test_(dropout_default_mask|training_dropout|layer_normalization_(?!.*default)|layer_normalization_default_axis"
    r"|batchnorm_.*training_mode|averagepool_.*dilations|lppool_2d_dilations|arg(max|min)_.*select_last_index|lstm_with_peepholes|lstm_batchwise|maxpool_with_argmax|resize_tf_crop"
    r"|resize_.*(antialias|not_larger|not_smaller))"
)
# Types that no network of floats computes in, values that only a runtime of bfloat16 gives, reductions of nothing.
LEFT_OUT = re.compile(r"cast|string|bfloat16|float16|_fp16|empty_set|uint|_int8|int4|int2|_expanded")
# onnxruntime differs from these two as well: they take the length of the result as a fraction.
DISPUTED = {"test_resize_downsample_scales_linear_align_corners", "test_resize_downsample_scales_cubic_align_corners"}


@functools.cache
def standard_examples() -> dict[str, Any]:
    """The standard's test cases whose operators are all in the table."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    return {
        case.name: case
        for case in cases
        if {node.op_type for node in case.model.graph.node} <= OPERATORS.keys()
        and not LEFT_OUT.search(case.name)
        and case.name not in DISPUTED
        and case.model.opset_import[0].version >= 7
    }


def outputs_of(proto: onnx.ModelProto, feeds: list[Any]) -> list[torch.Tensor]:
    module = GraphModule(Model.from_proto(proto)).eval()
    tensors = dict(zip((info.name for info in proto.graph.input), map(as_tensor, map(np.asarray, feeds)), strict=True))
    with torch.no_grad():
        return list(module(*(tensors[name] for name in module.input_names)))


@pytest.mark.parametrize("op", sorted(OPERATORS))
def test_the_standards_examples(op: str) -> None:
    cases = [c for c in standard_examples().values() if c.model.graph.node[0].op_type == op]
    for case in cases:
        for feeds, expected in case.data_sets:
            if UNSUPPORTED.match(case.name):
                with pytest.raises(UnsupportedOpError, match=op):
                    outputs_of(case.model, feeds)
                continue
            for computed, wanted in zip(outputs_of(case.model, feeds), expected, strict=True):
                assert tuple(computed.shape) == np.shape(wanted), case.name
                close = np.allclose(computed.double(), np.float64(wanted), rtol=1e-3, atol=1e-5, equal_nan=True)
                assert close, case.name


def test_most_operators_have_an_example() -> None:
    covered = {case.model.graph.node[0].op_type for case in standard_examples().values()}
    assert len(standard_examples()) > 450
    assert OPERATORS.keys() - covered <= {"Cast", "CastLike", "GlobalLpPool", "Not", "Upsample"}


def run_in_both(nodes: list[onnx.NodeProto], shape: list[int], weights: dict[str, Any], opset: int) -> float:
    """Return the largest difference between torch and onnxruntime, relative to the output's range."""
    graph = helper.make_graph(
        nodes,
        "case",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(shape))],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 21 else 10)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x})
    (computed,) = outputs_of(model, [x])
    assert tuple(computed.shape) == expected.shape
    return float(np.abs(computed.numpy() - expected).max() / np.abs(expected).max())


POOLS = [
    {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "pads": [0, 1, 1, 0]},
    {"kernel_shape": [2, 2], "strides": [3, 3], "ceil_mode": 1, "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 2], "strides": [1, 2], "pads": [2, 0, 2, 1]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"kernel_shape": [2, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
    {"kernel_shape": [3, 3], "auto_pad": "VALID"},
]


@pytest.mark.parametrize("attributes", POOLS)
@pytest.mark.parametrize("size", [7, 8, 11])
@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pooling_windows(op: str, attributes: dict[str, Any], size: int, include: int) -> None:
    if op == "AveragePool":
        attributes = {**attributes, "count_include_pad": include}
    node = helper.make_node(op, ["x"], ["y"], **attributes)
    assert run_in_both([node], [2, 3, size, size + 2], {}, 17) < 1e-6


CONVS = [
    {"pads": [0, 2, 1, 0]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 3]},
    {"auto_pad": "SAME_LOWER", "strides": [3, 2]},
    {"auto_pad": "VALID", "strides": [2, 1]},
]


@pytest.mark.parametrize("attributes", CONVS)
@pytest.mark.parametrize("group", [1, 2])
def test_convolution_windows(attributes: dict[str, Any], group: int) -> None:
    drawn = np.random.default_rng(1)
    weights = {"w": drawn.standard_normal((6, 4 // group, 3, 2)).astype(np.float32), "b": np.ones(6, np.float32)}
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], group=group, **attributes)
    assert run_in_both([node], [2, 4, 9, 10], weights, 17) < 1e-5


@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [2, 2], "pads": [0, 1, 1, 0]},
        {"strides": [3, 2], "output_padding": [2, 1], "pads": [1, 1, 1, 1]},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
        {"strides": [2, 2], "output_shape": [18, 19]},
    ],
)
def test_transposed_convolution_windows(attributes: dict[str, Any]) -> None:
    drawn = np.random.default_rng(2)
    weights = {"w": drawn.standard_normal((4, 3, 3, 3)).astype(np.float32), "b": np.ones(6, np.float32)}
    node = helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], group=2, **attributes)
    assert run_in_both([node], [2, 4, 8, 9], weights, 17) < 1e-5


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("beta", [0.75, 0.5])
def test_local_response_normalization(size: int, beta: float) -> None:
    node = helper.make_node("LRN", ["x"], ["y"], size=size, alpha=0.5, beta=beta, bias=2.0)
    assert run_in_both([node], [2, 7, 3, 3], {}, 17) < 1e-6


def test_an_even_window_of_local_response_normalization_is_longer_behind() -> None:
    x = torch.arange(1.0, 6.0).reshape(1, 5, 1, 1)
    call = Call("n", "LRN", 17, attributes={"size": 2, "alpha": 2.0, "beta": 1.0, "bias": 0.0})
    squares = [1 + 4, 4 + 9, 9 + 16, 16 + 25, 25]  # onnxruntime takes odd windows only
    assert OPERATORS["LRN"](call, x).reshape(-1).tolist() == pytest.approx([n / s for n, s in enumerate(squares, 1)])


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("opset", [11, 13])
def test_softmax_before_and_after_its_change(op: str, axis: int, opset: int) -> None:
    assert run_in_both([helper.make_node(op, ["x"], ["y"], axis=axis)], [2, 3, 4, 5], {}, opset) < 1e-6


@pytest.mark.parametrize(("scale", "mode"), [(2.0, "nearest"), (1.6, "nearest"), (2.0, "linear")])
def test_upsample_of_old_opsets(scale: float, mode: str) -> None:
    scales = np.asarray([1.0, 1.0, scale, scale], np.float32)
    node = helper.make_node("Upsample", ["x", "s"], ["y"], mode=mode)
    assert run_in_both([node], [1, 2, 5, 6], {"s": scales}, 9) < 1e-6
    node = helper.make_node("Resize", ["x", "s"], ["y"], mode=mode)
    assert run_in_both([node], [1, 2, 5, 6], {"s": scales}, 10) < 1e-6


def test_clip_and_pad_by_attributes() -> None:
    nodes = [
        helper.make_node("Clip", ["x"], ["c"], min=-0.5, max=0.25),
        helper.make_node("Pad", ["c"], ["y"], mode="reflect", pads=[0, 0, 1, 2, 0, 0, 2, 1]),
    ]
    assert run_in_both(nodes, [1, 2, 5, 6], {}, 10) == 0.0


def test_an_unknown_operator_is_named() -> None:
    node = helper.make_node("Hardmax", ["x"], ["y"], name="the_node")
    with pytest.raises(UnsupportedOpError, match=r"'the_node'.*Hardmax"):
        run_in_both([node], [2, 3], {}, 17)


@pytest.mark.parametrize(("size", "beta"), [(5, 0.75), (4, 0.5)])
def test_gradient_of_local_response_normalization(size: int, beta: float) -> None:
    x = torch.randn(2, 7, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    call = Call("n", "LRN", 17, attributes={"size": size, "alpha": 2.0, "beta": beta, "bias": 1.5})
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((OPERATORS["LRN"](call, x) * weights).sum(), x)
    wide = x.detach().double().requires_grad_()
    squares = torch.nn.functional.pad(wide.square(), [0, 0, 0, 0, (size - 1) // 2, size // 2])
    window = sum(squares[:, offset : offset + 7] for offset in range(size))
    (expected,) = torch.autograd.grad((wide / (1.5 + 2.0 / size * window) ** beta * weights).sum(), wide)
    assert torch.allclose(gradient.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("opset", "attributes"), [(11, {}), (13, {}), (18, {"num_outputs": 3})])
@pytest.mark.parametrize("read", ["a", "b", "c"])
def test_parts_that_nothing_reads_count_where_a_split_gives_no_sizes(
    opset: int, attributes: dict[str, int], read: str
) -> None:
    nodes = [helper.make_node("Split", ["x"], ["a", "b", "c"], axis=1, **attributes)]
    assert run_in_both([*nodes, helper.make_node("Relu", [read], ["y"])], [2, 6, 4], {}, opset) == 0.0


@pytest.mark.parametrize(("scale", "opset"), [(0.7, 10), (1.3, 10), (0.7, 13), (1.3, 13)])
def test_a_resized_length_is_counted_in_float32(scale: float, opset: int) -> None:
    inputs = ["x", "s"] if opset == 10 else ["x", "", "s"]
    node = helper.make_node("Resize", inputs, ["y"], mode="linear")
    assert run_in_both([node], [1, 2, 10, 5], {"s": np.float32([1.0, 1.0, scale, 2.0])}, opset) < 1e-5


@pytest.mark.parametrize("op", ["InstanceNormalization", "GroupNormalization"])
@pytest.mark.parametrize("shape", [[2, 6, 1, 1], [1, 6, 1], [2, 6, 3, 2]])
def test_a_group_of_one_number_is_its_own_mean(op: str, shape: list[int]) -> None:
    """torch refuses it, as behind a global pool."""
    drawn = np.random.default_rng(0)
    weights = {name: drawn.standard_normal(6).astype(np.float32) for name in ("scale", "bias")}
    attributes = {"num_groups": 6} if op == "GroupNormalization" else {}
    node = helper.make_node(op, ["x", "scale", "bias"], ["y"], **attributes)
    assert run_in_both([node], shape, weights, 21) < 1e-5


@pytest.mark.parametrize("op", ["ReduceSumSquare", "ReduceLogSum", "ReduceL1", "ReduceSum"])
def test_a_reduction_over_no_axis_still_computes_of_each_number(op: str) -> None:
    nodes = [
        helper.make_node("Abs", ["x"], ["a"]),
        helper.make_node(op, ["a", "axes"], ["y"], noop_with_empty_axes=1),
    ]
    assert run_in_both(nodes, [2, 3, 4], {"axes": np.int64([])}, 18) < 1e-6


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1)])
def test_one_number_a_channel_is_normalised_by_running_statistics_in_training_too(shape: tuple[int, ...]) -> None:
    """torch refuses it, as of a step of one sample behind a global pool."""
    call = Call("n", "BatchNormalization", 17, training=True)
    scale, bias, mean, variance = (torch.tensor(values) for values in ([1.0] * 3, [0.5] * 3, [1.0] * 3, [4.0] * 3))
    y = OPERATORS["BatchNormalization"](call, torch.full(shape, 3.0), scale, bias, mean, variance)
    assert y.reshape(-1).tolist() == pytest.approx([1.5] * 3, abs=1e-4)
    assert (mean.tolist(), variance.tolist()) == ([1.0] * 3, [4.0] * 3)


def whole(op: str, inputs: list[str], element: int, **attributes: Any) -> list[onnx.NodeProto]:
    """A node on whole numbers from -30 to 30, or from 0 on."""
    return [
        helper.make_node("Mul", ["x", "nine"], ["wide"]),
        helper.make_node("Abs" if element == TensorProto.UINT8 else "Identity", ["wide"], ["signed"]),
        helper.make_node("Cast", ["signed"], ["whole"], to=element),
        helper.make_node(op, ["whole", *inputs], ["result"], **attributes),
        helper.make_node("Cast", ["result"], ["y"], to=TensorProto.FLOAT),
    ]


@pytest.mark.parametrize("element", [TensorProto.INT32, TensorProto.INT64])
@pytest.mark.parametrize("op", ["Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "SumSquare"])
def test_a_reduction_of_whole_numbers_is_one(op: str, element: int) -> None:
    nodes = whole(f"Reduce{op}", [], element, axes=[1], keepdims=1)
    assert run_in_both(nodes, [2, 3, 4], {"nine": np.float32(9)}, 11) == 0


@pytest.mark.parametrize("element", [TensorProto.INT32, TensorProto.UINT8])
def test_whole_numbers_are_resized(element: int) -> None:
    nodes = whole("Resize", ["", "scales"], element, mode="linear")
    weights = {"nine": np.float32(9), "scales": np.array([1, 1, 2, 2], np.float32)}
    assert run_in_both(nodes, [1, 2, 4, 4], weights, 13) == 0


@pytest.mark.parametrize("element", [TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64])
def test_numbers_without_a_sign_are_cast(element: int) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["positive"]),
        helper.make_node("Cast", ["positive"], ["whole"], to=element),
        helper.make_node("Cast", ["whole"], ["y"], to=TensorProto.FLOAT),
    ]
    assert run_in_both(nodes, [3, 5], {}, 13) == 0
