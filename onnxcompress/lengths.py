"""Lengths that shape inference leaves open and the number of elements gives: a Reshape has as many as its input.

onnx's inference gives a length that it does not know a symbol, a new one for every -1 and for every computed entry of a
Reshape's target. `[batch, -1, height, width]`, read from Shape, then hides a count of channels that does not depend on
the input, and `[-1, 14, length]` the batch. With lengths as products of numbers and symbols, a single new symbol in a
Reshape's output is the input's product divided by that of the other lengths. Of several, as in `[batch, height, width,
-1]` with all three read from Shape, the channels are told by the layer that reads them: its weight has as many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import onnx

Dim = int | str | None
Shape = tuple[Dim, ...]

_KEEP_ELEMENTS = frozenset({"Reshape", "Flatten"})

_SUMMED = {"Conv": (1, 1), "ConvTranspose": (1, 0), "Gemm": (1, 0), "MatMul": (-1, 0)}
"""The axis of the first input that an operator sums over, and the axis of its weight that is as long (by the group)."""


@dataclass(frozen=True)
class Product:
    """A number times powers of symbols."""

    number: Fraction
    powers: tuple[tuple[str, int], ...]

    @property
    def dim(self) -> Dim:
        """The product as a length: a number or one symbol; None where it is neither."""
        if not self.powers:
            return int(self.number) if self.number.denominator == 1 else None
        return self.powers[0][0] if self.number == 1 and [power for _, power in self.powers] == [1] else None


def may_agree(first: Shape | None, second: Shape | None) -> bool:
    """Whether two shapes may be of one tensor: of one rank, and with equal numbers where both know one."""
    if first is None or second is None:
        return True
    return len(first) == len(second) and all(map(may_be_equal, first, second))


def may_be_equal(first: Dim, second: Dim) -> bool:
    """Whether two lengths may be the same: unless both are numbers, different ones."""
    return first == second or not (isinstance(first, int) and isinstance(second, int))


def open_lengths(graph: onnx.GraphProto, shapes: Mapping[str, Shape]) -> dict[str, Dim]:
    """Return {symbol: what it stands for} of the symbols that inference made for lengths of Reshapes and Flattens.

    Args:
        graph: nodes in topological order; symbols that its inputs and outputs declare keep their names.
        shapes: {tensor name: shape} as inferred.
    """
    declared = (dim for info in (*graph.input, *graph.output) for dim in info.type.tensor_type.shape.dim)
    seen: set[Dim] = {dim.dim_param for dim in declared}
    summed = _summed(graph, shapes)
    meaning = {symbol: Product(Fraction(size), ()) for symbol, size in summed.items() if symbol not in seen}
    seen.update(meaning)
    for node in graph.node:
        if node.op_type in _KEEP_ELEMENTS and node.domain in ("", "ai.onnx") and node.input and node.output:
            before, after = shapes.get(node.input[0]), shapes.get(node.output[0])
            new = [dim for dim in after or () if isinstance(dim, str) and dim not in seen]
            if before is not None and after is not None and len(new) == 1:
                found = _quotient(before, [dim for dim in after if dim != new[0]], meaning)
                if found is not None:
                    meaning[new[0]] = found
        for name in node.output:
            seen.update(shapes.get(name, ()))
    found_dims = {symbol: product.dim for symbol, product in meaning.items()}
    return {symbol: dim for symbol, dim in found_dims.items() if dim is not None}


def _summed(graph: onnx.GraphProto, shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Return {symbol: number} of the lengths that a layer sums over: its weight has as many inputs."""
    stored = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    found: dict[str, int] = {}
    for node in graph.node:
        if node.op_type not in _SUMMED or node.domain not in ("", "ai.onnx"):
            continue
        data, weight = (stored.get(name) or shapes.get(name) for name in node.input[:2])
        axis, place = _SUMMED[node.op_type]
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        if attributes.get("transA", 0) or not data or not weight or (node.op_type == "MatMul" and len(weight) != 2):
            continue
        length, size = data[axis], weight[1 - place if attributes.get("transB", 0) else place]
        if isinstance(length, str) and isinstance(size, int):
            found[length] = size * (attributes.get("group", 1) if node.op_type == "Conv" else 1)
    return found


def _quotient(before: Shape, others: list[Dim], meaning: Mapping[str, Product]) -> Product | None:
    number, powers = Fraction(1), Counter[str]()
    for dims, sign in ((before, 1), (others, -1)):
        for dim in dims:
            if dim is None or dim == 0:
                return None
            factor = Product(Fraction(dim), ()) if isinstance(dim, int) else meaning.get(dim)
            factor = factor or Product(Fraction(1), ((str(dim), 1),))
            number *= factor.number**sign
            for symbol, power in factor.powers:
                powers[symbol] += sign * power
    return Product(number, tuple(sorted((symbol, power) for symbol, power in powers.items() if power)))
