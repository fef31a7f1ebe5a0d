"""Fewer bits for the same network: static 8-bit quantisation and half precision, both by onnxruntime's tools."""

from onnxcompress.passes.quantization.float16 import Float16Config, Float16Conversion
from onnxcompress.passes.quantization.int8 import Int8Config, Int8Quantization
from onnxcompress.passes.quantization.verify import calibration_batch, few_samples, verify_quantization

__all__ = [
    "Float16Config",
    "Float16Conversion",
    "Int8Config",
    "Int8Quantization",
    "calibration_batch",
    "few_samples",
    "verify_quantization",
]
