"""The operators that the channel analysis knows, by family."""

from onnxcompress.analysis.channels.operators import (  # noqa: F401  (each import registers its operators)
    convolution,
    dense,
    einsum,
    elementwise,
    gathering,
    layout,
    normalization,
    recurrent,
    reduction,
    selection,
    spatial,
)
from onnxcompress.analysis.channels.operators.registry import HANDLERS, operator

__all__ = ["HANDLERS", "operator"]
