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
from onnxcompress.passes.recovery.refit_layers import Patches, RefitLayer
from onnxcompress.passes.recovery.refit_patches import LayerSampler
from onnxcompress.passes.recovery.refit_wide import MOST_INPUTS
from onnxcompress.runtime.ahead import one_ahead
from onnxcompress.runtime.capture import capture_activations

Array = npt.NDArray[Any]

_BATCH = 16
_SPREAD_BYTES = 2**31

_Key = tuple[Patches, bool]
"""What a layer reads, and whether a constant can be added to what it makes of it."""


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


class PatchMoments:
    """Takes in what layers see, batch after batch, at so many positions of each sample.

    Layers that read the same patches share them. Layers of more than `MOST_INPUTS` inputs, and grouped ones, have none.

    Attributes:
        tensors: what they read.
    """

    def __init__(self, layers: Sequence[RefitLayer], positions: int, seed: int) -> None:
        self._key_of = {layer.node: (layer.patches, layer.has_constant) for layer in layers}
        seen = (layer for layer in layers if layer.groups == 1 and layer.features <= MOST_INPUTS)
        self._readers = {self._key_of[layer.node]: layer for layer in seen}
        self._samplers = {key: LayerSampler(layer, positions, seed) for key, layer in self._readers.items()}
        self._totals: dict[_Key, Moments] = {}
        self.tensors = list(dict.fromkeys(layer.input for layer in self._readers.values()))

    def take(self, captured: Mapping[str, Array], images: int) -> None:
        """Take in the next so many samples.

        Raises:
            DataError: the squares of a tensor's values overflow; it is named.
        """
        parallel_map(partial(self._take, captured, images), self._readers)

    def _take(self, captured: Mapping[str, Array], images: int, key: _Key) -> None:
        rows = self._samplers[key].patches(captured[self._readers[key].input], images)
        try:
            if key in self._totals:
                self._totals[key].take(rows, rows[:, :1])
            else:
                self._totals[key] = accumulate(rows, rows[:, :1])
        except OverflowError as error:
            raise DataError(
                f"tensor '{self._readers[key].input}' holds {error}; look at the layer before it"
            ) from error

    def covariances(self) -> dict[str, Covariances]:
        """Return the covariance of every layer's patches."""
        seen = {
            key: moments.centred() if self._readers[key].has_constant else moments.about_zero()
            for key, moments in self._totals.items()
        }
        # A classifier behind a pooling has one row of each image: fewer than inputs.
        seen = {key: own.shrunk() if own.count < len(own.xx) else own for key, own in seen.items()}
        return {node: seen[key] for node, key in self._key_of.items() if key in seen}


def layer_covariances(
    model: Model, layers: Sequence[RefitLayer], batches: Sequence[Mapping[str, Array]], positions: int, seed: int
) -> dict[str, Covariances]:
    """Return the covariance of every layer's patches; see `PatchMoments`.

    Raises:
        DataError: a tensor holds NaN, infinity, or values whose squares overflow; it is named.
    """
    moments = PatchMoments(layers, positions, seed)
    captured = one_ahead(capture_activations(model, moments.tensors, batches))
    for batch, own in zip(batches, captured, strict=True):
        moments.take(own, len(next(iter(batch.values()))))
    return moments.covariances()


def spread(calibration: Samples, images: int) -> list[dict[str, Array]]:
    """Return the samples of `numbered`."""
    return list(numbered(calibration, images).values())


def numbered(calibration: Samples, images: int) -> dict[int, dict[str, Array]]:
    """Return {number: sample} of at most so many, evenly spread over a stream of any length, each a batch of one.

    Fewer of large ones: on the way twice as many are in memory, 2 GB at most.
    """
    chosen: list[tuple[int, dict[str, Array]]] = []
    stride, number = 1, 0
    for batch in calibration():
        size = sum(array[:1].nbytes for array in batch.values())
        images = min(images, max(1, _SPREAD_BYTES // (2 * max(size, 1))))
        for row in range(len(next(iter(batch.values())))):
            if number % stride == 0:
                chosen.append((number, {name: array[row : row + 1].copy() for name, array in batch.items()}))
            number += 1
            if len(chosen) >= 2 * images:
                chosen, stride = chosen[::2], 2 * stride
    count = min(len(chosen), images)
    return dict(chosen[at * len(chosen) // count] for at in range(count))


def batched(samples: Sequence[Mapping[str, Array]], size: int, *, filled: bool) -> list[dict[str, Array]]:
    """Return samples in batches; where the model fixes the batch, the last is filled up with its last sample."""
    parts = [list(samples[at : at + size]) for at in range(0, len(samples), size)]
    if filled and parts:
        parts[-1] += [parts[-1][-1]] * (size - len(parts[-1]))
    return [{name: np.concatenate([sample[name] for sample in part]) for name in part[0]} for part in parts]
