"""Samples that compression is decided from: some of the calibration data, and what layers see of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcompress.analysis.cost import open_inputs
from onnxcompress.errors import DataError
from onnxcompress.graph import Model
from onnxcompress.linalg.moments import Covariances, Moments, accumulate
from onnxcompress.linalg.parallel import parallel_map
from onnxcompress.passes.base import Samples
from onnxcompress.passes.recovery.refit_layers import RefitLayer
from onnxcompress.passes.recovery.refit_patches import LayerSampler
from onnxcompress.passes.recovery.refit_wide import MOST_INPUTS
from onnxcompress.runtime.ahead import one_ahead
from onnxcompress.runtime.capture import capture_activations

Array = npt.NDArray[Any]

_BATCH = 16
_SPREAD_BYTES = 2**31

_Patches = tuple[str, tuple[int, ...], str]
"""What tells patches apart: the tensor, the kernel and how it moves."""


def sample_batch(model: Model) -> tuple[int, bool]:
    """Return the batch that samples are run in, and whether the model fixes it."""
    first = (model.shape_of(model.graph.inputs[0]) or (None,))[0]
    return (first, True) if isinstance(first, int) else (_BATCH, False)


def as_sampled(model: Model, calibration: Samples) -> Model:
    """Return a model with the lengths that it leaves open, but for the batch, as the samples have them.

    Raises:
        ModelError: it does not fit them.
    """
    if not open_inputs(model):
        return model
    shapes = {tensor.name: model.shape_of(tensor) for tensor in model.graph.inputs}
    first = next(iter(calibration()), {})
    return model.declared({name: [None, *array.shape[1:]] for name, array in first.items() if shapes.get(name)})


def layer_covariances(
    model: Model, layers: Sequence[RefitLayer], batches: Sequence[Mapping[str, Array]], positions: int, seed: int
) -> dict[str, Covariances]:
    """Return the covariance of every layer's patches, at so many positions of each sample.

    Layers that read the same patches share it. Layers of more than `MOST_INPUTS` inputs, and grouped ones, have none.

    Raises:
        DataError: a tensor holds NaN, infinity, or values whose squares overflow; it is named.
    """
    key_of = {
        layer.node: (
            layer.input,
            (layer.op == "ConvTranspose", layer.has_constant, *layer.kernel_shape),
            repr(sorted(layer.attributes.items())),
        )
        for layer in layers
    }
    readers = {key_of[layer.node]: layer for layer in layers if layer.groups == 1 and layer.features <= MOST_INPUTS}
    samplers = {key: LayerSampler(layer, positions, seed) for key, layer in readers.items()}
    totals: dict[_Patches, Moments] = {}
    names = list(dict.fromkeys(layer.input for layer in readers.values()))

    def take(images: int, captured: Mapping[str, Array], key: _Patches) -> None:
        rows = samplers[key].patches(captured[readers[key].input], images)
        try:
            moments = accumulate(rows, rows[:, :1])
        except OverflowError as error:
            raise DataError(f"tensor '{key[0]}' holds {error}; look at the layer before it") from error
        if key in totals:
            totals[key] += moments
        else:
            totals[key] = moments

    for batch, captured in zip(batches, one_ahead(capture_activations(model, names, batches)), strict=True):
        parallel_map(partial(take, len(next(iter(batch.values()))), captured), readers)
    seen = {
        key: moments.centred() if readers[key].has_constant else moments.about_zero() for key, moments in totals.items()
    }
    # A classifier behind a pooling has one row of each image: fewer than inputs.
    seen = {key: own.shrunk() if own.count < len(own.xx) else own for key, own in seen.items()}
    return {layer.node: seen[key_of[layer.node]] for layer in layers if key_of[layer.node] in seen}


def spread(calibration: Samples, images: int) -> list[dict[str, Array]]:
    """Return at most so many samples, evenly spread over a stream of any length, one in each batch.

    Fewer of large ones: on the way twice as many are in memory, 2 GB at most.
    """
    chosen: list[dict[str, Array]] = []
    stride, number = 1, 0
    for batch in calibration():
        size = sum(array[:1].nbytes for array in batch.values())
        images = min(images, max(1, _SPREAD_BYTES // (2 * max(size, 1))))
        for row in range(len(next(iter(batch.values())))):
            if number % stride == 0:
                chosen.append({name: array[row : row + 1].copy() for name, array in batch.items()})
            number += 1
            if len(chosen) >= 2 * images:
                chosen, stride = chosen[::2], 2 * stride
    count = min(len(chosen), images)
    return [chosen[at * len(chosen) // count] for at in range(count)]


def batched(samples: Sequence[Mapping[str, Array]], size: int, *, filled: bool) -> list[dict[str, Array]]:
    """Return samples in batches; where the model fixes the batch, the last is filled up with its last sample."""
    parts = [list(samples[at : at + size]) for at in range(0, len(samples), size)]
    if filled and parts:
        parts[-1] += [parts[-1][-1]] * (size - len(parts[-1]))
    return [{name: np.concatenate([sample[name] for sample in part]) for name in part[0]} for part in parts]
