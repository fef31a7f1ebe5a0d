"""A graph under construction: shapes known at every step, every opset's spelling of an operator, forms of constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from tests.fuzz.choices import Choices

Array = npt.NDArray[Any]
MAX_ELEMENTS = 6000
MAX_CHANNELS = 24


class Unfit(Exception):
    """No value suits what a block wants to do; another block is drawn."""


@dataclass(frozen=True)
class Value:
    """A tensor and its shape as it runs."""

    name: str
    shape: tuple[int, ...]

    @property
    def channels(self) -> int:
        return self.shape[1]

    @property
    def spatial(self) -> tuple[int, ...]:
        return self.shape[2:]


class Builder:
    """Nodes, constants and values so far.

    Attributes:
        rank: spatial axes of feature maps.
        open_batch, open_space: lengths that constants must not name, because the inputs leave them open.
        most_elements: of one tensor; a block that would make a larger one is unfit.
        open: values that nothing has to read, in order; those that nothing read become outputs.
    """

    def __init__(self, choices: Choices, *, opset: int, rank: int, constants: str = "initializer") -> None:
        self.choices = choices
        self.opset = opset
        self.rank = rank
        self.open_batch = self.open_space = False
        self.constants = constants
        self.rng = np.random.default_rng(choices.integer(0, 2**16))
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.defaults: list[onnx.ValueInfoProto] = []
        self.most_elements = MAX_ELEMENTS
        self.open: list[Value] = []
        self.read: set[str] = set()
        self.shared: dict[tuple[int, ...], str] = {}
        self._count = 0

    # Values.

    def fresh(self, hint: str = "t") -> str:
        self._count += 1
        return f"{hint}{self._count}"

    def offer(self, *values: Value) -> None:
        """Let later blocks read these values."""
        self.open.extend(values)

    def choose(self, fits: Callable[[Value], bool] = lambda value: True) -> Value:
        """Pick an open value, the newest first."""
        options = [value for value in reversed(self.open) if fits(value)]
        if not options:
            raise Unfit
        return self.choices.pick(options[: self.choices.pick([1, 3, len(options)])])

    def is_open(self, value: Value, axis: int) -> bool:
        """Whether an axis' length is known only when the graph runs."""
        return self.open_batch if axis == 0 else self.open_space and axis >= 2 and value.shape[axis] > 1

    def has_open_space(self, value: Value) -> bool:
        return any(self.is_open(value, axis) for axis in range(2, len(value.shape)))

    def choose_map(self, fits: Callable[[Value], bool] = lambda value: True) -> Value:
        """Pick a feature map (N, C, spatial...)."""
        return self.choose(lambda v: len(v.shape) == self.rank + 2 and fits(v))

    # Nodes.

    def op(self, kind: str, inputs: Sequence[Value | str | None], shape: Sequence[int], **attributes: Any) -> Value:
        """Add a node of one output."""
        return self.ops(kind, inputs, [shape], **attributes)[0]

    def ops(
        self, kind: str, inputs: Sequence[Value | str | None], shapes: Sequence[Sequence[int]], **attributes: Any
    ) -> list[Value]:
        """Add a node of several outputs."""
        for shape in shapes:
            if min(shape, default=1) < 1 or int(np.prod(shape)) > self.most_elements:
                raise Unfit
        names = [v.name if isinstance(v, Value) else (v or "") for v in inputs]
        self.read.update(names)
        outputs = [Value(self.fresh(), tuple(int(d) for d in shape)) for shape in shapes]
        attributes = {k: v for k, v in attributes.items() if v is not None}
        self.nodes.append(helper.make_node(kind, names, [v.name for v in outputs], **attributes))
        return outputs

    def constant(self, array: Any, dtype: Any = np.float32, *, form: str | None = None) -> str:
        """Return the name of a constant, in one of the forms that exporters write."""
        values = np.asarray(array, dtype)
        name = self.fresh("c")
        forms = ["initializer", "node", "identity", "default"]
        form = form or (forms[int(self.rng.integers(4))] if self.constants == "mixed" else self.constants)
        if form == "node":
            self.nodes.append(helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(values)))
            return name
        self.initializers.append(onnx.numpy_helper.from_array(values, name))
        if form == "default":
            kind = helper.np_dtype_to_tensor_dtype(values.dtype)
            self.defaults.append(helper.make_tensor_value_info(name, kind, values.shape))
        if form == "identity":
            copied = self.fresh("c")
            self.nodes.append(helper.make_node("Identity", [name], [copied]))
            return copied
        return name

    def ints(self, *values: int) -> str:
        return self.constant(list(values), np.int64)

    def weights(self, *shape: int, fan: int = 1) -> str:
        return self.constant(self.rng.standard_normal(shape) / np.sqrt(max(fan, 1)))

    def positive(self, *shape: int) -> str:
        return self.constant(self.rng.uniform(0.5, 1.5, shape))

    # Operators whose lists moved from attributes to inputs.

    def with_list(
        self, kind: str, data: Value, key: str, values: Sequence[int], since: int, shape: Sequence[int], **attrs: Any
    ) -> Value:
        if self.opset >= since:
            return self.op(kind, [data, self.ints(*values)], shape, **attrs)
        return self.op(kind, [data], shape, **{key: list(values)}, **attrs)

    def reduce(self, kind: str, data: Value, axes: Sequence[int], keepdims: bool = True) -> Value:
        rank = len(data.shape)
        shape = [1 if a in axes else d for a, d in enumerate(data.shape) if keepdims or a not in axes]
        written = [a - rank if self.choices.chance(20) else a for a in axes] if self.opset >= 11 else list(axes)
        since = 13 if kind == "ReduceSum" else 18
        return self.with_list(kind, data, "axes", written, since, shape, keepdims=int(keepdims))

    def squeeze(self, data: Value, axes: Sequence[int]) -> Value:
        shape = [d for a, d in enumerate(data.shape) if a not in axes]
        return self.with_list("Squeeze", data, "axes", axes, 13, shape)

    def unsqueeze(self, data: Value, axes: Sequence[int]) -> Value:
        shape = list(data.shape)
        for axis in sorted(axes):
            shape.insert(axis, 1)
        return self.with_list("Unsqueeze", data, "axes", axes, 13, shape)

    def transpose(self, data: Value, perm: Sequence[int]) -> Value:
        return self.op("Transpose", [data], [data.shape[p] for p in perm], perm=list(perm))

    def split(self, data: Value, axis: int, sizes: Sequence[int]) -> list[Value]:
        shapes = [[size if a == axis else d for a, d in enumerate(data.shape)] for size in sizes]
        equal = len(set(sizes)) == 1 and self.choices.chance(60)
        if equal:
            count = len(sizes) if self.opset >= 18 else None
            return self.ops("Split", [data], shapes, axis=axis, num_outputs=count)
        if self.opset >= 13:
            return self.ops("Split", [data, self.ints(*sizes)], shapes, axis=axis)
        return self.ops("Split", [data], shapes, axis=axis, split=list(sizes))

    def cut(self, data: Value, axes: Sequence[int], cuts: Sequence[slice]) -> Value:
        """Slice; a cut's bounds are given as they are written."""
        shape = list(data.shape)
        for axis, cut in zip(axes, cuts, strict=True):
            shape[axis] = len(range(*cut.indices(data.shape[axis])))
        starts, steps = [c.start for c in cuts], [c.step or 1 for c in cuts]
        ends = [c.stop if c.stop is not None else -(2**63) for c in cuts]
        if self.opset < 10:
            if any(step != 1 for step in steps):
                raise Unfit
            return self.op("Slice", [data], shape, starts=starts, ends=ends, axes=list(axes))
        form = (
            None if self.constants != "mixed" else "node"
        )  # inference follows a Slice of Shape by plain constants only
        bounds = [self.constant(numbers, np.int64, form=form) for numbers in (starts, ends, list(axes), steps)]
        inputs: list[Value | str | None] = [data, *bounds[:2]]
        if list(axes) != list(range(len(axes))) or self.choices.chance(50):
            inputs.append(bounds[2])
            if any(step != 1 for step in steps) or self.choices.chance(50):
                inputs.append(bounds[3])
        elif any(step != 1 for step in steps):
            inputs += [None, bounds[3]]
        return self.op("Slice", inputs, shape)

    def pad(self, data: Value, pads: Sequence[int], mode: str = "constant") -> Value:
        rank = len(data.shape)
        shape = [d + pads[a] + pads[a + rank] for a, d in enumerate(data.shape)]
        if self.opset < 11:
            return self.op("Pad", [data], shape, pads=list(pads), mode=mode)
        touched = [a for a in range(rank) if pads[a] or pads[a + rank]]
        if self.opset >= 18 and touched and self.choices.chance(40):
            short = [pads[a] for a in touched] + [pads[a + rank] for a in touched]
            return self.op("Pad", [data, self.ints(*short), None, self.ints(*touched)], shape, mode=mode)
        return self.op("Pad", [data, self.ints(*pads)], shape, mode=mode)

    def clip(self, data: Value, low: float, high: float) -> Value:
        if self.opset < 11:
            return self.op("Clip", [data], data.shape, min=low, max=high)
        return self.op("Clip", [data, self.constant(low), self.constant(high)], data.shape)

    def shape_of(self, data: Value) -> Value:
        return self.op("Shape", [data], [len(data.shape)])

    def proto(self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto], ir: int) -> Any:
        listed = list(self.defaults)
        if ir < 4:
            names = {info.name for info in listed}
            listed += [
                helper.make_tensor_value_info(t.name, t.data_type, t.dims)
                for t in self.initializers
                if t.name not in names
            ]
        graph = helper.make_graph(self.nodes, "fuzz", [*inputs, *listed], outputs, self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=ir)


FLOAT = TensorProto.FLOAT
