"""Filter pruning."""

from onnxcompress.passes.pruning.filters import SCOPES, FilterPruning, PruningConfig, verify_pruning
from onnxcompress.passes.pruning.importance import IMPORTANCES

__all__ = ["IMPORTANCES", "SCOPES", "FilterPruning", "PruningConfig", "verify_pruning"]
