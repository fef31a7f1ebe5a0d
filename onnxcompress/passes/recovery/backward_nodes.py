"""Nodes of a gradient graph: a tape that nodes are appended to, and a forward node as its backward rule sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxcompress.graph import Shape
from onnxcompress.serialization import array_to_tensor

Array = npt.NDArray[Any]

Operand = str | float | list[int] | Array
"""A tensor's name, or the values of a constant: float32 of a number, int64 of a list."""


@dataclass
class Tape:
    """Nodes and constants that are appended to a graph of opset 16 or later.

    Attributes:
        shapes: {tensor: shape} of the forward graph.
        constants: {tensor: values} of the forward graph.
        taken: names that are in use.
    """

    shapes: Mapping[str, Shape]
    constants: Mapping[str, Array]
    taken: set[str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def name(self, hint: str) -> str:
        """Return a name that nothing in the graph has, and reserve it."""
        number = len(self.taken)
        while f"{hint}_{number}" in self.taken:
            number += 1
        self.taken.add(f"{hint}_{number}")
        return f"{hint}_{number}"

    def add(self, op: str, *operands: Operand, **attributes: Any) -> str:
        """Append a node of one output and return the output's name."""
        output = self.name(f"backward_{op}")
        inputs = [each if isinstance(each, str) else self.constant(each) for each in operands]
        self.nodes.append(onnx.helper.make_node(op, inputs, [output], output, **attributes))
        return output

    def constant(self, values: float | list[int] | Array) -> str:
        """Append a constant and return its name."""
        if not isinstance(values, np.ndarray):
            values = np.array(values, np.int64 if isinstance(values, list) else np.float32)
        name = self.name("backward_constant")
        self.initializers.append(array_to_tensor(name, values))
        return name

    def reshaped_as(self, value: str, like: str) -> str:
        """Return `value` in the shape of the tensor `like`."""
        return self.add("Reshape", value, self.add("Shape", like))

    def expanded_as(self, value: Operand, like: str) -> str:
        """Return `value` repeated to the shape of the tensor `like`."""
        return self.add("Expand", value, self.add("Shape", like))


@dataclass(frozen=True)
class Site:
    """A forward node and the gradients of its outputs.

    Attributes:
        attributes: of the node; text is str.
        gradients: the name of the gradient of each output, None where none flows back.
        wanted: positions of the inputs whose gradient is asked for; each is a float32 tensor that is no constant.
    """

    tape: Tape
    node: onnx.NodeProto
    attributes: Mapping[str, Any]
    gradients: tuple[str | None, ...]
    wanted: frozenset[int]

    @property
    def x(self) -> str:
        """The name of the first input."""
        return str(self.node.input[0])

    @property
    def y(self) -> str:
        """The name of the first output."""
        return str(self.node.output[0])

    @property
    def g(self) -> str:
        """The name of the gradient of the first output."""
        assert self.gradients[0] is not None, f"node '{self.node.name}' was given no gradient of its first output"
        return self.gradients[0]

    @property
    def size(self) -> tuple[int, ...] | None:
        """The spatial shape of the first input (B, C, ...), None where a length is not known."""
        return lengths((self.shape(0) or ())[2:])

    def shape(self, position: int) -> Shape | None:
        """Return an input's shape, None where not even the rank is known."""
        name = self.node.input[position]
        constant = self.tape.constants.get(name)
        return self.tape.shapes.get(name) if constant is None else tuple(constant.shape)

    def constant(self, position: int) -> Array | None:
        """Return the values of an input that is a constant; None where it is not, or is left out."""
        return self.tape.constants.get(self.node.input[position]) if position < len(self.node.input) else None

    def listed(self, attribute: str, position: int) -> list[int] | None:
        """Return numbers that are an attribute in some opsets and a constant input in others.

        None where they are computed; an empty list where they are left out.
        """
        if attribute in self.attributes:
            return [int(each) for each in np.atleast_1d(self.attributes[attribute])]
        if position >= len(self.node.input) or not self.node.input[position]:
            return []
        values = self.constant(position)
        return None if values is None else [int(each) for each in values.reshape(-1)]


Rule = Callable[[Site], Mapping[int, str]]
"""Returns {input position: gradient of the same shape as the input}; a position left out has none that is known."""


def lengths(dims: Shape) -> tuple[int, ...] | None:
    """Return dimensions that are all numbers, else None."""
    known = tuple(dim for dim in dims if isinstance(dim, int))
    return known if len(known) == len(dims) else None
