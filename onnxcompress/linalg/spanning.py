"""Kernels of which an input factor spans some axes, and the core the others.

What it spans is written as a number: n are the first n axes, -n the last n, 0 none. Of two axes, 1 is a kH x 1 factor
in front of a 1 x kW core, -1 a 1 x kW factor in front of a kH x 1 core.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Number = TypeVar("Number", bound=np.generic)


def spanned_axes(spans: int, count: int) -> range:
    """Return which of so many axes are spanned."""
    return range(spans) if spans >= 0 else range(count + spans, count)


def spannable(kernel: Sequence[int]) -> tuple[int, ...]:
    """Return all that an input factor may span of a kernel, besides none: more than one position, and not all."""
    count = len(kernel)
    either = [spans for at in range(1, count) for spans in (at, at - count)]
    return tuple(spans for spans in either if 1 < spanned_positions(kernel, spans) < math.prod(kernel))


def spanned_positions(kernel: Sequence[int], spans: int) -> int:
    """Return how many positions of a kernel the input factor spans."""
    return math.prod(kernel[axis] for axis in spanned_axes(spans, len(kernel)))


def parted_kernel(kernel: Sequence[int], spans: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the kernels of the input factor and of the core, each 1 along the axes of the other."""
    axes = spanned_axes(spans, len(kernel))
    first = tuple(size if axis in axes else 1 for axis, size in enumerate(kernel))
    return first, tuple(1 if axis in axes else size for axis, size in enumerate(kernel))


def joined_kernel(
    product: npt.NDArray[Number], at: int, first: Sequence[int], core: Sequence[int]
) -> npt.NDArray[Number]:
    """Return a product of both with the positions of the whole kernel in the place of theirs.

    Args:
        product: (..., positions of the input factor, positions of the core, ...).
        at: the first of these two axes.
        first, core: their kernels, as `parted_kernel` gives them.
    """
    before, behind = product.shape[:at], product.shape[at + 2 :]
    apart = product.reshape(*before, *first, *core, *behind)
    pairs = [at + axis + half for axis in range(len(first)) for half in (0, len(first))]
    order = [*range(at), *pairs, *range(at + len(pairs), apart.ndim)]
    joined: npt.NDArray[Number] = apart.transpose(order).reshape(*before, -1, *behind)
    return joined


def spanned_last(rows: npt.NDArray[Any], kernel: Sequence[int], spans: int) -> npt.NDArray[Any]:
    """Return features (..., K I) in the order of an input factor that spans axes of the kernel.

    The kernel's positions K, then channels, become the positions of the other axes, then the spanned ones and channels:
    what is left of the kernel, and the features that the input factor maps.
    """
    if spans <= 0:  # the last axes stand there
        return rows
    apart = rows.reshape(*rows.shape[:-1], math.prod(kernel[:spans]), math.prod(kernel[spans:]), -1)
    return np.ascontiguousarray(np.moveaxis(apart, -3, -2)).reshape(rows.shape)
