"""Exact graph clean-up before compression."""

from onnxcompress.passes.cleanup.cleanup import RULES, STEPS, Cleanup, CleanupConfig

__all__ = ["RULES", "STEPS", "Cleanup", "CleanupConfig"]
