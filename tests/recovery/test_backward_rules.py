"""Backward rules against torch's gradients, operator by operator."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from onnxcompress.graph import Model
from onnxcompress.passes.recovery.backward import Backward
from onnxcompress.passes.recovery.backward_rules import RULES
from tests.recovery.drawn_loss import SEED, Arrays, assert_close, gradients_by_torch
from tests.small_models import build, node

DRAW = np.random.default_rng(0)
BATCH = 3


def normal(*shape: int) -> np.ndarray:
    return DRAW.standard_normal(shape).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """One operator: what it reads besides `x`, attributes, the shape of `x` after the batch (None: not fixed)."""

    op: str
    constants: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = (6, 9, 8)
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 17
    operands: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ("y",)
    positive: bool = False
    batch: int | None = None

    def model(self) -> Model:
        operands = self.operands or ("x", *self.constants)
        nodes = [node(self.op, operands, *self.outputs, **self.attributes)]
        shape = (self.batch or "n", *self.shape)
        return build(nodes, self.constants, shape=shape, opset=self.opset, outputs=self.outputs[:1])

    def feeds(self) -> Arrays:
        x = np.random.default_rng(1).standard_normal((self.batch or BATCH, *self.shape)).astype(np.float32)
        return {"x": np.abs(x) + 0.5 if self.positive else x}


def conv(weight: tuple[int, ...], shape: tuple[int, ...] = (6, 9, 8), opset: int = 17, **attributes: Any) -> Case:
    return Case("Conv", {"w": normal(*weight), "b": normal(weight[0])}, shape, attributes, opset)


def unary(op: str, opset: int = 17, positive: bool = False, **attributes: Any) -> Case:
    return Case(op, {}, (3, 5), attributes, opset, positive=positive)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}

CASES: dict[str, Case] = {
    "conv": conv((4, 6, 3, 3), pads=[1, 1, 1, 1]),
    "conv 1x1": conv((4, 6, 1, 1)),
    "conv, more padding than kernel": conv((4, 6, 1, 1), pads=[1, 0, 2, 1]),
    "conv, stride leaves a rest": conv((4, 6, 3, 2), strides=[2, 3], pads=[1, 0, 0, 1]),
    "conv, 1x1 with stride": conv((4, 6, 1, 1), strides=[2, 3]),
    "conv, stride and dilation": conv((4, 6, 3, 2), strides=[2, 1], dilations=[2, 3], pads=[2, 1, 0, 3]),
    "conv, uneven kernel and dilation": conv((4, 6, 3, 2), dilations=[2, 3], pads=[2, 1, 0, 3]),
    "conv, groups": conv((9, 2, 3, 3), group=3, pads=[1, 1, 1, 1]),
    "conv, groups and stride": conv((9, 2, 3, 3), group=3, strides=[2, 2]),
    "conv, depthwise": conv((6, 1, 3, 3), group=6, pads=[1, 1, 1, 1]),
    "conv, same upper": conv((4, 6, 4, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
    "conv, same lower": conv((4, 6, 4, 3), auto_pad="SAME_LOWER"),
    "conv, valid": conv((4, 6, 4, 3), auto_pad="VALID"),
    "conv, 1 axis": conv((4, 6, 3), (6, 9), strides=[2]),
    "conv, 3 axes": conv((4, 2, 3, 2, 3), (2, 5, 4, 6), pads=[1, 0, 1, 1, 0, 1]),
    "conv, 3 axes with stride": conv((4, 2, 3, 2, 3), (2, 5, 4, 6), strides=[2, 1, 2]),
    "convtranspose": Case(
        "ConvTranspose",
        {"w": normal(6, 2, 3, 3), "b": normal(4)},
        attributes={"group": 2, "strides": [2, 1], "pads": [1, 0, 0, 2], "output_padding": [1, 0]},
    ),
    "gemm": Case("Gemm", {"w": normal(6, 5), "b": normal(5)}, (6,), {"alpha": 0.5}),
    "gemm, turned": Case("Gemm", {"w": normal(5, 6), "b": normal(5)}, (6,), {"transB": 1}),
    "matmul": Case("MatMul", {"w": normal(6, 5)}, (4, 6)),
    "matmul, both sides": Case("MatMul", {}, (3, 4, 4), operands=("x", "x")),
    "instancenorm": Case("InstanceNormalization", {"s": normal(6), "b": normal(6)}),
    "layernorm": Case("LayerNormalization", {"s": normal(9, 8), "b": normal(9, 8)}, attributes={"axis": 2}),
    "batchnorm": Case(
        "BatchNormalization", {"s": normal(6), "b": normal(6), "m": normal(6), "v": np.abs(normal(6)) + 0.1}
    ),
    "lrn": Case("LRN", {}, (7, 4, 3), {"size": 5, "alpha": 0.9, "bias": 1.5}),
    "lrn, another power": Case("LRN", {}, (7, 4), {"size": 3, "alpha": 2.0, "beta": 0.6}),
    "maxpool": Case("MaxPool", {}, attributes={"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1]}),
    "maxpool, ceil": Case("MaxPool", {}, attributes={"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    "maxpool, dilated": Case("MaxPool", {}, attributes={"kernel_shape": [2, 3], "dilations": [2, 1]}),
    "maxpool, 1 axis": Case("MaxPool", {}, (6, 9), {"kernel_shape": [3]}),
    "maxpool, opset 9": Case("MaxPool", {}, attributes={"kernel_shape": [3, 3], "strides": [2, 2]}, opset=9),
    "averagepool": Case("AveragePool", {}, attributes={"kernel_shape": [3, 2], "strides": [2, 1]}),
    "averagepool, padded": Case("AveragePool", {}, attributes={"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "averagepool, padding counts": Case(
        "AveragePool",
        {},
        attributes={"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 0], "count_include_pad": 1},
    ),
    "averagepool, ceil": Case(
        "AveragePool", {}, attributes={"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 0, 0], "ceil_mode": 1}
    ),
    "averagepool, same": Case(
        "AveragePool", {}, attributes={"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}
    ),
    "globalaveragepool": Case("GlobalAveragePool"),
    "globalmaxpool": Case("GlobalMaxPool"),
    "reducemean": Case("ReduceMean", attributes={"axes": [2, -1], "keepdims": 0}),
    "reducemean, opset 18": Case("ReduceMean", {"axes": ints(-1, 2)}, opset=18),
    "reducesum": Case("ReduceSum", {"axes": ints(2)}),
    "relu": unary("Relu"),
    "leakyrelu": unary("LeakyRelu", alpha=0.2),
    "prelu": Case("PRelu", {"slope": normal(6, 1, 1)}),
    "clip": Case("Clip", {"low": np.float32(-0.5), "high": np.float32(0.7)}),
    "clip, no lower end": Case("Clip", {"high": np.float32(0.7)}, operands=("x", "", "high")),
    "clip, opset 9": unary("Clip", 9, min=-0.5, max=0.7),
    "sigmoid": unary("Sigmoid"),
    "tanh": unary("Tanh"),
    "erf": unary("Erf"),
    "hardsigmoid": unary("HardSigmoid", alpha=0.4),
    "hardswish": unary("HardSwish"),
    "elu": unary("Elu", alpha=0.7),
    "exp": unary("Exp"),
    "sqrt": unary("Sqrt", positive=True),
    "neg": unary("Neg"),
    "abs": unary("Abs"),
    "softplus": unary("Softplus"),
    "gelu": unary("Gelu", 20),
    "gelu, tanh": unary("Gelu", 20, approximate="tanh"),
    "mish": unary("Mish", 18),
    "selu": unary("Selu"),
    "celu": unary("Celu", alpha=0.8),
    "softsign": unary("Softsign"),
    "sin": unary("Sin"),
    "cos": unary("Cos"),
    "softmax": Case("Softmax", {}, (5, 4), {"axis": 1}),
    "add": Case("Add", {"c": normal(6, 1, 8)}),
    "sub, right": Case("Sub", {"c": normal(6, 1, 8)}, operands=("c", "x")),
    "sum": Case("Sum", {"c": normal(8), "d": normal(9, 1)}),
    "mul": Case("Mul", {"c": normal(6, 1, 8)}),
    "mul, square": Case("Mul", operands=("x", "x")),
    "mul, repeated": Case("Mul", {"c": normal(2, 6, 9, 8)}, (6, 1, 8), operands=("x", "c"), batch=1),
    "div": Case("Div", {"c": np.abs(normal(6, 1, 8)) + 0.5}),
    "div, by it": Case("Div", {"c": normal(6, 1, 8)}, operands=("c", "x"), positive=True),
    "pow": Case("Pow", {"p": np.float32(2.5)}, positive=True),
    "pow, square": Case("Pow", {"p": np.int64(2)}),
    "flatten": Case("Flatten"),
    "reshape": Case("Reshape", {"to": ints(0, 3, 2, 72)}),
    "squeeze": Case("Squeeze", {"axes": ints(2)}, (6, 1, 8)),
    "squeeze, opset 11": Case("Squeeze", {}, (6, 1, 8), {"axes": [2]}, 11),
    "unsqueeze": Case("Unsqueeze", {"axes": ints(1)}),
    "identity": unary("Identity"),
    "dropout": unary("Dropout"),
    "dropout, opset 11": unary("Dropout", 11, ratio=0.3),
    "cast": unary("Cast", to=TensorProto.FLOAT),
    "transpose": Case("Transpose", attributes={"perm": [0, 2, 3, 1]}),
    "concat": Case("Concat", {"c": normal(BATCH, 2, 9, 8)}, (6, 9, 8), {"axis": 1}, operands=("c", "x", "x"), batch=3),
    "split": Case("Split", {"sizes": ints(2, 4)}, attributes={"axis": 1}, outputs=("y", "z")),
    "slice": Case("Slice", {"starts": ints(1, -3), "ends": ints(2**60, -1), "axes": ints(1, 3)}),
    "slice, steps": Case(
        "Slice", {"starts": ints(1, 8), "ends": ints(9, -100), "axes": ints(2, -1), "steps": ints(3, -2)}
    ),
    "gather": Case("Gather", {"at": ints(4, 0, -1)}, attributes={"axis": 1}),
    "gather, one": Case("Gather", {"at": np.array(0)}, attributes={"axis": 2}),
    "gather, one after the other": Case("Gather", {"at": ints(2, 3, 4)}, attributes={"axis": -1}),
    "depthtospace": Case("DepthToSpace", {}, (8, 3, 5), {"blocksize": 2}),
    "depthtospace, column first": Case("DepthToSpace", {}, (8, 3, 5), {"blocksize": 2, "mode": "CRD"}),
    "spacetodepth": Case("SpaceToDepth", {}, (3, 4, 6), {"blocksize": 2}),
    "expand": Case("Expand", {"to": ints(1, 6, 9, 8)}, (6, 1, 8)),
    "where": Case("Where", {"c": normal(6, 9, 8) > 0, "o": normal(6, 1, 8)}, operands=("c", "x", "o")),
    "where, other": Case("Where", {"c": normal(1, 9, 8) > 0, "o": normal(6, 1, 8)}, operands=("c", "o", "x")),
    "max": Case("Max", {"c": normal(6, 1, 8)}),
    "min": Case("Min", {"c": normal(8), "d": normal(9, 1)}),
    "log": unary("Log", positive=True),
    "reciprocal": unary("Reciprocal", positive=True),
    "logsoftmax": Case("LogSoftmax", {}, (5, 4), {"axis": 1}),
    "reducel2": Case("ReduceL2", attributes={"axes": [1], "keepdims": 0}),
    "reducemax": Case("ReduceMax", attributes={"axes": [2, 3]}),
    "reducemin, opset 18": Case("ReduceMin", {"axes": ints(-1)}, attributes={"keepdims": 0}, opset=18),
    "groupnorm": Case("GroupNormalization", {"s": normal(6), "b": normal(6)}, attributes={"num_groups": 3}, opset=21),
    "resize, nearest": Case("Resize", {"s": np.float32([1, 1, 2, 3])}, operands=("x", "", "s"), attributes=NEAREST),
    "resize, nearest, smaller": Case(
        "Resize", {"to": ints(1, 6, 4, 5)}, operands=("x", "", "", "to"), attributes=NEAREST, batch=1
    ),
    "resize, linear": Case(
        "Resize", {"s": np.float32([1, 1, 2, 1.5])}, operands=("x", "", "s"), attributes={"mode": "linear"}
    ),
    "resize, linear, to the corners": Case(
        "Resize",
        {"to": ints(1, 6, 14, 20)},
        operands=("x", "", "", "to"),
        attributes={"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        batch=1,
    ),
    "resize, cubic": Case(
        "Resize",
        {"s": np.float32([1, 1, 2, 2])},
        operands=("x", "", "s"),
        attributes={"mode": "cubic", "cubic_coeff_a": -0.75},
    ),
    "resize, 3 axes": Case(
        "Resize", {"s": np.float32([1, 1, 2, 1, 3])}, (2, 3, 4, 5), NEAREST, operands=("x", "", "s")
    ),
    "resize, by axes": Case(
        "Resize", {"s": np.float32([2, 2])}, (6, 4, 5), {**NEAREST, "axes": [2, 3]}, 18, operands=("x", "", "s")
    ),
    "pad": Case("Pad", {"pads": ints(0, 0, 1, 2, 0, 0, 3, 0)}),
    "pad, opset 10": Case("Pad", {}, attributes={"pads": [0, 0, 1, 2, 0, 0, 3, 0]}, opset=10),
}


@pytest.mark.parametrize("name", CASES)
def test_a_rule_gives_the_gradient(name: str) -> None:
    case = CASES[name]
    model, batch = case.model(), case.feeds()
    backward = Backward(model, ["x"])
    assert backward.tensors == ("x",)
    found = backward.run(batch, np.random.default_rng(SEED))
    assert_close(found["x"], gradients_by_torch(model, batch, ["x"], ["y"])["x"])


def test_every_rule_is_tested() -> None:
    assert {case.op for case in CASES.values()} >= RULES.keys()
