"""Samples that are prepared once: their first reading keeps them in temporary files for those that follow."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping

from onnxcompress.errors import DataError
from onnxcompress.runtime.array_file import ArrayFile
from onnxcompress.runtime.tensors import Array

_MOST_BYTES = 2**30
_DISK_SHARE = 0.125  # of what is free: what is kept only saves time, other temporary files are needed

Files = dict[str, ArrayFile]


class KeptSamples:
    """A stream of batches that gives the same ones at each call, decoded and resized at the first only.

    The first stream that is read to its end leaves its batches in temporary files, which are deleted with this; where
    they would take more than 1 GB or an eighth of the free disk, every stream comes from the source. Several may be
    read at a time.

    Args:
        source: starts a fresh stream of {input: array (B, ...)}.
    """

    def __init__(self, source: Callable[[], Iterable[Mapping[str, Array]]]) -> None:
        self._source = source
        self._kept: Files | None = None
        self._fit = True

    def __call__(self) -> Iterator[Mapping[str, Array]]:
        return self._from_source() if self._kept is None else _read(self._kept)

    def _from_source(self) -> Iterator[Mapping[str, Array]]:
        most = min(_MOST_BYTES, _DISK_SHARE * shutil.disk_usage(tempfile.gettempdir()).free)
        files: Files = {}
        for batch in self._source():
            if self._fit and not _append(files, batch, most):
                self._fit, files = False, {}
            yield batch
        if self._fit:
            self._kept = files


def _append(files: Files, batch: Mapping[str, Array], most: float) -> bool:
    """Write a batch; return whether there was room for it."""
    if sum(file.nbytes for file in files.values()) + sum(array.nbytes for array in batch.values()) > most:
        return False
    try:
        for name, array in batch.items():
            files.setdefault(name, ArrayFile()).append(array)
    except DataError:
        return False
    return True


def _read(files: Files) -> Iterator[Mapping[str, Array]]:
    for number in range(max(map(len, files.values()), default=0)):
        yield {name: file[number] for name, file in files.items()}
