"""Conv, ConvTranspose, Gemm, MatMul, Einsum."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from onnxcompress.passes.recovery.torch_operators.padding import Pads, Window, input_pads, pad_spatial, symmetric
from onnxcompress.passes.recovery.torch_operators.registry import Call, operator

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_CONV_TRANSPOSE = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


@operator("Conv")
def conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    window = Window.of(call, weight.shape[2:])
    if len(window.kernel) not in _CONV:
        raise call.unsupported(f"{len(window.kernel)} spatial dimensions")
    x, padding = symmetric(x, input_pads(call, window, x.shape[2:]))
    convolve = _CONV[len(window.kernel)]
    return convolve(x, weight, bias, window.strides, padding, window.dilations, call.whole("group", 1))


@operator("ConvTranspose")
def conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    window = Window.of(call, weight.shape[2:])
    rank = len(window.kernel)
    if rank not in _CONV_TRANSPOSE:
        raise call.unsupported(f"{rank} spatial dimensions")
    convolve = _CONV_TRANSPOSE[rank]
    full = convolve(x, weight, None, window.strides, 0, 0, call.whole("group", 1), window.dilations)
    further = call.wholes("output_padding", [0] * rank) or []
    pads = _transposed_pads(call, window, x, full, further)
    # Padding of the output is cropping; output_padding adds places that no input reaches.
    cropped = pad_spatial(full, [(-begin, more - end) for (begin, end), more in zip(pads, further, strict=True)])
    return cropped if bias is None else cropped + bias.reshape(-1, *[1] * rank)


def _transposed_pads(call: Call, window: Window, x: Tensor, full: Tensor, further: list[int]) -> Pads:
    mode, wanted = call.text("auto_pad", "NOTSET"), call.wholes("output_shape")
    if wanted is None and mode in ("NOTSET", "VALID"):
        return input_pads(call, window, x.shape[2:])
    if wanted is None:
        wanted = [size * stride for size, stride in zip(x.shape[2:], window.strides, strict=True)]
    pads = []
    for size, more, length in zip(full.shape[2:], further, wanted[-len(further) :], strict=True):
        total = size + more - length
        pads.append((total // 2, total - total // 2) if mode == "SAME_UPPER" else (total - total // 2, total // 2))
    return pads


@operator("Gemm")
def gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    alpha, beta = call.number("alpha", 1.0), call.number("beta", 1.0)
    a = a.t() if call.whole("transA", 0) else a
    weight = b if call.whole("transB", 0) else b.t()
    product = functional.linear(a, weight)
    if alpha != 1.0:
        product = product * alpha
    if c is None:
        return product
    return product + (c if beta == 1.0 else c * beta)


@operator("MatMul")
def matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@operator("Einsum")
def einsum(call: Call, *operands: Tensor) -> Tensor:
    product: Tensor = torch.einsum(call.text("equation", ""), *operands)
    return product
