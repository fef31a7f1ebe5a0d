"""Compresses convolutional networks in ONNX by filter pruning and Tucker decomposition."""

__version__ = "0.1.0"
