"""The samples of a layer, gathered batch after batch: rows to fit to, and rows of images that only judge.

Rows are written where they stay: together they are most of the memory that a refit takes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxcompress.linalg.moments import Rows
from onnxcompress.linalg.spanning import spanned_last
from onnxcompress.passes.recovery.refit_layers import RefitLayer
from onnxcompress.passes.recovery.refit_solve import Samples, held_out

_JUDGED_ROWS, _JUDGED_BYTES = 8192, 2**28

Chosen = npt.NDArray[np.bool_]


class LayerRows:
    """Takes the inputs of one layer; with the targets, which come in one piece, they are its samples.

    Args:
        images: how many will be taken in all.
        count: how many rows.
    """

    def __init__(self, layer: RefitLayer, images: int, count: int) -> None:
        self._layer = layer
        self._held = held_out(images)
        judged = min(_JUDGED_ROWS, _JUDGED_BYTES // (4 * layer.outputs))
        self._judged = max(1, judged // max(1, int(self._held.sum())))
        self._taken = 0
        self._filled = 0
        self._rows = np.empty((count, 0), np.float32)
        self._judging: list[Rows] = []
        self._parts: list[tuple[Chosen, Chosen]] = []

    def add(self, images: int, inputs: Rows) -> None:
        """Take the inputs (n, K I) of the next images, the rows of one beside each other."""
        ordered = spanned_last(inputs, self._layer.kernel_shape, self._layer.spans)
        fitted, judging = self._parted(images, len(inputs))
        if not self._parts:
            self._rows = np.empty((len(self._rows), ordered.shape[1]), np.float32)  # takes memory as it is written to
        end = self._filled + int(fitted.sum())
        np.compress(fitted, ordered, axis=0, out=self._rows[self._filled : end])
        self._judging.append(ordered[judging])
        self._parts.append((fitted, judging))
        self._filled = end
        self._taken += images

    @property
    def nbytes(self) -> int:
        """The size of what is fitted to."""
        return self._rows[: self._filled].nbytes

    def samples(self, targets: Rows) -> tuple[Samples, Samples | None]:
        """Return the rows to fit to and those that judge, none where there are too few images; and forget them.

        Args:
            targets: (n, O), of all images.
        """
        fitted, judging = (np.concatenate(each) for each in zip(*self._parts, strict=True))
        relu = self._layer.follows_relu
        training = Samples(self._rows[: self._filled], targets[fitted], relu)
        judged = Samples(np.concatenate(self._judging), targets[judging], relu) if judging.any() else None
        self._rows, self._judging = self._rows[:0], []
        return training, judged

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
