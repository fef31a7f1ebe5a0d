"""Exact graph clean-up before compression."""

from onnxcompress.passes.cleanup.cleanup import STEPS, Cleanup, CleanupConfig

__all__ = ["STEPS", "Cleanup", "CleanupConfig"]
