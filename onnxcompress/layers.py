"""The operators of layers with weights, by their names in the standard."""

from __future__ import annotations

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})

LAYERS = CONVOLUTIONS | {"Gemm", "MatMul"}
