"""Views that the original does not recognise are left out of training: they may be of other classes, or of none.

Where they were trained on all the same, a BatchNormalization took their statistics for those of the images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from onnxcompress.passes.recovery.augmentation import Views
from onnxcompress.passes.recovery.graph_module import Tensors
from onnxcompress.passes.recovery.training_data import TrainingData

CHECKED = 500
"""So many samples are looked at."""

# Share of its accuracy that the original must keep on mirrored images for them to be trained on.
_MIRROR_SHARE = 0.95
_SHIFT_SHARE = 0.75
"""The same of shifted ones. Trained with shifts, networks that kept 0.84 of it gained up to 4 points more (digits) or
as much (CIFAR-10); where a column's place is the class, one that kept 0.71 gained 1.6 less, one that kept 0.42 4.6."""

_SAME_SHARE = 0.75
"""The same of any view where there are no labels, of the answers: some turn on any view, also from wrong to wrong."""


class Recognition:
    """How often the original recognises samples: its answer is their label, or what it answers to them as they are.

    Args:
        scores: class scores (B, C) of the original.
        at_once: samples in memory at once.
        labelled: whether the labels of the data are those of the scores.
    """

    def __init__(
        self, data: TrainingData, scores: Callable[[Tensors], Tensor], at_once: int, *, labelled: bool
    ) -> None:
        self._data = data
        self._scores = scores
        self._at_once = at_once
        self._labelled = labelled

    @torch.no_grad()
    def rate(self, changed: Callable[[Tensors], Tensors] = lambda feeds: feeds) -> float:
        """Return the share of some hundreds of samples, all where there are fewer, that it recognises."""
        right: list[Tensor] = []
        for feeds, labels in self._data.batches(self._data.some(CHECKED), self._at_once):
            wanted = labels if self._labelled and labels is not None else self._scores(feeds).argmax(1)
            right.append(self._scores(changed(feeds)).argmax(1) == wanted)
        return float(torch.cat(right)[: min(CHECKED, self._data.count)].double().mean())

    def without_strange(self, views: Views, seed: int) -> tuple[Views, list[str]]:
        """Return views without the kinds that it does not recognise, and a note on each of these."""
        notes: list[str] = []
        if self._data.image_input is None:
            return views, notes
        accuracy = self.rate() if self._labelled else 1.0
        if views.mirror:
            least = accuracy * (_MIRROR_SHARE if self._labelled else _SAME_SHARE)
            if self.rate(self._data.mirrored) < least:
                views = replace(views, mirror=False)
                notes.append("images are not mirrored in training: the original does not recognise mirrored ones")
        if views.shift > 0.0:
            shifts = Views(mirror=False, shift=views.shift)
            generator = torch.Generator().manual_seed(seed)
            least = accuracy * (_SHIFT_SHARE if self._labelled else _SAME_SHARE)
            if self.rate(lambda feeds: self._data.varied(feeds, shifts, generator)) < least:
                views = replace(views, shift=0.0)
                notes.append("images are not shifted in training: the original does not recognise shifted ones")
        return views, notes
