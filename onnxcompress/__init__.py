"""Compresses convolutional networks in ONNX by filter pruning and Tucker decomposition.

    >>> import onnxcompress
    >>> result = onnxcompress.compress("model.onnx", prune=0.4, tucker="auto", output="small.onnx")  # doctest: +SKIP
    >>> result.report.compression.params  # doctest: +SKIP
    3.7

`compare`, `inspect` and `sweep` are the other commands. Everything is imported where it is first used:
`import onnxcompress` itself costs nothing.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["CompressionResult", "Model", "Recipe", "__version__", "compare", "compress", "inspect", "sweep"]

if TYPE_CHECKING:
    from onnxcompress.graph import Model
    from onnxcompress.pipeline.compare import compare
    from onnxcompress.pipeline.compress import CompressionResult, compress
    from onnxcompress.pipeline.inspect import inspect
    from onnxcompress.pipeline.sweep import sweep
    from onnxcompress.recipe import Recipe

_HOMES = {
    "CompressionResult": "onnxcompress.pipeline.compress",
    "Model": "onnxcompress.graph",
    "Recipe": "onnxcompress.recipe",
    "compare": "onnxcompress.pipeline.compare",
    "compress": "onnxcompress.pipeline.compress",
    "inspect": "onnxcompress.pipeline.inspect",
    "sweep": "onnxcompress.pipeline.sweep",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxcompress' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
