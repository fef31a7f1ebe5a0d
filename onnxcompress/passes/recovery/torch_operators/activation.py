"""Activation functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from onnxcompress.passes.recovery.torch_operators.registry import Call, operator

_CHANNEL_SOFTMAX = 13  # the opset from which Softmax works along one axis; before, over all from that axis on


@operator("Relu")
def relu(call: Call, x: Tensor) -> Tensor:
    return functional.relu(x)


@operator("LeakyRelu")
def leaky_relu(call: Call, x: Tensor) -> Tensor:
    return functional.leaky_relu(x, call.number("alpha", 0.01))


@operator("ThresholdedRelu")
def thresholded_relu(call: Call, x: Tensor) -> Tensor:
    return torch.where(x > call.number("alpha", 1.0), x, torch.zeros_like(x))


@operator("PRelu")
def prelu(call: Call, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


@operator("Elu")
def elu(call: Call, x: Tensor) -> Tensor:
    return functional.elu(x, call.number("alpha", 1.0))


@operator("Celu")
def celu(call: Call, x: Tensor) -> Tensor:
    return functional.celu(x, call.number("alpha", 1.0))


@operator("Selu")
def selu(call: Call, x: Tensor) -> Tensor:
    alpha, gamma = call.number("alpha", 1.67326319217681884765625), call.number("gamma", 1.05070102214813232421875)
    return gamma * functional.elu(x, alpha)


@operator("Sigmoid")
def sigmoid(call: Call, x: Tensor) -> Tensor:
    return torch.sigmoid(x)


@operator("HardSigmoid")
def hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    return torch.clamp(x * call.number("alpha", 0.2) + call.number("beta", 0.5), 0.0, 1.0)


@operator("HardSwish")
def hard_swish(call: Call, x: Tensor) -> Tensor:
    return functional.hardswish(x)


@operator("Swish")
def swish(call: Call, x: Tensor) -> Tensor:
    return x * torch.sigmoid(x * call.number("alpha", 1.0))


@operator("Mish")
def mish(call: Call, x: Tensor) -> Tensor:
    return functional.mish(x)


@operator("Softplus")
def softplus(call: Call, x: Tensor) -> Tensor:
    return functional.softplus(x)


@operator("Softsign")
def softsign(call: Call, x: Tensor) -> Tensor:
    return functional.softsign(x)


@operator("Tanh")
def tanh(call: Call, x: Tensor) -> Tensor:
    return torch.tanh(x)


@operator("Gelu")
def gelu(call: Call, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=call.text("approximate", "none"))


@operator("Clip")
def clip(call: Call, x: Tensor, lowest: Tensor | None = None, highest: Tensor | None = None) -> Tensor:
    # Attributes before opset 11, inputs since.
    low = call.number("min", -math.inf) if lowest is None else lowest.item()
    high = call.number("max", math.inf) if highest is None else highest.item()
    if low == -math.inf and high == math.inf:
        return x
    return torch.clamp(x, None if low == -math.inf else low, None if high == math.inf else high)


@operator("Softmax")
def softmax(call: Call, x: Tensor) -> Tensor:
    rows, axis = _rows(call, x)
    return torch.softmax(rows, axis).reshape(x.shape)


@operator("LogSoftmax")
def log_softmax(call: Call, x: Tensor) -> Tensor:
    rows, axis = _rows(call, x)
    return torch.log_softmax(rows, axis).reshape(x.shape)


def _rows(call: Call, x: Tensor) -> tuple[Tensor, int]:
    """Return what is normalised, and along which axis of it."""
    if call.opset >= _CHANNEL_SOFTMAX:
        return x, call.whole("axis", -1)
    axis = call.whole("axis", 1) % max(x.dim(), 1)
    return x.reshape(math.prod(x.shape[:axis]), -1), 1
