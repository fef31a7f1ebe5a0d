"""What the original's layers answer: sampled outputs of every layer, and moments of its inputs, from one run of it."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from onnxcompress.graph import Model
from onnxcompress.linalg.moments import Rows
from onnxcompress.passes.recovery.refit_layers import RefitLayer
from onnxcompress.passes.recovery.refit_patches import LayerSampler
from onnxcompress.runtime.ahead import one_ahead
from onnxcompress.runtime.capture import capture_activations

Array = npt.NDArray[Any]


class Targets:
    """Sampled outputs of the original's layers, in temporary files that are deleted once nobody holds this."""

    def __init__(
        self,
        original: Model,
        layers: Sequence[RefitLayer],
        batches: Iterable[Mapping[str, Array]],
        positions: Mapping[str, int],
        seed: int,
    ) -> None:
        """Run the original once, sampling so many `positions` of each layer (by name) in each image.

        Raises:
            DataError: there are no samples, or a layer's output holds NaN or infinity; it is named.
        """
        self._files = {layer.node: tempfile.TemporaryFile() for layer in layers}  # noqa: SIM115 - see `_close`
        weakref.finalize(self, _close, list(self._files.values()))
        self._positions = dict(positions)
        self._outputs = {layer.node: 0 for layer in layers}
        self.sizes: list[int] = []
        """Images of each batch."""
        samplers = {layer.node: LayerSampler(layer, positions[layer.node], seed) for layer in layers}
        names = [layer.output for layer in layers]
        for number, captured in enumerate(one_ahead(capture_activations(original, names, self._sized(batches)))):
            for layer in layers:
                rows = samplers[layer.node].outputs(captured[layer.output], self.sizes[number])
                self._outputs[layer.node] = rows.shape[1]
                rows.tofile(self._files[layer.node])

    @property
    def images(self) -> int:
        """How many images there were."""
        return sum(self.sizes)

    def count(self, layer: RefitLayer) -> int:
        """Return how many outputs of a layer were sampled."""
        file = self._files[layer.node]
        return file.seek(0, os.SEEK_END) // (4 * max(1, self._outputs[layer.node]))

    def rows(self, layer: RefitLayer) -> Rows:
        """Return the sampled outputs of a layer, (n, O)."""
        file = self._files[layer.node]
        file.seek(0)
        rows: Rows = np.fromfile(file, np.float32).reshape(-1, self._outputs[layer.node])
        return rows

    def _sized(self, batches: Iterable[Mapping[str, Array]]) -> Iterator[Mapping[str, Array]]:
        for batch in batches:
            self.sizes.append(len(next(iter(batch.values()))))
            yield batch

    def serve(self, layers: Sequence[RefitLayer], positions: Mapping[str, int]) -> bool:
        """Whether so many `positions` of each layer (by name) were sampled."""
        names = [layer.node for layer in layers]
        return all(name in self._files and self._positions[name] == positions[name] for name in names)


def _close(files: Sequence[IO[bytes]]) -> None:
    for file in files:
        file.close()
