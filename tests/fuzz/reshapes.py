"""Targets of Reshape in the forms that exporters write them: constant, with 0 and -1, or computed from Shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tests.fuzz.builder import Builder, Value


@dataclass(frozen=True)
class Length:
    """A length of the target: the product of these axes of some tensor, divided by `by`; `by` itself without axes."""

    axes: tuple[int, ...] = ()
    by: int = 1

    def of(self, like: Value) -> int:
        return int(np.prod([like.shape[a] for a in self.axes])) // self.by if self.axes else self.by


def fixed(length: int) -> Length:
    return Length((), length)


def same(axis: int, by: int = 1) -> Length:
    return Length((axis,), by)


def rest(*axes: int, by: int = 1) -> Length:
    return Length(axes, by)


def spatial_of(value: Value) -> list[Length]:
    """Return the lengths of a map's spatial axes."""
    return [same(axis) for axis in range(2, len(value.shape))]


def reshape(b: Builder, source: Value, lengths: Sequence[Length], like: Value | None = None) -> Value:
    """Reshape `source` to lengths of `like` (of itself without)."""
    like = like or source
    return b.op("Reshape", [source, _target(b, source, like, lengths)], [length.of(like) for length in lengths])


def _target(b: Builder, source: Value, like: Value, lengths: Sequence[Length]) -> Value | str:
    numbers = [length.of(like) for length in lengths]
    open_places = [at for at, n in enumerate(lengths) if any(b.is_open(like, axis) for axis in n.axes)]
    copied = [
        n.axes == (at,) and n.by == 1 and (like is source or (at == 0 and source.shape[0] == like.shape[0]))
        for at, n in enumerate(lengths)
    ]
    zeros: list[int] = [0 if copy else number for copy, number in zip(copied, numbers, strict=True)]
    left_open = [at for at in open_places if not copied[at]]
    forms = ["computed"]
    forms += ["zeros"] if len(left_open) <= 1 else []
    forms += ["minus one"] if len(open_places) <= 1 else []
    forms += ["constant"] if not open_places else []
    form = b.choices.pick(forms[::-1])
    if form == "constant":
        return b.ints(*numbers)
    if form == "zeros":
        return b.ints(*[-1 if at in left_open else number for at, number in enumerate(zeros)])
    if form == "minus one":
        numbers[open_places[0] if open_places else b.choices.integer(0, len(numbers) - 1)] = -1
        return b.ints(*numbers)
    return computed(b, like, lengths, infer=b.choices.chance(30))


def computed(b: Builder, like: Value, lengths: Sequence[Length], *, infer: bool = False) -> Value:
    """Return the vector by Shape, Gather or Slice, Div and Concat; a product, or with `infer` another one, is -1."""
    shape = b.shape_of(like)
    products = [at for at, length in enumerate(lengths) if len(length.axes) > 1]
    inferred = products or ([b.choices.integer(0, len(lengths) - 1)] if infer else [])
    parts: list[Value | str] = []
    for at, length in enumerate(lengths):
        if at in inferred[:1]:
            parts.append(b.ints(-1))
        elif length.axes:
            parts.append(_entry(b, shape, length))
        else:
            parts.append(b.ints(length.by))
    return b.op("Concat", parts, [len(parts)], axis=0)


def _entry(b: Builder, shape: Value, length: Length) -> Value:
    (axis,) = length.axes
    if b.choices.chance(50):
        scalar = b.op("Gather", [shape, b.constant(axis, np.int64, form="node")], [], axis=0)
        if length.by != 1:
            scalar = b.op("Div", [scalar, b.constant(length.by, np.int64)], [])
        return b.unsqueeze(scalar, [0])
    vector = b.cut(shape, [0], [slice(axis, axis + 1)])
    return b.op("Div", [vector, b.ints(length.by)], [1]) if length.by != 1 else vector
