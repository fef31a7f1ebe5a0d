"""Exact graph clean-up before compression."""

from onnxcompress.passes.cleanup.cleanup import RULES, STEPS, Cleanup, CleanupConfig, Lowering
from onnxcompress.passes.cleanup.merge import LinearMerging

__all__ = ["RULES", "STEPS", "Cleanup", "CleanupConfig", "LinearMerging", "Lowering"]
