"""The samples of layers, gathered batch after batch: rows to fit to, and rows of images that only judge.

Rows are written where they stay: together they are most of the memory that a refit takes. Layers that read the same
patches have them together.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock

import numpy as np
import numpy.typing as npt

from onnxcompress.linalg.moments import Inputs, Rows
from onnxcompress.linalg.spanning import spanned_last
from onnxcompress.passes.recovery.refit_layers import RefitLayer
from onnxcompress.passes.recovery.refit_solve import Samples, held_out

_JUDGED_ROWS, _JUDGED_BYTES = 8192, 2**28

Chosen = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Made:
    """What layers are fitted to and judged on, and which of all rows these are."""

    inputs: Inputs
    fitted: Chosen
    judging: Rows | None
    judged: Chosen


class LayerRows:
    """Takes what a layer, or several, read; with the targets, which come in one piece, it is each one's samples.

    Args:
        layer: one of them.
        images: how many will be taken in all.
        count: how many rows.
        layers: how many layers will ask for their samples.
    """

    def __init__(self, layer: RefitLayer, images: int, count: int, layers: int = 1) -> None:
        self._layer = layer
        self._held = held_out(images)
        self._judged = max(1, _most_judged(layer) // max(1, int(self._held.sum())))
        self._taken = 0
        self._filled = 0
        self._rows = np.empty((count, 0), np.float32)
        self._judging: list[Rows] = []
        self._parts: list[tuple[Chosen, Chosen]] = []
        self._asking = Lock()
        self._left = layers
        self._made: _Made | None = None

    def add(self, images: int, inputs: Rows) -> None:
        """Take the inputs (n, K I) of the next images, the rows of one beside each other."""
        ordered = spanned_last(inputs, self._layer.kernel_shape, self._layer.spans)
        fitted, judging = self._parted(images, len(inputs))
        if not self._parts:
            self._rows = np.empty((len(self._rows), ordered.shape[1]), np.float32)  # takes memory as it is written to
        end = self._filled + int(fitted.sum())
        together = len(inputs) // images if len(inputs) % images == 0 else 1  # images are fitted to whole: few copies
        wide = together * ordered.shape[1]
        taken = self._rows[self._filled : end].reshape(-1, wide)
        np.compress(fitted[::together], ordered.reshape(-1, wide), axis=0, out=taken)
        self._judging.append(ordered[judging])
        self._parts.append((fitted, judging))
        self._filled = end
        self._taken += images

    @property
    def nbytes(self) -> int:
        """The size of what is fitted to."""
        return (self._rows[: self._filled] if self._made is None else self._made.inputs.rows).nbytes

    def samples(self, layer: RefitLayer, targets: Rows) -> tuple[Samples, Samples | None]:
        """Return the rows to fit a layer to and those that judge, none where there are too few images.

        The last layer that asks makes this forget them. Threads may ask.

        Args:
            targets: of the layer, (n, O), of all images.
        """
        with self._asking:
            made = self._made = self._made or self._all()
            self._left -= 1
            if not self._left:
                self._made = None
        relu = layer.follows_relu
        training = Samples(made.inputs.rows, targets[made.fitted], relu, made.inputs)
        judged = None if made.judging is None else Samples(made.judging, targets[made.judged], relu)
        return training, judged

    def _all(self) -> _Made:
        fitted, judged = (np.concatenate(each) for each in zip(*self._parts, strict=True))
        judging = np.concatenate(self._judging) if judged.any() else None
        inputs = Inputs(self._rows[: self._filled])
        self._rows, self._judging = self._rows[:0], []
        return _Made(inputs, fitted, judging, judged)

    def _parted(self, images: int, count: int) -> tuple[Chosen, Chosen]:
        """Return which of the rows of the next images are fitted to, and which judge."""
        held = self._held[self._taken : self._taken + images]
        if count % images:  # a layer that does not see images apart
            return np.ones(count, np.bool_), np.zeros(count, np.bool_)
        each = count // images
        some = np.zeros(each, np.bool_)
        few = min(each, self._judged)
        some[np.arange(few) * each // few] = True
        return np.repeat(~held, each), (held[:, None] & some).reshape(-1)


def shares_rows(layer: RefitLayer) -> tuple[object, ...]:
    """Return what layers have in common that can have their rows together, if as many are taken of each image."""
    return layer.patches, layer.spans, _most_judged(layer)


def _most_judged(layer: RefitLayer) -> int:
    return min(_JUDGED_ROWS, _JUDGED_BYTES // (4 * layer.outputs))
