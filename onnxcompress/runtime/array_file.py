"""Arrays in a temporary file."""

from __future__ import annotations

import tempfile
import weakref
from threading import Lock
from typing import Any

import numpy as np

from onnxcompress.errors import DataError
from onnxcompress.runtime.tensors import Array


class ArrayFile:
    """Arrays one behind the other in a temporary file: each is written once and read any number of times.

    The file is deleted by `close`, or once nobody holds this. Threads may read at the same time.
    """

    def __init__(self) -> None:
        # Unbuffered: what a full disk does not take shows at once, and nothing is left to be written at the end.
        self._file = tempfile.TemporaryFile(buffering=0, prefix="onnxcompress-")  # noqa: SIM115 - see `finalize`
        self.close = weakref.finalize(self, self._file.close)
        self._places: list[tuple[int, np.dtype[Any], tuple[int, ...]]] = []
        self._moving = Lock()
        self.nbytes = 0

    def __len__(self) -> int:
        """How many arrays there are."""
        return len(self._places)

    def append(self, array: Array) -> None:
        """Write one more array.

        Raises:
            DataError: the disk is full.
        """
        left = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        try:
            while len(left):
                left = left[self._file.write(left.data) :]
        except OSError as error:
            raise DataError(f"{disk_is_full()} ({error.strerror})") from error
        self._places.append((self.nbytes, array.dtype, array.shape))
        self.nbytes += array.nbytes

    def __getitem__(self, number: int) -> Array:
        """Return an array, a new one each time."""
        start, dtype, shape = self._places[number]
        return self._read(start, dtype, int(np.prod(shape))).reshape(shape)

    @property
    def length(self) -> int:
        """The length of `joined`."""
        return sum(shape[0] for _, _, shape in self._places)

    def joined(self) -> Array:
        """Return all arrays, which have one type and one shape but for their first axis, along that."""
        _, dtype, shape = self._places[0]
        return self._read(0, dtype, self.nbytes // dtype.itemsize).reshape(-1, *shape[1:])

    def mapped(self) -> Array:
        """Return what `joined` does, read as it is looked at; it cannot be written to."""
        _, dtype, shape = self._places[0]
        return np.memmap(self._file, dtype, "r", shape=(self.length, *shape[1:]))

    def _read(self, start: int, dtype: np.dtype[Any], count: int) -> Array:
        with self._moving:
            self._file.seek(start)
            return np.fromfile(self._file, dtype, count)


def disk_is_full() -> str:
    """Return what to say where temporary files find no room, and what to do."""
    return (
        f"temporary files fill the disk of {tempfile.gettempdir()}; "
        "give --samples N with fewer, or another folder by TMPDIR"
    )
