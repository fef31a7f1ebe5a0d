"""Normalisations by stored or batch statistics, per instance, group or layer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from onnxcompress.passes.recovery.torch_operators.registry import Call, operator

_GROUP_SCALES_PER_CHANNEL = 21  # the opset from which GroupNormalization has one scale for each channel


@operator("BatchNormalization")
def batch_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    if call.outputs > 1 or call.whole("training_mode", 0):
        raise call.unsupported("training_mode")
    # In training torch writes the running statistics into `mean` and `variance`; its momentum weighs the new ones.
    momentum, epsilon = 1.0 - call.number("momentum", 0.9), call.number("epsilon", 1e-5)
    # Without an epsilon nothing is normalised: a scale and a shift in this form, which clean-up may write.
    # One number a channel, as of one sample behind a global pool, has no statistics: the running ones hold.
    training = call.training and epsilon > 0.0 and x.numel() > x.shape[1]
    return functional.batch_norm(x, mean, variance, scale, bias, training, momentum, epsilon)


@operator("InstanceNormalization")
def instance_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return _grouped(x, x.shape[1], scale, bias, call.number("epsilon", 1e-5))


@operator("GroupNormalization")
def group_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups, epsilon = call.whole("num_groups", 1), call.number("epsilon", 1e-5)
    if call.opset < _GROUP_SCALES_PER_CHANNEL:
        repeats = x.shape[1] // groups
        scale, bias = scale.repeat_interleave(repeats), bias.repeat_interleave(repeats)
    return _grouped(x, groups, scale, bias, epsilon)


def _grouped(x: Tensor, groups: int, scale: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Normalise x (B, C, ...) over groups of channels, scale (C,) and bias (C,) behind; groups may hold one number.

    torch's own functions refuse those, as behind a global pool: each is its own mean, and only the bias is left.
    """
    # As rows of one group each: their own axis is normalised, whatever lies along it.
    rows = x.reshape(x.shape[0], groups, -1)
    normalised = functional.layer_norm(rows, rows.shape[2:], eps=epsilon).reshape(x.shape)
    along = (-1, *[1] * (x.dim() - 2))
    return normalised * scale.reshape(along) + bias.reshape(along)


@operator("LayerNormalization")
def layer_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    if call.outputs > 1:
        raise call.unsupported("its outputs of statistics in use")
    shape = x.shape[call.whole("axis", -1) % x.dim() :]
    epsilon = call.number("epsilon", 1e-5)
    if scale.shape == shape and (bias is None or bias.shape == shape):
        return functional.layer_norm(x, shape, scale, bias, epsilon)
    normalised = functional.layer_norm(x, shape, None, None, epsilon) * scale
    return normalised if bias is None else normalised + bias


@operator("RMSNormalization")
def rms_normalization(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    axes = list(range(call.whole("axis", -1) % x.dim(), x.dim()))
    mean_square = x.square().mean(axes, keepdim=True)
    return x * torch.rsqrt(mean_square + call.number("epsilon", 1e-5)) * scale


@operator("MeanVarianceNormalization")
def mean_variance_normalization(call: Call, x: Tensor) -> Tensor:
    axes = call.wholes("axes", [0, 2, 3]) or []
    mean = x.mean(axes, keepdim=True)
    variance = x.square().mean(axes, keepdim=True) - mean.square()
    return (x - mean) / (variance.clamp_min(0.0).sqrt() + 1e-9)


@operator("LpNormalization")
def lp_normalization(call: Call, x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, call.whole("p", 2), call.whole("axis", -1), keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm.clamp_min(torch.finfo(x.dtype).tiny))
