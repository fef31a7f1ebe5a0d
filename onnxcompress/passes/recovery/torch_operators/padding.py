"""Where a sliding window starts and ends: `pads`, `auto_pad` and `ceil_mode` as ONNX defines them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from onnxcompress.passes.recovery.torch_operators.registry import Call
from onnxcompress.runtime.patches import same_pads

Pads = list[tuple[int, int]]
"""(begin, end) of each spatial dimension."""


@dataclass(frozen=True)
class Window:
    """A sliding window: one number for each spatial dimension."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]

    @classmethod
    def of(cls, call: Call, kernel: Sequence[int]) -> Window:
        """Read strides and dilations of a node."""
        ones = [1] * len(kernel)
        return cls(list(kernel), call.wholes("strides", ones) or ones, call.wholes("dilations", ones) or ones)

    @property
    def reach(self) -> list[int]:
        """The length that the kernel spans, dilated."""
        return [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]


def input_pads(call: Call, window: Window, sizes: Sequence[int]) -> Pads:
    """Return the padding of a convolution or pooling over an input of these spatial sizes."""
    rank = len(window.kernel)
    mode = call.text("auto_pad", "NOTSET")
    if mode == "VALID":
        return [(0, 0)] * rank
    if mode == "NOTSET":
        flat: Sequence[int] = call.wholes("pads", [0] * (2 * rank)) or []
    else:
        flat = same_pads(sizes, window.kernel, window.strides, window.dilations, upper=mode == "SAME_UPPER")
    return list(zip(flat[:rank], flat[rank:], strict=True))


def ceil_extra(window: Window, pads: Pads, sizes: Sequence[int]) -> list[int]:
    """Return how much further each dimension reaches with `ceil_mode`: the last window may stick out.

    A window that would start in the padding at the end is not computed.
    """
    extra = []
    for (begin, end), size, reach, stride in zip(pads, sizes, window.reach, window.strides, strict=True):
        steps = -(-(size + begin + end - reach) // stride)
        if steps * stride >= size + begin:
            steps -= 1
        extra.append(max(0, steps * stride + reach - (size + begin + end)))
    return extra


def pad_spatial(x: Tensor, pads: Pads, value: float = 0.0) -> Tensor:
    """Pad the spatial dimensions of (B, C, ...); negative numbers crop."""
    if all(pad == (0, 0) for pad in pads):
        return x
    return functional.pad(x, [each for pad in reversed(pads) for each in pad], value=value)


def symmetric(x: Tensor, pads: Pads, value: float = 0.0) -> tuple[Tensor, list[int]]:
    """Return the input and the padding that torch's kernels still have to add: theirs is the same on both sides."""
    if all(begin == end for begin, end in pads):
        return x, [begin for begin, _ in pads]
    return pad_spatial(x, pads, value), [0] * len(pads)
