"""Samples for training: kept on disk, split, and served as views on a device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from onnxcompress.errors import DataError
from onnxcompress.graph import Model
from onnxcompress.passes.base import LABELS, Samples
from onnxcompress.passes.recovery.augmentation import Views, is_image, random_views
from onnxcompress.passes.recovery.block_errors import to_feeds
from onnxcompress.passes.recovery.refit_solve import held_out as refit_holds_out
from onnxcompress.passes.recovery.sample_files import Positions, SampleFiles, sample_keys
from onnxcompress.passes.recovery.training import FEW_JUDGE

_MOST_HELD_OUT = 2000


class TrainingData:
    """Samples to train on and samples to judge by.

    Args:
        files: hold the graph's inputs by name, and labels under `LABELS` where there are any.
        trained, held_out: positions of the two parts, none twice; see `split_off`.
        fixed_batch: the batch that the model fixes, None where it is open.
        processes: that share the samples to train on.
    """

    def __init__(
        self,
        files: SampleFiles,
        trained: Positions,
        held_out: Positions,
        device: torch.device,
        fixed_batch: int | None,
        processes: int = 1,
    ) -> None:
        self._files = files
        self._device = device
        self.fixed_batch = fixed_batch
        self._processes = processes
        self.counts: Mapping[str, int] = {"trained": len(trained), "held_out": len(held_out)}
        # Whole batches, some samples twice (the first ones again), where the model takes no others.
        self.trained = trained if fixed_batch is None else _whole(trained, self.step(1))
        self.held_out = held_out if fixed_batch is None else _whole(held_out, fixed_batch)

    @property
    def has_labels(self) -> bool:
        """Whether every sample has a class number."""
        return LABELS in self._files.shapes

    @property
    def count(self) -> int:
        """How many samples there are."""
        return sum(self.counts.values())

    def some(self, count: int) -> Positions:
        """Return positions of at most so many samples, those that judge first, in whole batches of the model."""
        held_out, trained = (self.counts[part] for part in ("held_out", "trained"))
        rest = min(max(0, count - held_out), trained)
        spread = np.arange(rest) * trained // max(1, rest)  # files are often sorted by class
        chosen = np.concatenate([self.held_out[: min(count, held_out)], self.trained[spread]])
        return chosen if self.fixed_batch is None else _whole(chosen, self.fixed_batch)

    def step(self, batch: int) -> int:
        """Return the samples of a step of at least `batch`: whole batches of the model in each process."""
        least = 1 if self.fixed_batch is None else self.fixed_batch * self._processes
        return -(-batch // least) * least

    def check_labels(self, classes: int) -> None:
        """Refuse labels beyond the classes.

        Raises:
            DataError: there is one.
        """
        if not self.has_labels:
            return
        for part in (self.trained, self.held_out):
            worst = int(self._files.read(part, (LABELS,))[LABELS].max())
            if worst >= classes:
                raise DataError(
                    f"training data: label {worst} is not a class; the model has classes 0 to {classes - 1}"
                )

    @property
    def image_input(self) -> str | None:
        """The name of the only input where its samples are images (C, H, W), else None."""
        inputs = {name: shape for name, shape in self._files.shapes.items() if name != LABELS}
        name, shape = next(iter(inputs.items()))
        return name if len(inputs) == 1 and is_image(shape) else None

    def batches(self, positions: Positions, size: int) -> Iterator[tuple[dict[str, Tensor], Tensor | None]]:
        """Stream inputs and labels as they are, in batches of at most `size`."""
        for start in range(0, len(positions), self.fixed_batch or size):
            yield self.views(positions[start : start + (self.fixed_batch or size)], None, None)

    def mirrored(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return inputs with images mirrored left to right."""
        return {name: tensor.flip(3) if name == self.image_input else tensor for name, tensor in feeds.items()}

    def varied(self, feeds: Mapping[str, Tensor], views: Views, generator: torch.Generator) -> dict[str, Tensor]:
        """Return inputs with random views of images."""
        name = self.image_input
        return {each: random_views(t, views, generator) if each == name else t for each, t in feeds.items()}

    def views(
        self, positions: Positions, views: Views | None, generator: torch.Generator | None
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return random views of the samples at `positions`, and their labels (B,) or None."""
        arrays = {name: torch.from_numpy(array) for name, array in self._files.read(positions).items()}
        labels = arrays.pop(LABELS, None)
        feeds = to_feeds(arrays, self._device)
        if views is not None and generator is not None:
            feeds = self.varied(feeds, views, generator)
        return feeds, None if labels is None else labels.to(self._device)


def split_off(
    positions: Positions, share: float, seed: int, *, least: int = 1, known: npt.NDArray[np.bool_] | None = None
) -> tuple[Positions, Positions]:
    """Return positions to train on and positions to judge by.

    Args:
        share: of those that judge; 1 at least and 2,000 at most.
        least: so many judge, where that is no more than half.
        known: (n,); those that judge only where there are fewer than `FEW_JUDGE` others.

    Raises:
        DataError: there is only one.
    """
    if len(positions) < 2:
        raise DataError("training needs at least 2 samples, one of them to judge by; give more data")
    count = max(1, round(len(positions) * share), min(least, len(positions) // 2))
    count = min(count, _MOST_HELD_OUT, len(positions) - 1)
    order = np.random.default_rng(seed).permutation(len(positions))
    if known is not None:
        count = min(count, max(FEW_JUDGE, int(np.count_nonzero(~known))))
        order = order[np.argsort(known[order], kind="stable")]
    order = positions[order]
    return np.sort(order[count:]), np.sort(order[:count])


def fitted_keys(calibration: Samples) -> set[bytes]:
    """Return the keys of the calibration samples that a refit is fitted to: all but those that it holds out."""
    keys = [key for batch in calibration() for key in sample_keys(batch)]
    return {key for key, held in zip(keys, refit_holds_out(len(keys)), strict=True) if not held}


def model_batch(model: Model) -> int | None:
    """Return the batch that a model's first input fixes, None where it is open."""
    shape = model.shape_of(model.graph.inputs[0])
    return shape[0] if shape and isinstance(shape[0], int) else None


def _whole(positions: Positions, batch: int) -> Positions:
    return np.resize(positions, -(-len(positions) // batch) * batch)
