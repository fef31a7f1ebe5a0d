"""Statistics of activations, accumulated batch by batch: memory does not depend on the number of samples.

All sums are float64 whatever the activations are.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxcompress.errors import DataError
from onnxcompress.runtime.tensors import Array

Float64 = npt.NDArray[np.float64]


class ChannelMoments:
    """Mean and second moment of each channel over samples and positions."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self._sum = np.zeros(channels)
        self._sum_of_squares = np.zeros(channels)

    def update(self, activations: Array) -> None:
        """Add a batch (B, C, ...)."""
        rows = channel_rows(activations)
        self.count += len(rows)
        self._sum += rows.sum(axis=0)
        self._sum_of_squares += np.einsum("nc,nc->c", rows, rows)

    @property
    def mean(self) -> Float64:
        """E[x], shape (C,)."""
        return self._sum / _counted(self.count)

    @property
    def second_moment(self) -> Float64:
        """E[x²], shape (C,)."""
        return self._sum_of_squares / _counted(self.count)

    @property
    def variance(self) -> Float64:
        """E[x²] - E[x]², shape (C,), never negative."""
        return np.maximum(self.second_moment - self.mean**2, 0.0)


class SecondMoments:
    """Mean and second-moment matrix of vectors: channels (the covariance of a layer's input) or patches."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self._sum = np.zeros(size)
        self._gram = np.zeros((size, size))

    def update(self, activations: Array) -> None:
        """Add a batch (B, C, ...): every position of every sample is one vector of C channels."""
        self.update_rows(channel_rows(activations))

    def update_rows(self, rows: Array) -> None:
        """Add vectors (n, C)."""
        wide = rows.astype(np.float64, copy=False)
        self.count += len(wide)
        self._sum += wide.sum(axis=0)
        self._gram += wide.T @ wide

    @property
    def mean(self) -> Float64:
        """E[x], shape (C,)."""
        return self._sum / _counted(self.count)

    @property
    def second_moment(self) -> Float64:
        """E[x xᵀ], shape (C, C)."""
        return self._gram / _counted(self.count)

    @property
    def covariance(self) -> Float64:
        """E[x xᵀ] - E[x] E[x]ᵀ, shape (C, C)."""
        return self.second_moment - np.outer(self.mean, self.mean)


class Reservoir:
    """A uniform sample of at most `capacity` rows of a stream (Vitter 1985, algorithm R), decided by the seed."""

    def __init__(self, capacity: int, seed: int = 0) -> None:
        self._capacity = capacity
        self._generator = np.random.default_rng(seed)
        self._seen = 0
        self._rows: Array | None = None

    def update_rows(self, rows: Array) -> None:
        """Offer vectors (n, C)."""
        if self._rows is None:
            self._rows = np.empty((self._capacity, rows.shape[1]), rows.dtype)
        fresh = min(len(rows), max(self._capacity - self._seen, 0))
        self._rows[self._seen : self._seen + fresh] = rows[:fresh]
        numbers = np.arange(self._seen + fresh, self._seen + len(rows))
        places = self._generator.integers(0, numbers + 1)
        for row, place in zip(rows[fresh:], places, strict=True):
            if place < self._capacity:
                self._rows[place] = row
        self._seen += len(rows)

    @property
    def rows(self) -> Array:
        """The sample, (min(capacity, seen), C)."""
        _counted(self._seen)
        assert self._rows is not None
        return self._rows[: min(self._seen, self._capacity)]


def channel_rows(activations: Array) -> Float64:
    """Return activations (B, C, ...) as one row of channels for each sample and position, (B * positions, C)."""
    batch, channels = activations.shape[:2]
    spread = activations.reshape(batch, channels, -1)
    return np.ascontiguousarray(spread.transpose(0, 2, 1), np.float64).reshape(-1, channels)


def _counted(count: int) -> int:
    if count == 0:
        raise DataError("no activations were seen")
    return count
