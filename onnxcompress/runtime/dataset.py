"""Datasets: samples in batches, streamed, re-iterable, with splits and subsets that do not depend on the batch size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import numpy.typing as npt

from onnxcompress.errors import DataError
from onnxcompress.runtime.batch import Batch, Labels
from onnxcompress.runtime.kept import KeptBatches
from onnxcompress.runtime.tensors import Array, TensorInfo, conform, fixed_batch

Positions = npt.NDArray[np.int64]

DEFAULT_BATCH = 16


class Dataset(ABC):
    """Samples for one model."""

    def __init__(self, name: str, inputs: Sequence[TensorInfo]) -> None:
        self.name = name
        self.inputs = tuple(inputs)

    @property
    @abstractmethod
    def length(self) -> int | None:
        """The number of samples, or None where only reading to the end would tell."""

    @property
    @abstractmethod
    def has_labels(self) -> bool:
        """Whether every sample has a class number."""

    @abstractmethod
    def limit(self, samples: int) -> Dataset:
        """Return at most `samples` of them: evenly spread where the length is known (files are often sorted by class),
        the first ones of a stream."""

    @abstractmethod
    def split(self, fraction: float, seed: int = 0) -> tuple[Dataset, Dataset]:
        """Return two datasets without a common sample, the first with about `fraction` of them, chosen by `seed`.

        Raises:
            DataError: one of the two would be empty.
        """

    @abstractmethod
    def _batches(self, batch_size: int) -> Iterator[Batch]:
        """Stream batches of at most `batch_size` samples."""

    def batches(self, batch_size: int = DEFAULT_BATCH) -> Iterator[Batch]:
        """Stream the samples, in the same order every time.

        A batch that the model fixes replaces `batch_size`.

        Raises:
            DataError: there are no samples, or one is damaged, holds NaN or infinity, or does not fit the model.
        """
        fixed = fixed_batch(self.inputs)
        empty = True
        done = 0
        for batch in self._batches(fixed or batch_size):
            empty = False
            _check_finite(batch, self.name, done)
            done += batch.size
            yield filled(batch, fixed) if fixed and batch.size < fixed else batch
        if empty:
            raise DataError(f"{self.name}: no samples")

    def kept(self, batch_size: int = DEFAULT_BATCH) -> KeptBatches:
        """Return a callable that starts a fresh stream of batches; the first one prepares them."""
        return KeptBatches(self.name, lambda: self.batches(batch_size))

    def samples(self, batch_size: int = DEFAULT_BATCH) -> Callable[[], Iterator[Mapping[str, Array]]]:
        """Return what `kept` does, of inputs without labels."""
        batches = self.kept(batch_size)
        return lambda: (batch.inputs for batch in batches())


class Source(Protocol):
    """Samples that can be read by position, in ascending order."""

    @property
    def name(self) -> str: ...

    @property
    def length(self) -> int: ...

    @property
    def labels(self) -> Labels | None:
        """The labels of all samples, (length,)."""

    def open(self) -> AbstractContextManager[Callable[[Positions], Mapping[str, Array]]]:
        """Return a context whose value reads the inputs of ascending positions; successive calls never go back."""


class IndexedDataset(Dataset):
    """Samples of known number: image folders and `.npz` files."""

    def __init__(self, source: Source, inputs: Sequence[TensorInfo], positions: Positions | None = None) -> None:
        super().__init__(source.name, inputs)
        self._source = source
        self._positions = np.arange(source.length, dtype=np.int64) if positions is None else positions

    @property
    def length(self) -> int:
        return len(self._positions)

    @property
    def has_labels(self) -> bool:
        return self._source.labels is not None

    def limit(self, samples: int) -> IndexedDataset:
        count = min(samples, self.length)
        chosen = (np.arange(count) * self.length + self.length // 2) // max(count, 1)
        return self._with(self._positions[chosen])

    def split(self, fraction: float, seed: int = 0) -> tuple[IndexedDataset, IndexedDataset]:
        count = round(self.length * fraction)
        if not 0 < count < self.length:
            raise DataError(f"{self.name}: {self.length} samples are too few to split off {fraction:.0%} of them")
        order = np.random.default_rng(seed).permutation(self.length)
        first, second = (self._positions[np.sort(part)] for part in (order[:count], order[count:]))
        return self._with(first), self._with(second)

    def _with(self, positions: Positions) -> IndexedDataset:
        return IndexedDataset(self._source, self.inputs, positions)

    def _batches(self, batch_size: int) -> Iterator[Batch]:
        labels = self._source.labels
        with self._source.open() as read:
            for start in range(0, self.length, batch_size):
                positions = self._positions[start : start + batch_size]
                feeds = conform(read(positions), of_any_batch(self.inputs), self.name)
                yield Batch(feeds, None if labels is None else labels[positions], len(positions))


def _check_finite(batch: Batch, where: str, done: int) -> None:
    """Refuse NaN and infinity where they come in: behind the model nothing tells whose they are."""
    for name, array in batch.inputs.items():
        if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
            row = int(np.argmin(finite.reshape(len(array), -1).all(axis=1)))
            seen = array[row][~finite[row]].flat[0]
            raise DataError(
                f"{where}: sample {done + row} holds {seen} as {array.dtype} in '{name}'; finite numbers are needed"
            )


def of_any_batch(inputs: Sequence[TensorInfo]) -> tuple[TensorInfo, ...]:
    """Return the inputs with an open first size: a short last batch is checked before it is filled up."""
    return tuple(TensorInfo(i.name, i.dtype, (None, *i.shape[1:])) if i.shape else i for i in inputs)


def filled(batch: Batch, size: int) -> Batch:
    """Return a batch of so many rows, which repeat the last sample; its size stays."""
    inputs = {
        name: np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])
        for name, array in batch.inputs.items()
    }
    return Batch(inputs, batch.labels, batch.size)
