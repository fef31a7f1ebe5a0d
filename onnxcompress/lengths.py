"""Lengths that shape inference leaves open and the number of elements gives: a Reshape has as many as its input.

onnx's inference gives a length that it does not know a symbol, a new one for every -1 and for every computed entry of a
Reshape's target. `[batch, -1, height, width]`, read from Shape, then hides a count of channels that does not depend on
the input, and `[-1, 14, length]` the batch. With lengths as products of numbers and symbols, a single new symbol in a
Reshape's output is the input's product divided by that of the other lengths. Entries of a target that are products
of lengths themselves (`[batch * frames, channels, -1]`) are followed through what computes them. Where operands meet
along lengths that turn out to be one, the result has that one; an Expand's has the entries of its target. Of several
symbols, as in `[batch, height, width, -1]` with all three read from Shape, the channels are told by the layer that
reads them: its weight has as many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import onnx

from onnxcompress.operators import BROADCASTING, is_standard

Dim = int | str | None
Shape = tuple[Dim, ...]

_KEEP_ELEMENTS = frozenset({"Reshape", "Flatten"})
_HAND_ON = frozenset({"Cast", "Identity", "Squeeze", "Unsqueeze"})
_MEETING = BROADCASTING | {"Concat", "MatMul"}
_WHOLE = (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL)
_MOST_ENTRIES = 64

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
    """Return {symbol: what it stands for} of the symbols that inference made for lengths that follow from others.

    Args:
        graph: nodes in topological order; symbols that its inputs and outputs declare keep their names.
        shapes: {tensor name: shape} as inferred.
    """
    shapes = {**{tensor.name: tuple(tensor.dims) for tensor in graph.initializer}, **shapes}
    declared = (dim for info in (*graph.input, *graph.output) for dim in info.type.tensor_type.shape.dim)
    seen: set[Dim] = {dim.dim_param for dim in declared}
    summed = _summed(graph, shapes)
    meaning = {symbol: Product(Fraction(size), ()) for symbol, size in summed.items() if symbol not in seen}
    seen.update(meaning)
    vectors = {tensor.name: entries for tensor in graph.initializer if (entries := _constant(tensor)) is not None}
    for node in graph.node:
        _follow(node, shapes, meaning, vectors)
        meaning.update(_met(node, shapes, meaning, seen))
        if node.op_type == "Expand" and is_standard(node):
            meaning.update(_expanded(node, shapes, vectors, seen))
        if node.op_type in _KEEP_ELEMENTS and is_standard(node) and node.input and node.output:
            before, after = shapes.get(node.input[0]), shapes.get(node.output[0])
            new = [dim for dim in after or () if isinstance(dim, str) and dim not in seen]
            target = vectors.get(node.input[1], []) if node.op_type == "Reshape" and len(node.input) > 1 else []
            if after is not None and len(target) == len(after):
                told = {d: e for d, e in zip(after, target, strict=True) if d in new and e is not None and e.number > 0}
                meaning.update({str(dim): entry for dim, entry in told.items()})
                new = [dim for dim in new if dim not in told]
            if before is not None and after is not None and len(new) == 1:
                found = _quotient(before, [dim for dim in after if dim != new[0]], meaning)
                if found is not None:
                    meaning[new[0]] = found
        for name in node.output:
            seen.update(shapes.get(name, ()))
    return _named(meaning)


def _named(meaning: Mapping[str, Product]) -> dict[str, Dim]:
    """Return {symbol: number, or symbol that stands for the same}, without those that are the first to stand for it."""
    first: dict[Product, str] = {}
    named: dict[str, Dim] = {}
    for symbol, product in meaning.items():
        dim = product.dim if product.dim is not None else first.setdefault(product, symbol)
        if dim != symbol:
            named[symbol] = dim
    return named


def _summed(graph: onnx.GraphProto, shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Return {symbol: number} of the lengths that a layer sums over: its weight has as many inputs."""
    stored = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    found: dict[str, int] = {}
    for node in graph.node:
        if node.op_type not in _SUMMED or not is_standard(node):
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


def _met(
    node: onnx.NodeProto, shapes: Mapping[str, Shape], meaning: Mapping[str, Product], seen: Collection[Dim]
) -> dict[str, Product]:
    """Return what new symbols stand for in the output of operands that meet along them: what all stand for there."""
    before, after = [shapes.get(name) for name in node.input], shapes.get(node.output[0]) if node.output else None
    if not is_standard(node) or node.op_type not in _MEETING or after is None or None in before:
        return {}
    own = {1, 2} if node.op_type == "MatMul" else set()
    if node.op_type == "Concat":
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        own = {-axis if axis < 0 else len(after) - axis}
    if any(len(shape or ()) < max(own, default=0) for shape in before):
        return {}
    found: dict[str, Product] = {}
    for place in range(1, len(after) + 1):
        symbol = after[-place]
        if place in own or not isinstance(symbol, str) or symbol in seen:
            continue
        met = [_product(shape[-place], meaning) for shape in before if shape is not None and len(shape) >= place]
        longer = [product for product in met if product != Product(Fraction(1), ())]
        if longer and longer[0] is not None and all(product == longer[0] for product in longer):
            found[symbol] = longer[0]
    return found


def _expanded(
    node: onnx.NodeProto,
    shapes: Mapping[str, Shape],
    vectors: Mapping[str, list[Product | None]],
    seen: Collection[Dim],
) -> dict[str, Product]:
    """Return what new symbols in the output of Expand stand for: the target's entry, where the input is one long."""
    before, after, target = shapes.get(node.input[0]), shapes.get(node.output[0], ()), vectors.get(node.input[1], [])
    if before is None:
        return {}
    found: dict[str, Product] = {}
    for place in range(1, min(len(after), len(target)) + 1):
        symbol, entry = after[-place], target[-place]
        is_new = isinstance(symbol, str) and symbol not in seen
        if is_new and entry is not None and entry.number > 0 and (place > len(before) or before[-place] == 1):
            found[str(symbol)] = entry
    return found


def _quotient(before: Shape, others: list[Dim], meaning: Mapping[str, Product]) -> Product | None:
    return _ratio([_product(dim, meaning) for dim in before], [_product(dim, meaning) for dim in others])


def _product(dim: Dim, meaning: Mapping[str, Product]) -> Product | None:
    if dim is None or isinstance(dim, int):
        return None if dim is None else Product(Fraction(dim), ())
    return meaning.get(dim, Product(Fraction(1), ((dim, 1),)))


def _ratio(factors: Sequence[Product | None], divisors: Sequence[Product | None] = ()) -> Product | None:
    """Return the product of factors divided by that of divisors; None where one is not known, or 0."""
    number, powers = Fraction(1), Counter[str]()
    for products, sign in ((factors, 1), (divisors, -1)):
        for factor in products:
            if factor is None or factor.number == 0:
                return None
            number *= factor.number**sign
            for symbol, power in factor.powers:
                powers[symbol] += sign * power
    return Product(number, tuple(sorted((symbol, power) for symbol, power in powers.items() if power)))


def _constant(tensor: onnx.TensorProto) -> list[Product | None] | None:
    """Return the entries of a short vector of whole numbers."""
    if tensor.data_type not in _WHOLE or len(tensor.dims) > 1:
        return None
    if any(size > _MOST_ENTRIES for size in tensor.dims):
        return None
    return [Product(Fraction(int(value)), ()) for value in np.atleast_1d(onnx.numpy_helper.to_array(tensor))]


def _follow(
    node: onnx.NodeProto,
    shapes: Mapping[str, Shape],
    meaning: Mapping[str, Product],
    vectors: dict[str, list[Product | None]],
) -> None:
    """Note in `vectors` what a node makes of lengths: {tensor name: entries}, of scalars the only one."""
    if not is_standard(node) or not node.output or not node.input:
        return
    operands = [vectors.get(name) for name in node.input]
    first, second = operands[0], operands[1] if len(operands) > 1 else None
    if node.op_type == "Shape":
        shape, attributes = shapes.get(node.input[0]), {attribute.name: attribute.i for attribute in node.attribute}
        if shape is not None:
            part = shape[attributes.get("start", 0) : attributes.get("end")]
            vectors[node.output[0]] = [_product(dim, meaning) for dim in part]
    elif node.op_type in _HAND_ON and first is not None and len(shapes.get(node.output[0], (0, 0))) <= 1:
        vectors[node.output[0]] = first
    elif node.op_type == "Gather" and first is not None and second is not None:
        at = [int(entry.number) if entry is not None and not entry.powers else None for entry in second]
        if all(each is not None and -len(first) <= each < len(first) for each in at):
            vectors[node.output[0]] = [first[each] for each in at if each is not None]
    elif node.op_type == "Concat" and all(entries is not None for entries in operands):
        vectors[node.output[0]] = [entry for entries in operands for entry in entries or ()]
    elif node.op_type == "Where" and all(
        entries is not None and len(entries) == len(first or ()) for entries in operands
    ):
        chosen = zip(*(entries or () for entries in operands), strict=True)
        vectors[node.output[0]] = [
            None if which is None else one if which.number else other for which, one, other in chosen
        ]
    elif node.op_type == "Mul" and first is not None and second is not None and 1 in (len(first), len(second)):
        vectors[node.output[0]] = [_ratio([one, other]) for one in first for other in second]
