"""Training samples on disk: read once from whatever gives them, then in any order, with little memory."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcompress.errors import DataError
from onnxcompress.passes.base import LABELS
from onnxcompress.runtime.array_file import ArrayFile, disk_is_full

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
"""{name: array (B, ...)}."""

Positions = npt.NDArray[np.int64]

_DISK_SHARE = 0.8  # of what is free: others write temporary files, too
_HALF_ERROR = 1e-3
"""The most that half precision may move a value, relative to the range of what its channel has held so far."""

_KEY_BYTES = 8
_HALF = np.dtype(np.float16)


@dataclass
class _Column:
    """One array of the samples: its file, the type it is kept in and its shape without the samples."""

    file: ArrayFile
    stored: np.dtype[Any]
    given: np.dtype[Any]
    shape: tuple[int, ...]
    rows: Array | None = None
    low: Array | None = None
    high: Array | None = None

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample in the file."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.stored.itemsize

    def append(self, array: Array) -> None:
        """Write samples (B, ...); from the first ones on that half precision does not hold, all are kept whole."""
        if self.stored != self.given:
            halved = self._halved(array)
            if halved is not None:
                self.file.append(halved)
                return
            whole = ArrayFile()
            for number in range(len(self.file)):
                whole.append(self.file[number].astype(self.given))
            self.file.close()
            self.file, self.stored = whole, self.given
        self.file.append(array)

    def _halved(self, array: Array) -> Array | None:
        """Return an array (B, C, ...) in half precision, None where that is too coarse for its range."""
        others = (0, *range(2, array.ndim))
        low, high = array.min(others), array.max(others)
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)
        with np.errstate(over="ignore"):
            halved = array.astype(_HALF)
        moved = np.abs(array - halved).max(others)
        fits = bool((moved <= _HALF_ERROR * (self.high - self.low)).all())
        return halved if fits else None


class SampleFiles:
    """Samples of named arrays, in one temporary file for each name; a context that removes them.

    Floating-point values are kept in half precision as long as that is close to them: the steps of pixels are coarser.

    Args:
        where: for messages.

    Attributes:
        count: how many samples there are.
        keys: of each sample; see `sample_keys`.
    """

    def __init__(self, where: str) -> None:
        self._columns: dict[str, _Column] = {}
        self._where = where
        self._free = int(shutil.disk_usage(tempfile.gettempdir()).free * _DISK_SHARE)
        self.count = 0
        self.keys: list[bytes] = []

    def add(self, batches: Iterable[Arrays]) -> Positions:
        """Read samples to the end and keep them; return their positions.

        Raises:
            DataError: there are none, a value is NaN or infinite, or they do not fit those before or the disk.
        """
        before = self.count
        for batch in batches:
            self._append(batch)
        if self.count == before:
            raise DataError(f"{self._where}: no samples")
        for column in self._columns.values():
            column.rows = column.file.mapped()
        return np.arange(before, self.count, dtype=np.int64)

    def __enter__(self) -> SampleFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the files."""
        for column in self._columns.values():
            column.rows = None
            column.file.close()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of one sample by name."""
        return {name: column.shape for name, column in self._columns.items()}

    def digest(self) -> str:
        """Return a hash of all samples and their labels, in their order."""
        whole = hashlib.sha256(b"".join(self.keys))
        if LABELS in self._columns:
            whole.update(self._columns[LABELS].file.joined().tobytes())
        return whole.hexdigest()

    def _append(self, batch: Arrays) -> None:
        for name, array in batch.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise DataError(f"{self._where}: '{name}' holds NaN or infinity, at samples from {self.count}")
            if name not in self._columns:
                self._columns[name] = _Column(ArrayFile(), _stored_type(array), array.dtype, array.shape[1:])
            column = self._columns[name]
            if array.shape[1:] != column.shape:
                raise DataError(
                    f"{self._where}: '{name}' has samples of shapes {column.shape} and {array.shape[1:]}; "
                    "training needs one size: give a preprocess TOML file with resize and crop"
                )
            column.append(array.astype(column.given, copy=False))
        self.count += len(next(iter(batch.values())))
        self.keys += sample_keys(batch)
        self._check_size(
            sum(column.sample_bytes for column in self._columns.values()) * len(next(iter(batch.values())))
        )

    def _check_size(self, added: int) -> None:
        self._free -= added
        if self._free < 0:
            raise DataError(f"{self._where}, the first {self.count} samples: {disk_is_full()}")

    def read(self, positions: Positions, names: Collection[str] | None = None) -> dict[str, Array]:
        """Return the samples at `positions`, in that order and in the types they were given in; all names or some."""
        read: dict[str, Array] = {}
        for name, column in self._columns.items():
            if names is not None and name not in names:
                continue
            assert column.rows is not None
            read[name] = np.asarray(column.rows[positions]).astype(column.given)
        return read


def sample_keys(batch: Arrays) -> list[bytes]:
    """Return a short hash of each sample's inputs; its label has no part in it."""
    inputs = [np.ascontiguousarray(array) for name, array in sorted(batch.items()) if name != LABELS]
    keys = []
    for number in range(len(inputs[0])):
        key = hashlib.blake2b(digest_size=_KEY_BYTES)
        for array in inputs:
            key.update(array[number].tobytes())
        keys.append(key.digest())
    return keys


def _stored_type(array: Array) -> np.dtype[Any]:
    return _HALF if array.dtype.kind == "f" and array.size > 0 and array.ndim > 1 else array.dtype
