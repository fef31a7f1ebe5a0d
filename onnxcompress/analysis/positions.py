"""Integer tensors whose elements are a number plus a multiple of each position: what index arithmetic computes.

Exporters of strided views spell `n * C + c` as Range, Mul, Unsqueeze and Add, or as a constant where the lengths are
known. Where such indices count from 0 in row-major order, what is picked by them stays where it is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxcompress.analysis.shapes import ShapeValues
from onnxcompress.graph import Dim, Model, Shape
from onnxcompress.operators import is_standard

_MOST_NODES_BACK = 32
_LARGEST = 2**40


@dataclass(frozen=True)
class Positions:
    """A tensor that holds `offset + sum(strides[i] * position along axis i)`.

    Attributes:
        shape: its lengths, numbers or symbols.
        offset: the first element.
        strides: for each axis, 0 where it is one long.
    """

    shape: tuple[int | str, ...]
    offset: int
    strides: tuple[int, ...]

    @property
    def count_up(self) -> bool:
        """Whether the elements, in row-major order, are 0, 1, 2, …"""
        expected: int | None = 1
        for length, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if length == 1:
                continue
            if stride != expected:
                return False
            expected = expected * length if isinstance(length, int) else None
        return self.offset == 0


def positions(model: Model, shape_values: ShapeValues, tensor: gs.Tensor, depth: int = 0) -> Positions | None:
    """Return how a tensor's elements follow from their positions, None where that is not known."""
    if isinstance(tensor, gs.Constant):
        return _of_constant(model.values(tensor))
    node = tensor.inputs[0] if tensor.inputs else None
    if node is None or not is_standard(node) or depth > _MOST_NODES_BACK:
        return None
    if node.op == "Range":
        return _of_range(model, shape_values, node)
    if node.op in ("Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape"):
        found = positions(model, shape_values, node.inputs[0], depth + 1)
        return found if found is None or node.op in ("Identity", "Cast") else _reshaped(found, model.shape_of(tensor))
    if node.op not in ("Add", "Mul"):
        return None
    first, second = (positions(model, shape_values, operand, depth + 1) for operand in node.inputs)
    if first is None or second is None:
        return None
    return _sum(first, second) if node.op == "Add" else _product(first, second)


def same_number_of_elements(first: Shape, second: Shape) -> bool:
    """Whether two shapes are known to hold the same number of elements, whatever their symbols stand for."""
    if None in first or None in second:
        return False
    one, other = ([dim for dim in shape if isinstance(dim, int)] for shape in (first, second))
    symbols = [Counter(dim for dim in shape if isinstance(dim, str)) for shape in (first, second)]
    return int(np.prod(one, dtype=object)) == int(np.prod(other, dtype=object)) and symbols[0] == symbols[1]


def _of_constant(values: npt.NDArray[np.generic]) -> Positions | None:
    if values.dtype.kind not in "iu" or not values.size or np.abs(values.astype(np.float64)).max() > _LARGEST:
        return None
    whole = values.astype(np.int64)
    offset, strides, expected = int(whole.flat[0]), [], np.zeros((), np.int64)
    for axis, length in enumerate(whole.shape):
        second = tuple(int(other == axis) for other in range(whole.ndim))
        strides.append(int(whole[second]) - offset if length > 1 else 0)
        expected = expected[..., None] + strides[-1] * np.arange(length)
    return Positions(whole.shape, offset, tuple(strides)) if np.array_equal(whole, expected + offset) else None


def _of_range(model: Model, shape_values: ShapeValues, node: gs.Node) -> Positions | None:
    start, delta = (shape_values.values(node.inputs[position]) for position in (0, 2))
    origin = (shape_values.origin(node.inputs[1]) or (None,))[0]
    if start != (0,) or delta != (1,) or origin is None:
        return None
    length = (model.shape_of(origin[0]) or ())[origin[1]]
    return None if length is None else Positions((length,), 0, (1,))


def _reshaped(found: Positions, after: Shape | None) -> Positions | None:
    """Return the positions after axes of length one came or went."""
    kept = [(length, stride) for length, stride in zip(found.shape, found.strides, strict=True) if length != 1]
    longer = [dim for dim in after or () if dim != 1]
    symbols = [length for length, _ in kept if isinstance(length, str)]
    fits = len(longer) == len(kept) and len(symbols) <= 1
    # With one length open, that is the same one: the number of elements is.
    if after is None or not fits or any(isinstance(k, int) and k != a for (k, _), a in zip(kept, longer, strict=True)):
        return None
    rest = iter(kept)
    lengths, strides = zip(*((1, 0) if dim == 1 else next(rest) for dim in after), strict=True) if after else ((), ())
    return Positions(tuple(lengths), found.offset, tuple(strides))


def _sum(first: Positions, second: Positions) -> Positions | None:
    rank = max(len(first.shape), len(second.shape))
    shape: list[int | str] = []
    for one, other in zip(_aligned(first.shape, rank, 1), _aligned(second.shape, rank, 1), strict=True):
        if one != other and 1 not in (one, other):
            return None
        shape.append(other if one == 1 else one)
    pairs = zip(_aligned(first.strides, rank, 0), _aligned(second.strides, rank, 0), strict=True)
    return Positions(tuple(shape), first.offset + second.offset, tuple(one + other for one, other in pairs))


def _product(first: Positions, second: Positions) -> Positions | None:
    """Multiply by a single number."""
    for one, factor in ((first, second), (second, first)):
        if all(length == 1 for length in factor.shape) and len(factor.shape) <= len(one.shape):
            return Positions(one.shape, one.offset * factor.offset, tuple(s * factor.offset for s in one.strides))
    return None


def _aligned(values: tuple[Dim, ...] | tuple[int, ...], rank: int, fill: int) -> list[int]:
    return [fill] * (rank - len(values)) + list(values)  # type: ignore[arg-type]
