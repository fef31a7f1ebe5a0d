"""What the original's layers answer: sampled outputs of every layer, from one run of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt

from onnxcompress.graph import Model
from onnxcompress.linalg.moments import Rows
from onnxcompress.passes.recovery.refit_layers import RefitLayer
from onnxcompress.passes.recovery.refit_patches import LayerSampler
from onnxcompress.runtime.ahead import one_ahead
from onnxcompress.runtime.array_file import ArrayFile
from onnxcompress.runtime.capture import capture_activations

Array = npt.NDArray[Any]


class Onlooker(Protocol):
    """What looks at further tensors of the run.

    Attributes:
        tensors: their names.
    """

    tensors: Sequence[str]

    def take(self, captured: Mapping[str, Array], images: int) -> None:
        """Look at the next batch of so many images; other tensors may be among those captured."""


class Targets:
    """Sampled outputs of the original's layers, in temporary files that are deleted once nobody holds this."""

    def __init__(
        self,
        original: Model,
        layers: Sequence[RefitLayer],
        batches: Iterable[Mapping[str, Array]],
        positions: Mapping[str, int],
        seed: int,
        onlooker: Onlooker | None = None,
    ) -> None:
        """Run the original once, sampling so many `positions` of each layer (by name) in each image.

        Raises:
            DataError: there are no samples, a captured tensor holds NaN or infinity, or the disk is full.
        """
        self._files = {layer.node: ArrayFile() for layer in layers}
        self._positions = dict(positions)
        self.sizes: list[int] = []
        """Images of each batch."""
        samplers = {layer.node: LayerSampler(layer, positions[layer.node], seed) for layer in layers}
        names = [*(layer.output for layer in layers), *(onlooker.tensors if onlooker else ())]
        for number, captured in enumerate(one_ahead(capture_activations(original, names, self._sized(batches)))):
            for layer in layers:
                rows = samplers[layer.node].outputs(captured[layer.output], self.sizes[number])
                self._files[layer.node].append(rows)
            if onlooker:
                onlooker.take(captured, self.sizes[number])

    @property
    def images(self) -> int:
        """How many images there were."""
        return sum(self.sizes)

    def count(self, layer: RefitLayer) -> int:
        """Return how many outputs of a layer were sampled."""
        return self._files[layer.node].length

    def rows(self, layer: RefitLayer) -> Rows:
        """Return the sampled outputs of a layer, (n, O)."""
        return self._files[layer.node].joined()

    def _sized(self, batches: Iterable[Mapping[str, Array]]) -> Iterator[Mapping[str, Array]]:
        for batch in batches:
            self.sizes.append(len(next(iter(batch.values()))))
            yield batch

    def serve(self, layers: Sequence[RefitLayer], positions: Mapping[str, int]) -> bool:
        """Whether so many `positions` of each layer (by name) were sampled."""
        names = [layer.node for layer in layers]
        return all(name in self._files and self._positions[name] == positions[name] for name in names)
