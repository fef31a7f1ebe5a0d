"""Which errors of a layer matter: the second moment of the output's gradient at the layer's own output.

A small error e of a layer's outputs at one position costs the network about e^T G e / 2 in divergence from its own
answers, with G = E[g g^T] of the gradients g of -log p(label), labels drawn from what the network answers: the Fisher
information (J. Martens, "New Insights and Perspectives on the Natural Gradient Method", JMLR 21, 2020). A factor of
limited rank keeps the directions that G says count, not those in which a layer merely answers loudest, and a rank is
worth what it keeps of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt

from onnxcompress.errors import ModelError
from onnxcompress.graph import Model
from onnxcompress.linalg.parallel import one_blas_thread, parallel_map
from onnxcompress.linalg.regression import Metric
from onnxcompress.linalg.spectrum import Matrix
from onnxcompress.passes.base import PassContext, Samples
from onnxcompress.passes.recovery.allocation_samples import as_sampled, batched, sample_batch, spread
from onnxcompress.passes.recovery.backward import Backward
from onnxcompress.passes.recovery.output_weights import output_weights
from onnxcompress.passes.recovery.outputs import compared_tensors
from onnxcompress.passes.recovery.refit_layers import RefitLayer, find_refit_layers
from onnxcompress.runtime.ahead import one_ahead

_IMAGES, _BATCH = 192, 8

_DAMPING = 0.02
"""Share of equal weights that is mixed into the outputs' weights, so that none is zero."""

_MOST_OUTPUTS = 4096
"""Of a layer that is weighed: its moment has the square of it."""


def output_metrics(model: Model, layers: Collection[RefitLayer], context: PassContext) -> dict[str, Metric]:
    """Return {layer: how errors of its outputs count}, without those of which that cannot be known.

    It is measured on the original, of all its layers in one graph: the bits do not depend on which pass asks first.

    Args:
        model: the present one, where the context has no original.
        layers: of the present model; of outputs that were removed nothing is said.
    """
    if context.calibration is None or not layers:
        return {}
    measured: dict[str, dict[str, Matrix]] = {} if context.measured is None else context.measured
    if __name__ not in measured:
        original = context.original or model
        own = find_refit_layers(original, original, PassContext())[0]
        measured[__name__] = gradient_moments(original, own, context.calibration, context.seed, context.numbers)
    moments = {}
    for layer in layers:
        moment = measured[__name__].get(layer.node)
        if moment is not None:
            kept = context.provenance.get(layer.output, slice(None))
            moments[layer.node] = moment[kept][:, kept]
    metrics = parallel_map(lambda moment: Metric.of(moment, _DAMPING), moments.values())
    return {name: metric for name, metric in zip(moments, metrics, strict=True) if metric is not None}


def weighable(model: Model, layers: Collection[RefitLayer], calibration: Samples) -> frozenset[str]:
    """Return the layers, by name, whose outputs have a gradient that can be computed."""
    outputs = {layer.output: layer.node for layer in _weighable(layers)}
    backward = _backward(model, list(outputs), calibration)
    return frozenset(outputs[tensor] for tensor in backward.tensors) if backward else frozenset()


def gradient_moments(
    model: Model, layers: Collection[RefitLayer], calibration: Samples, seed: int, numbers: Collection[str] = ()
) -> dict[str, Matrix]:
    """Return {layer: mean over samples of the sum of g g^T over positions, (O, O)}, without those that are not finite.

    Shrunk towards a multiple of the identity as far as the samples' own sums differ from their mean: the intensity of
    the least expected squared error (O. Ledoit, M. Wolf, J. Multivariate Analysis 88, 2004), a sample's positions
    counting as one draw.

    Args:
        model: the original.
        layers: as in `weighable`.
        numbers: tensors that do not classify, whatever their shape.
    """
    layers = _weighable(layers)
    names = compared_tensors(model, model)
    weights = output_weights(model, names, calibration, numbers) if layers else {}
    backward = _backward(model, [layer.output for layer in layers], calibration, weights)
    if backward is None:
        return {}
    channels = {layer.output: 1 if layer.is_convolution else -1 for layer in layers}
    sums: dict[str, Matrix] = {}
    squares: dict[str, float] = {}
    count = 0
    generator = np.random.default_rng(seed)
    size, filled = sample_batch(model)
    size = size if filled else min(size, _BATCH)
    batches = batched(spread(calibration, _IMAGES), size, filled=filled)
    with one_blas_thread():
        for samples, gradients in one_ahead((len(next(iter(b.values()))), backward.run(b, generator)) for b in batches):
            count += samples
            for name, gradient in gradients.items():
                last = np.moveaxis(gradient, channels[name], -1)
                total, square = _moments(last.reshape(len(gradient), -1, last.shape[-1]))
                sums[name] = sums.get(name, 0.0) + total
                squares[name] = squares.get(name, 0.0) + square
    finite = {name for name, own in sums.items() if np.isfinite(own).all() and np.isfinite(squares[name])}
    return {
        layer.node: _shrunk(sums[layer.output] / count, squares[layer.output] / count, count)
        for layer in layers
        if layer.output in finite
    }


def _moments(rows: npt.NDArray[np.float32]) -> tuple[Matrix, float]:
    """Return the sum of g g^T over rows (B, P, O), (O, O), and that of the squared norms of the samples' own sums."""
    # |R^T R| = |R R^T|: of the samples' own sums the smaller ones say how far they differ.
    if rows.shape[1] > rows.shape[2]:
        own = np.matmul(rows.transpose(0, 2, 1), rows)
        total = own.sum(axis=0)
    else:
        own = np.matmul(rows, rows.transpose(0, 2, 1))
        flat = rows.reshape(-1, rows.shape[2])
        total = flat.T @ flat
    return total.astype(np.float64), float(np.square(own, dtype=np.float64).sum())


def _weighable(layers: Collection[RefitLayer]) -> list[RefitLayer]:
    return [layer for layer in layers if layer.outputs <= _MOST_OUTPUTS]


def _shrunk(mean: Matrix, square: float, count: int) -> Matrix:
    """Return the mean of `count` matrices (O, O) shrunk; `square` is the mean of their squared norms."""
    level = float(np.trace(mean)) / len(mean) * np.eye(len(mean))
    noise = max(0.0, square - float(np.square(mean).sum())) / max(1, count - 1)
    distance = float(np.square(mean - level).sum())
    intensity = min(1.0, noise / distance) if distance > 0.0 and count > 1 else 1.0
    return (1.0 - intensity) * mean + intensity * level


def _backward(
    model: Model, tensors: list[str], calibration: Samples, weights: Mapping[str, Matrix] | None = None
) -> Backward | None:
    """Return the way back to tensors; None where there are none, or onnxruntime does not take it."""
    try:
        return Backward(as_sampled(model, calibration), tensors, weights=weights) if tensors else None
    except ModelError:
        return None
