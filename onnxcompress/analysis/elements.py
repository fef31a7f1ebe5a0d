"""Small tensors of which only some elements are known before the model runs.

A tensor of shape arithmetic (`Shape -> Gather -> Mul -> Concat -> Reshape`) is held element by element: a value where
it is static, and where it is exactly a dimension of some tensor, which one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcompress.graph import Shape

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Origins = npt.NDArray[np.int64]

MAX_ELEMENTS = 4096
"""Larger tensors are data, not shapes."""


@dataclass(frozen=True, eq=False)
class Elements:
    """A tensor's elements as far as they are known; all three arrays have the tensor's shape.

    Attributes:
        values: the elements, 0 where not known.
        known: whether the element is static.
        origins: the number of the runtime dimension that the element is exactly equal to, -1 where there is none.
    """

    values: Array
    known: Mask
    origins: Origins

    @classmethod
    def of(cls, values: Array, known: Mask | bool = True, origins: Origins | int = -1) -> Elements:
        """Build from parts, which are broadcast to the shape of `values`."""
        values = np.asarray(values)
        mask = np.broadcast_to(np.asarray(known, np.bool_), values.shape)
        return cls(
            np.where(mask, values, np.zeros((), values.dtype)),
            mask,
            np.broadcast_to(np.asarray(origins, np.int64), values.shape),
        )

    @property
    def static(self) -> bool:
        """Whether every element is known."""
        return bool(self.known.all())

    @property
    def empty_of_facts(self) -> bool:
        """Whether no element is known nor a dimension."""
        return bool(self.known.size) and not self.known.any() and not (self.origins >= 0).any()

    def moved(self, move: Callable[[Array], Array]) -> Elements:
        """Return the elements after data movement."""
        return Elements(np.asarray(move(self.values)), np.asarray(move(self.known)), np.asarray(move(self.origins)))


@dataclass(frozen=True)
class Call:
    """One node as a rule sees it.

    Attributes:
        inputs: elements of each input; None if the input is left out or nothing is known of it.
        given: for each input, whether it is not left out.
        shapes: shape of each input, None if not even the rank is known.
        outputs: how many outputs it has.
        attributes: plain attributes by name; tensor attributes as numpy arrays.
        origin: gives a dimension `(input position, axis)` its number.
    """

    inputs: Sequence[Elements | None]
    given: Sequence[bool]
    shapes: Sequence[Shape | None]
    outputs: int
    attributes: Mapping[str, Any]
    opset: int
    origin: Callable[[int, int], int]

    def operand(self, position: int) -> Elements:
        """Return an input's elements.

        Raises:
            LookupError: the input is left out or unknown.
        """
        found = self.inputs[position]
        if found is None:
            raise LookupError(f"input {position} is unknown")
        return found

    def static(self, position: int) -> Array:
        """Return an input's values.

        Raises:
            LookupError: not all of them are known.
        """
        operand = self.operand(position)
        if not operand.static:
            raise LookupError(f"input {position} is not static")
        return operand.values

    def integers(self, position: int, attribute: str) -> list[int] | None:
        """Return a list given as an attribute or, in later opsets, as an input; None if it is left out."""
        if attribute in self.attributes:
            return [int(v) for v in self.attributes[attribute]]
        if position >= len(self.given) or not self.given[position]:
            return None
        return [int(v) for v in self.static(position).reshape(-1)]
