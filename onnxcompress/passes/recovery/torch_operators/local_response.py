"""Local response normalisation (LRN) across neighbouring channels, with a gradient of its own.

    y = x / s^beta,  s = bias + alpha / size * (sum of x^2 over the window)

The sum over the window is a 1x1 convolution with a banded matrix B (C, C). With t = g y / s, the gradient of x is
g / s^beta - 2 alpha beta / size * x * (B^T t): two 1x1 convolutions and few passes over memory, where the same written
out in torch's operators takes a third of GoogLeNet's training time on a CPU. (torch's own function puts the longer half
of an even window before the channel, ONNX behind.)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from onnxcompress.passes.recovery.torch_operators.registry import Call, operator

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


class _LocalResponse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, band: Tensor, bias: float, scale: float, beta: float) -> Tensor:
        """Normalise x (B, C, ...) with band (C, C, 1...)."""
        base = _CONV[x.dim() - 2](x.square(), band).mul_(scale).add_(bias)
        power = _inverse_power(base, beta)
        y = x * power
        ctx.save_for_backward(x, band, base, power)
        ctx.scale, ctx.beta = scale, beta
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        x, band, base, power = ctx.saved_tensors
        direct = gradients[0] * power
        spread = _CONV[x.dim() - 2]((direct * x).div_(base), band.transpose(0, 1))
        return direct.addcmul_(x, spread, value=-2.0 * ctx.scale * ctx.beta), None, None, None, None


def _inverse_power(base: Tensor, beta: float) -> Tensor:
    if math.isclose(beta, 0.75):
        root = base.rsqrt()
        return root * root.sqrt()  # several times faster than pow
    return base.pow(-beta)


@operator("LRN")
def local_response_normalization(call: Call, x: Tensor) -> Tensor:
    size, channels, spatial = call.whole("size", 1), x.shape[1], x.dim() - 2
    if spatial not in _CONV:
        raise call.unsupported(f"{spatial} spatial dimensions")
    offset = torch.arange(channels, device=x.device)
    offset = offset[None, :] - offset[:, None]
    # In float32 under mixed precision too: squares of activations leave the range of float16.
    with torch.autocast(x.device.type, enabled=False):
        band = ((offset >= -((size - 1) // 2)) & (offset <= size // 2)).to(torch.float32)
        band = band.reshape(channels, channels, *[1] * spatial)
        bias, scale, beta = call.number("bias", 1.0), call.number("alpha", 1e-4) / size, call.number("beta", 0.75)
        y: Tensor = _LocalResponse.apply(x.to(torch.float32), band, bias, scale, beta)  # type: ignore[no-untyped-call]
    return y
