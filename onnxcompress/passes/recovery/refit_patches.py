"""Samples of a layer's inputs and outputs at random positions: the rows of its least-squares problem."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcompress.linalg.moments import Rows
from onnxcompress.passes.recovery.refit_layers import RefitLayer
from onnxcompress.runtime.patches import PositionSampler, input_patches, output_rows

Array = npt.NDArray[Any]


class LayerSampler:
    """Draws the same positions of a layer in the original and in the compressed model, batch after batch.

    Args:
        positions: at most so many of each image.
    """

    def __init__(self, layer: RefitLayer, positions: int, seed: int) -> None:
        self._layer = layer
        self._sampler = PositionSampler(positions, seed)

    def patches(self, inputs: Array, images: int | None = None) -> Rows:
        """Return the layer's input patches of a batch, (B P, K C), positions of the kernel first, then channels.

        Args:
            images: of the batch; a matrix may read several rows of each, as of windows. None: as many as rows.
        """
        layer = self._layer
        if not layer.is_convolution:
            return self._matrix_rows(inputs, images)
        window = layer.window(inputs.shape[2:])
        places = self._sampler.draw(len(inputs), window.output_size(inputs.shape[2:]))
        return _rows(input_patches(inputs, window, places))

    def outputs(self, outputs: Array, images: int | None = None) -> Rows:
        """Return the layer's outputs of a batch, (B P, O); `images` as for `patches`."""
        if not self._layer.is_convolution:
            return self._matrix_rows(outputs, images)
        places = self._sampler.draw(len(outputs), outputs.shape[2:])
        return output_rows(outputs, places).astype(np.float32, copy=False)

    def _matrix_rows(self, values: Array, images: int | None) -> Rows:
        """Return rows of what a matrix reads or makes, (..., C)."""
        leading = images if images and len(values) % images == 0 else len(values)
        flat = values.reshape(leading, -1, values.shape[-1])
        places = self._sampler.draw(leading, flat.shape[1:2])[:, :, 0]
        return _rows(flat[np.arange(leading)[:, None], places])


def _rows(samples: Array) -> Rows:
    """Return samples (B, P, ...) as rows of float32, (B P, ...)."""
    return np.ascontiguousarray(samples, np.float32).reshape(samples.shape[0] * samples.shape[1], -1)
