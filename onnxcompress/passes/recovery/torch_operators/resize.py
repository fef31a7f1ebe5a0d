"""Resize and Upsample, axis by axis: an output is a weighted sum of a few inputs along each axis.

torch's own interpolation has only some of ONNX's coordinate and rounding rules.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onnxcompress.passes.recovery.torch_operators.layout import integers
from onnxcompress.passes.recovery.torch_operators.registry import Call, operator

Taps = tuple[Tensor, Tensor]
"""Positions int64 (outputs, taps) and weights (outputs, taps)."""

_FIRST_RESIZE = 10  # its only input besides the data is `scales`, and it counts as Upsample does


@operator("Resize", "Upsample")
def resize(
    call: Call, x: Tensor, second: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None
) -> Tensor:
    old = call.op == "Upsample" or call.opset <= _FIRST_RESIZE
    if old:
        scales = second if second is not None else torch.tensor(call.attributes["scales"])
    if call.whole("antialias", 0) or call.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise call.unsupported("antialias or keep_aspect_ratio_policy")
    given = x.dtype
    x = x if x.is_floating_point() or call.text("mode", "nearest") == "nearest" else x.float()
    axes = [axis % x.dim() for axis in call.wholes("axes", range(x.dim())) or []]
    for axis, (length, scale) in zip(axes, _targets(x, axes, scales, sizes), strict=True):
        if length != x.shape[axis] or scale != 1.0:
            x = _interpolate(x, axis, _taps(call, x.shape[axis], length, scale, old))
    return x.to(given)  # whole numbers are cut off, as onnxruntime does


def _targets(x: Tensor, axes: list[int], scales: Tensor | None, sizes: Tensor | None) -> list[tuple[int, float]]:
    """Return (length, scale) for each axis."""
    if sizes is not None and sizes.numel():
        return [(length, length / x.shape[axis]) for axis, length in zip(axes, integers(sizes), strict=True)]
    assert scales is not None
    factors = [float(scale) for scale in scales.tolist()]
    # In float32, as onnxruntime and onnx's shapes have it: ten times 1.3 is 13 there, and just below it in float64.
    lengths = [int(x.shape[axis] * scale) for axis, scale in zip(axes, scales.to(torch.float32), strict=True)]
    return list(zip(lengths, factors, strict=True))


def _interpolate(x: Tensor, axis: int, taps: Taps) -> Tensor:
    positions, weights = taps[0].to(x.device), taps[1].to(x.device, x.dtype)
    shape = [1] * x.dim()
    shape[axis] = -1
    if positions.shape[1] == 1:
        return x.index_select(axis, positions[:, 0])
    parts = [
        x.index_select(axis, positions[:, tap]) * weights[:, tap].reshape(shape) for tap in range(positions.shape[1])
    ]
    return torch.stack(parts).sum(0)


def _taps(call: Call, size: int, length: int, scale: float, old: bool) -> Taps:
    mode = call.text("mode", "nearest")
    coordinates = _coordinates(call, size, length, scale, old)
    if mode == "nearest":
        nearest = _rounded(call, coordinates, "floor" if old else call.text("nearest_mode", "round_prefer_floor"))
        return nearest.clamp(0, size - 1).to(torch.int64)[:, None], torch.ones(length, 1)
    below = coordinates.floor()
    part = (coordinates - below)[:, None]
    if mode == "linear":
        offsets, weights = torch.arange(2), torch.cat([1 - part, part], 1)
    elif mode == "cubic":
        offsets, weights = torch.arange(-1, 3), _cubic(part, call.number("cubic_coeff_a", -0.75))
    else:
        raise call.unsupported(f"mode '{mode}'")
    positions = below.to(torch.int64)[:, None] + offsets
    if call.whole("exclude_outside", 0):
        weights = weights * ((positions >= 0) & (positions < size))
        weights = weights / weights.sum(1, keepdim=True)
    return positions.clamp(0, size - 1), weights


def _coordinates(call: Call, size: int, length: int, scale: float, old: bool) -> Tensor:
    """Return where each output lies in the input, (length,).

    In float32, as onnxruntime does: 8 / 1.6 is 5 there, and just below it with the same scale in float64.
    """
    mode = "asymmetric" if old else call.text("coordinate_transformation_mode", "half_pixel")
    places = torch.arange(length, dtype=torch.float32)
    if mode == "asymmetric":
        return places / scale
    if mode == "align_corners":
        return places * (size - 1) / (length - 1) if length > 1 else places * 0
    if mode == "pytorch_half_pixel" and length == 1:
        return places * 0
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return (places + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        exact = scale * size
        return size / 2 * (1 - length / exact) + (places + 0.5) / scale - 0.5
    raise call.unsupported(f"coordinate_transformation_mode '{mode}'")


def _rounded(call: Call, coordinates: Tensor, mode: str) -> Tensor:
    if mode == "floor":
        return coordinates.floor()
    if mode == "ceil":
        return coordinates.ceil()
    if mode == "round_prefer_floor":
        return (coordinates - 0.5).ceil()
    if mode == "round_prefer_ceil":
        return (coordinates + 0.5).floor()
    raise call.unsupported(f"nearest_mode '{mode}'")


def _cubic(part: Tensor, a: float) -> Tensor:
    """Return the weights of the four neighbours at distances 1 + part, part, 1 - part, 2 - part (Keys, 1981)."""

    def near(d: Tensor) -> Tensor:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: Tensor) -> Tensor:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return torch.cat([far(1 + part), near(part), near(1 - part), far(2 - part)], 1)
