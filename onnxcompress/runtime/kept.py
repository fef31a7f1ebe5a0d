"""Samples that are prepared once: their first reading keeps them in temporary files for those that follow."""

from __future__ import annotations

import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from onnxcompress.errors import DataError
from onnxcompress.runtime.array_file import ArrayFile
from onnxcompress.runtime.batch import Batch

_MOST_BYTES = 2**30
_DISK_SHARE = 0.125  # of what is free: what is kept only saves time, other temporary files are needed


class KeptBatches:
    """A stream of batches that gives the same ones at each call, decoded and resized at the first only.

    The first stream that is read to its end leaves its batches in temporary files, which are deleted with this; where
    they would take more than 1 GB or an eighth of the free disk, every stream comes from the source, and has to give
    what the first one gave. Several may be read at a time.

    Args:
        name: of the data, for messages.
        source: starts a fresh stream.

    Raises (a stream):
        DataError: the source gives other samples than at its first reading.
    """

    def __init__(self, name: str, source: Callable[[], Iterable[Batch]]) -> None:
        self._name = name
        self._source = source
        self._files: _Files | None = None
        self._sums: list[int] | None = None
        self._fit = True

    def __call__(self) -> Iterator[Batch]:
        return self._from_source() if self._files is None else self._files.batches()

    def _from_source(self) -> Iterator[Batch]:
        most = min(_MOST_BYTES, _DISK_SHARE * shutil.disk_usage(tempfile.gettempdir()).free)
        files, sums = _Files(), list[int]()
        for batch in self._source():
            sums.append(_checksum(batch))
            self._check(sums)
            if self._fit and not files.append(batch, most):
                self._fit, files = False, _Files()
            yield batch
        if self._sums is None:
            self._sums = sums
        elif len(sums) < len(self._sums):
            raise self._changed()
        if self._fit:
            self._files = files

    def _check(self, sums: list[int]) -> None:
        if self._sums is not None and sums[-1:] != self._sums[len(sums) - 1 : len(sums)]:
            raise self._changed()

    def _changed(self) -> DataError:
        return DataError(
            f"{self._name}: gave other samples when it was read again; it must give the same ones in the same order "
            "every time (give what shuffles or draws them a fixed seed at each start)"
        )


@dataclass
class _Files:
    """Batches in temporary files, but for their labels and sizes."""

    arrays: dict[str, ArrayFile] = field(default_factory=dict)
    others: list[Batch] = field(default_factory=list)

    def append(self, batch: Batch, most: float) -> bool:
        """Write a batch; return whether there was room for it in `most` bytes."""
        kept = sum(file.nbytes for file in self.arrays.values())
        if kept + sum(array.nbytes for array in batch.inputs.values()) > most:
            return False
        try:
            for name, array in batch.inputs.items():
                self.arrays.setdefault(name, ArrayFile()).append(array)
        except DataError:
            return False
        self.others.append(replace(batch, inputs={}))
        return True

    def batches(self) -> Iterator[Batch]:
        for number, other in enumerate(self.others):
            yield replace(other, inputs={name: file[number] for name, file in self.arrays.items()})


def _checksum(batch: Batch) -> int:
    total = batch.size
    for array in (*batch.inputs.values(), *([] if batch.labels is None else [batch.labels])):
        total = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, total)
    return total
