"""Filter pruning."""

from onnxcompress.passes.pruning.filters import SCOPES, FilterPruning, PruningConfig, verify_pruning
from onnxcompress.passes.pruning.importance import CALIBRATED, IMPORTANCES

__all__ = ["CALIBRATED", "IMPORTANCES", "SCOPES", "FilterPruning", "PruningConfig", "verify_pruning"]
