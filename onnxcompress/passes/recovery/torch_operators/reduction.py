"""Reductions over axes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from onnxcompress.passes.recovery.torch_operators.layout import axes_of
from onnxcompress.passes.recovery.torch_operators.registry import OPERATORS, Call, operator

_OF_WHOLE_NUMBERS = ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceSumSquare")
"""torch computes the others of real numbers only."""


def _reduction(name: str, function: Callable[[Tensor, list[int]], Tensor]) -> None:
    """Register a reduction; `function` keeps the reduced axes with length 1. Of whole numbers it is a whole one."""

    def reduce(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
        given = axes_of(call, axes)
        if not given:
            if call.whole("noop_with_empty_axes", 0):
                # Nothing is summed, but a square is still taken of each number.
                return reduced_along(x[None], [0])[0]
            given = list(range(x.dim()))
        along = sorted(axis % x.dim() for axis in given)
        reduced = reduced_along(x, along)
        if call.whole("keepdims", 1):
            return reduced
        return reduced.reshape([size for axis, size in enumerate(x.shape) if axis not in along])

    def reduced_along(x: Tensor, axes: list[int]) -> Tensor:
        if x.is_floating_point():
            return function(x, axes)
        return function(x if name in _OF_WHOLE_NUMBERS else x.double(), axes).to(x.dtype)  # cut off, as everywhere

    OPERATORS[name] = reduce


def _product(x: Tensor, axes: list[int]) -> Tensor:
    for axis in axes:
        x = x.prod(axis, keepdim=True)
    return x


_reduction("ReduceMean", lambda x, axes: x.mean(axes, keepdim=True))
_reduction("ReduceSum", lambda x, axes: x.sum(axes, keepdim=True, dtype=x.dtype))
_reduction("ReduceMax", lambda x, axes: x.amax(axes, keepdim=True))
_reduction("ReduceMin", lambda x, axes: x.amin(axes, keepdim=True))
_reduction("ReduceProd", _product)
_reduction("ReduceL1", lambda x, axes: x.abs().sum(axes, keepdim=True))
_reduction("ReduceL2", lambda x, axes: torch.linalg.vector_norm(x, 2, axes, keepdim=True))
_reduction("ReduceSumSquare", lambda x, axes: x.square().sum(axes, keepdim=True))
_reduction("ReduceLogSum", lambda x, axes: x.sum(axes, keepdim=True).log())
_reduction("ReduceLogSumExp", lambda x, axes: x.logsumexp(axes, keepdim=True))


@operator("ArgMax")
def argmax(call: Call, x: Tensor) -> Tensor:
    _refuse_last(call)
    return x.argmax(call.whole("axis", 0), keepdim=bool(call.whole("keepdims", 1)))


@operator("ArgMin")
def argmin(call: Call, x: Tensor) -> Tensor:
    _refuse_last(call)
    return x.argmin(call.whole("axis", 0), keepdim=bool(call.whole("keepdims", 1)))


def _refuse_last(call: Call) -> None:
    if call.whole("select_last_index", 0):
        raise call.unsupported("select_last_index")
