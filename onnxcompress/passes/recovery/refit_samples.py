"""The samples of a layer, gathered batch after batch: rows to fit to, and rows of images that only judge.

Rows are written where they stay: together they are most of the memory that a refit takes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxcompress.linalg.moments import Rows
from onnxcompress.passes.recovery.refit_layers import RefitLayer
from onnxcompress.passes.recovery.refit_solve import Samples, held_out, spanned_last

_JUDGED_ROWS = 8192


class LayerRows:
    """Takes the inputs of one layer; with the targets, which come in one piece, they are its samples.

    Args:
        images: how many will be taken in all.
    """

    def __init__(self, layer: RefitLayer, images: int) -> None:
        self._layer = layer
        self._held = held_out(images)
        self._fitted = _Part(~self._held)
        self._judging = _Part(self._held)
        self._taken = 0

    def add(self, images: int, inputs: Rows) -> None:
        """Take the inputs (B P, K I) of the next B images, the positions of one beside each other."""
        ordered = spanned_last(inputs, self._layer.spanned, self._layer.positions)
        by_image = ordered.reshape(images, len(inputs) // images, -1)
        numbers = slice(self._taken, self._taken + images)
        self._fitted.add(by_image, numbers, by_image.shape[1])
        self._judging.add(by_image, numbers, self._judged(by_image.shape[1]))
        self._taken += images

    @property
    def nbytes(self) -> int:
        """The size of what was taken."""
        return self._fitted.nbytes + self._judging.nbytes

    def samples(self, targets: Rows) -> tuple[Samples, Samples | None]:
        """Return the rows to fit to and those that judge, none where there are too few images.

        Args:
            targets: (n, O), of all images.
        """
        by_image = targets.reshape(len(self._held), -1, targets.shape[1])
        positions = by_image.shape[1]
        relu = self._layer.follows_relu
        fitted = Samples(self._fitted.rows(), by_image[~self._held].reshape(-1, targets.shape[1]), relu)
        if not self._held.any():
            return fitted, None
        judged = _spread(self._judged(positions), positions)
        answers = by_image[self._held][:, judged].reshape(-1, targets.shape[1])
        return fitted, Samples(self._judging.rows(), answers, relu)

    def _judged(self, positions: int) -> int:
        return max(1, min(positions, _JUDGED_ROWS // max(1, int(self._held.sum()))))


class _Part:
    """The rows of some of the images; `chosen` says of every image whether it is one of them."""

    def __init__(self, chosen: npt.NDArray[np.bool_]) -> None:
        self._chosen = chosen
        self._rows: Rows | None = None  # (images, positions, D)
        self._filled = 0

    def add(self, by_image: Rows, numbers: slice, positions: int) -> None:
        """Take so many positions of those of the images (B, P, D) that are chosen."""
        if self._rows is None:
            self._rows = np.empty((int(self._chosen.sum()), positions, by_image.shape[2]), np.float32)
        own = np.flatnonzero(self._chosen[numbers])
        into = self._rows[self._filled : self._filled + len(own)]
        if positions == by_image.shape[1]:
            np.take(by_image, own, axis=0, out=into, mode="clip")  # in any other mode into a copy first
        else:
            into[:] = by_image[own[:, None], _spread(positions, by_image.shape[1])]
        self._filled += len(own)

    @property
    def nbytes(self) -> int:
        """The size of the rows."""
        return 0 if self._rows is None else self._rows.nbytes

    def rows(self) -> Rows:
        """Return them, and forget them.

        Raises:
            ValueError: there are none.
        """
        rows, self._rows = self._rows, None
        if rows is None:
            raise ValueError("no samples were seen")
        return rows.reshape(-1, rows.shape[2])


def _spread(count: int, of: int) -> npt.NDArray[np.intp]:
    """Return `count` of the numbers below `of`, evenly spread."""
    return np.arange(count) * of // count
