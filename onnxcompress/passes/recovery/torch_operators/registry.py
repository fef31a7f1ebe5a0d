"""The one table of operators that can be computed, and trained through, in torch.

An operator is a function of the node and its input tensors (None for an optional input that is left out); it returns
one tensor or a tuple of them. It follows the ONNX definition of the operator for every opset that onnxcompress reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from onnxcompress.errors import UnsupportedOpError

Operator = Callable[..., Any]
Function = TypeVar("Function", bound=Operator)

OPERATORS: dict[str, Operator] = {}


@dataclass
class Call:
    """A node as an operator sees it.

    Attributes:
        node: name, for messages.
        opset: of the default domain: some operators changed their meaning.
        outputs: how many of the node's outputs are read or given out, up to the last of them.
        declared: how many it has.
        training: whether BatchNormalization uses and updates statistics of the batch.
    """

    node: str
    op: str
    opset: int
    outputs: int = 1
    attributes: Mapping[str, Any] = field(default_factory=dict)
    declared: int = 1
    training: bool = False

    def number(self, name: str, default: float) -> float:
        """Return a float attribute."""
        return float(self.attributes.get(name, default))

    def whole(self, name: str, default: int) -> int:
        """Return an integer attribute."""
        return int(self.attributes.get(name, default))

    def text(self, name: str, default: str) -> str:
        """Return a string attribute."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def wholes(self, name: str, default: Sequence[int] | None = None) -> list[int] | None:
        """Return a list attribute, None where neither it nor a default is given."""
        value = self.attributes.get(name, default)
        return None if value is None else [int(each) for each in value]

    def unsupported(self, what: str) -> UnsupportedOpError:
        """Return the error of an operator used in a way that is not covered."""
        return UnsupportedOpError(
            f"node '{self.node}': {self.op} with {what} cannot be trained; use --recover refit, or change the model"
        )


def operator(*names: str) -> Callable[[Function], Function]:
    """Register a function for operators of the default domain."""

    def register(function: Function) -> Function:
        for name in names:
            OPERATORS[name] = function
        return function

    return register
