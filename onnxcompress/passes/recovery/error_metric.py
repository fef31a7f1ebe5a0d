"""Which errors of a layer matter: the second moment of the output's gradient at the layer's own output.

A small error e of a layer's outputs at one position costs the network about e^T G e / 2 in divergence from its own
answers, with G = E[g g^T] of the gradients g of -log p(label), labels drawn from what the network answers: the Fisher
information (J. Martens, "New Insights and Perspectives on the Natural Gradient Method", JMLR 21, 2020). A factor of
limited rank keeps the directions that G says count, not those in which a layer merely answers loudest.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from onnxcompress.errors import ModelError
from onnxcompress.graph import Model
from onnxcompress.linalg.spectrum import Matrix
from onnxcompress.passes.base import Samples
from onnxcompress.passes.recovery.allocation_samples import batched, sample_batch, spread
from onnxcompress.passes.recovery.backward import Backward
from onnxcompress.passes.recovery.refit_layers import RefitLayer

_IMAGES = 192


def weighable(model: Model, layers: Collection[RefitLayer]) -> frozenset[str]:
    """Return the layers, by name, whose outputs have a gradient that can be computed."""
    outputs = {layer.output: layer.node for layer in layers}
    backward = _backward(model, list(outputs))
    return frozenset(outputs[tensor] for tensor in backward.tensors) if backward else frozenset()


def gradient_moments(
    model: Model, layers: Collection[RefitLayer], calibration: Samples, seed: int
) -> dict[str, Matrix]:
    """Return {layer: sum of g g^T over samples and positions, (O, O)}, without layers at which it is not finite.

    Args:
        model: the original.
        layers: as in `weighable`.
    """
    backward = _backward(model, [layer.output for layer in layers])
    if backward is None:
        return {}
    channels = {layer.output: 1 if layer.op == "Conv" else -1 for layer in layers}
    moments: dict[str, Matrix] = {}
    generator = np.random.default_rng(seed)
    size, filled = sample_batch(model)
    for batch in batched(spread(calibration, _IMAGES), size, filled=filled):
        for name, gradient in backward.run(batch, generator).items():
            rows = np.moveaxis(gradient, channels[name], -1).reshape(-1, gradient.shape[channels[name]])
            moments[name] = moments.get(name, 0.0) + (rows.T @ rows).astype(np.float64)
    finite = {name for name, moment in moments.items() if np.isfinite(moment).all()}
    return {layer.node: moments[layer.output] for layer in layers if layer.output in finite}


def _backward(model: Model, tensors: list[str]) -> Backward | None:
    """Return the way back to tensors; None where there are none, or onnxruntime does not take it."""
    try:
        return Backward(model, tensors) if tensors else None
    except ModelError:
        return None
