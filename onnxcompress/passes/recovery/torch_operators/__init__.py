"""Operators in torch; importing the modules fills the table."""

from onnxcompress.passes.recovery.torch_operators import (  # noqa: F401  (they register themselves)
    activation,
    arithmetic,
    convolution,
    layout,
    local_response,
    normalization,
    pooling,
    recurrent,
    reduction,
    resize,
    selection,
    shape_values,
)
from onnxcompress.passes.recovery.torch_operators.registry import OPERATORS, Call, Operator

__all__ = ["OPERATORS", "Call", "Operator"]
