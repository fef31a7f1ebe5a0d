"""MaxPool, AveragePool, LpPool and their global forms, with any padding and `ceil_mode`."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from onnxcompress.passes.recovery.torch_operators.padding import (
    Pads,
    Window,
    ceil_extra,
    input_pads,
    pad_spatial,
    symmetric,
)
from onnxcompress.passes.recovery.torch_operators.registry import Call, operator

_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


@operator("MaxPool")
def max_pool(call: Call, x: Tensor) -> Tensor:
    if call.outputs > 1:
        raise call.unsupported("its output of indices in use")
    window, pads, extra = _geometry(call, x)
    pads = [(begin, end + more) for (begin, end), more in zip(pads, extra, strict=True)]
    # torch takes padding of at most half a kernel.
    narrow = all(2 * end <= kernel for (_, end), kernel in zip(pads, window.kernel, strict=True))
    x, padding = symmetric(x, pads, -math.inf) if narrow else (pad_spatial(x, pads, -math.inf), [0] * len(pads))
    pooled: Tensor = _MAX[len(pads)](x, window.kernel, window.strides, padding, window.dilations)
    return pooled


@operator("AveragePool")
def average_pool(call: Call, x: Tensor) -> Tensor:
    window, pads, extra = _geometry(call, x)
    if any(dilation != 1 for dilation in window.dilations):
        raise call.unsupported("dilations")
    average = _AVERAGE[len(pads)]
    include = bool(call.whole("count_include_pad", 0))
    if all(begin == end for begin, end in pads) and not any(extra):
        padding = [begin for begin, _ in pads]
        if all(2 * pad <= kernel for pad, kernel in zip(padding, window.kernel, strict=True)):
            return average(x, window.kernel, window.strides, padding, count_include_pad=include)
    # Mean over the window with zeros, divided by the share of its places that count.
    counted = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    counted = pad_spatial(counted, pads, 1.0 if include else 0.0)
    beyond: Pads = [(0, more) for more in extra]
    padded = pad_spatial(pad_spatial(x, pads), beyond)
    share = average(pad_spatial(counted, beyond), window.kernel, window.strides)
    return average(padded, window.kernel, window.strides) / share


@operator("LpPool")
def lp_pool(call: Call, x: Tensor) -> Tensor:
    window, pads, extra = _geometry(call, x)
    if any(dilation != 1 for dilation in window.dilations):
        raise call.unsupported("dilations")
    p = call.number("p", 2)
    powers = pad_spatial(x.abs() ** p, [(b, e + more) for (b, e), more in zip(pads, extra, strict=True)])
    mean = _AVERAGE[len(pads)](powers, window.kernel, window.strides)
    return (mean * math.prod(window.kernel)) ** (1.0 / p)


def _geometry(call: Call, x: Tensor) -> tuple[Window, Pads, list[int]]:
    window = Window.of(call, call.wholes("kernel_shape") or [])
    if len(window.kernel) not in _MAX:
        raise call.unsupported(f"{len(window.kernel)} spatial dimensions")
    pads = input_pads(call, window, x.shape[2:])
    is_ceil = bool(call.whole("ceil_mode", 0)) and call.text("auto_pad", "NOTSET") == "NOTSET"
    return window, pads, ceil_extra(window, pads, x.shape[2:]) if is_ceil else [0] * len(pads)


def _spatial(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))


@operator("GlobalAveragePool")
def global_average_pool(call: Call, x: Tensor) -> Tensor:
    return x.mean(_spatial(x), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(call: Call, x: Tensor) -> Tensor:
    return x.amax(_spatial(x), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(call: Call, x: Tensor) -> Tensor:
    p = call.number("p", 2)
    return (x.abs() ** p).sum(_spatial(x), keepdim=True) ** (1.0 / p)
