"""The opset that quantised models need."""

from __future__ import annotations

import onnx

from onnxcompress.errors import ModelError

_FIRST_OPSET = 13
"""The first in which a DequantizeLinear has a scale for each channel."""


def with_opset(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in an opset that has scales for each channel.

    Raises:
        ModelError: its own has none, and onnx cannot convert it.
    """
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    proto.ir_version = max(proto.ir_version, 4)  # before, every initializer had to be listed as an input
    if opset >= _FIRST_OPSET:
        return proto
    try:
        return onnx.version_converter.convert_version(proto, _FIRST_OPSET)
    except Exception as error:
        raise ModelError(
            f"opset {opset} has no scales for each channel, and onnx cannot convert the model to opset "
            f"{_FIRST_OPSET} ({' '.join(str(error).split())[:200]}); export it again with a newer opset"
        ) from error
