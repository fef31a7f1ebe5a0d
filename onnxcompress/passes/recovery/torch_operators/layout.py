"""Operators that move, join and cut values without computing with them."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from onnxcompress.passes.recovery.torch_operators.arithmetic import on_one_device
from onnxcompress.passes.recovery.torch_operators.registry import Call, operator


def integers(tensor: Tensor) -> list[int]:
    """Return a tensor of shape arithmetic as plain integers."""
    return [int(value) for value in tensor.reshape(-1).tolist()]


def axes_of(call: Call, axes: Tensor | None) -> list[int] | None:
    """Return `axes`, which newer opsets pass as an input and older ones as an attribute."""
    return call.wholes("axes") if axes is None else integers(axes)


@operator("Identity")
def identity(call: Call, x: Tensor) -> Tensor:
    return x


@operator("Dropout")
def dropout(call: Call, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None) -> Tensor:
    """Pass the input on, also while training: the network is trained as it will be used."""
    if call.outputs > 1 or (training is not None and bool(training)):
        raise call.unsupported("its mask in use or training_mode")
    return x


@operator("Concat")
def concat(call: Call, *tensors: Tensor) -> Tensor:
    return torch.cat(on_one_device(*tensors), call.whole("axis", 1))


@operator("Split")
def split(call: Call, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = call.whole("axis", 0)
    given = call.wholes("split") if sizes is None else integers(sizes)
    if given is None:
        # As many equal parts as there are outputs, read or not; of unequal ones the last is smaller.
        parts = call.whole("num_outputs", call.declared)
        ends = [min(part * -(-x.shape[axis] // parts), x.shape[axis]) for part in range(parts + 1)]
        given = [end - start for start, end in pairwise(ends)]
    return torch.split(x, given, axis)


@operator("Transpose")
def transpose(call: Call, x: Tensor) -> Tensor:
    return x.permute(call.wholes("perm", range(x.dim())[::-1]) or [])


@operator("Reshape")
def reshape(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    wanted = integers(shape)
    if not call.whole("allowzero", 0):
        wanted = [x.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    return x.reshape(wanted)


@operator("Flatten")
def flatten(call: Call, x: Tensor) -> Tensor:
    axis = call.whole("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), -1)


@operator("Squeeze")
def squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    given = axes_of(call, axes)
    chosen = {axis % x.dim() for axis in given} if given is not None else {a for a, s in enumerate(x.shape) if s == 1}
    return x.reshape([size for axis, size in enumerate(x.shape) if axis not in chosen])


@operator("Unsqueeze")
def unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    given = axes_of(call, axes) or []
    rank = x.dim() + len(given)
    for axis in sorted(axis % rank for axis in given):
        x = x.unsqueeze(axis)
    return x


@operator("Expand")
def expand(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(integers(shape))))


@operator("Tile")
def tile(call: Call, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(integers(repeats))


@operator("DepthToSpace")
def depth_to_space(call: Call, x: Tensor) -> Tensor:
    block = call.whole("blocksize", 1)
    batch, channels, height, width = x.shape
    depth = channels // block**2
    if call.text("mode", "DCR") == "DCR":
        moved = x.reshape(batch, block, block, depth, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        moved = x.reshape(batch, depth, block, block, height, width).permute(0, 1, 4, 2, 5, 3)
    return moved.reshape(batch, depth, height * block, width * block)


@operator("SpaceToDepth")
def space_to_depth(call: Call, x: Tensor) -> Tensor:
    block = call.whole("blocksize", 1)
    batch, channels, height, width = x.shape
    cut = x.reshape(batch, channels, height // block, block, width // block, block)
    order = (0, 3, 5, 1, 2, 4) if call.text("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return cut.permute(order).reshape(batch, -1, height // block, width // block)
