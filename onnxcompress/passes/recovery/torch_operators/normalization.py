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
    training = call.training and epsilon > 0.0
    return functional.batch_norm(x, mean, variance, scale, bias, training, momentum, epsilon)


@operator("InstanceNormalization")
def instance_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return functional.instance_norm(x, weight=scale, bias=bias, eps=call.number("epsilon", 1e-5))


@operator("GroupNormalization")
def group_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups, epsilon = call.whole("num_groups", 1), call.number("epsilon", 1e-5)
    if call.opset < _GROUP_SCALES_PER_CHANNEL:
        repeats = x.shape[1] // groups
        scale, bias = scale.repeat_interleave(repeats), bias.repeat_interleave(repeats)
    return functional.group_norm(x, groups, scale, bias, epsilon)


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
