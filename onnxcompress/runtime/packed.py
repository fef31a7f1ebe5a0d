"""Image files packed into an `.npz`: all of them end to end in one array, and where each begins.

`NAME_jpeg` (uint8, any format that Pillow decodes), `NAME_offsets` (N + 1; image i is `jpeg[offsets[i]:offsets[i+1]]`)
and optionally `NAME_labels` (N) are a split called NAME, such as `train` or `test`; further arrays are left alone. A
tenth of the size of decoded pixels, and one file instead of ten thousands.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from onnxcompress.errors import DataError
from onnxcompress.runtime.batch import Labels
from onnxcompress.runtime.dataset import Positions
from onnxcompress.runtime.images import ImageTransform, stack
from onnxcompress.runtime.npz import DAMAGES, opened_archive, read_header, read_members, whole_array
from onnxcompress.runtime.streams import checked_labels
from onnxcompress.runtime.tensors import Array

_FILES, _OFFSETS, _LABELS = "_jpeg", "_offsets", "_labels"


def packed_splits(path: Path) -> tuple[str, ...]:
    """Return the names of the splits that an `.npz` file holds as packed image files, in its order."""
    members = read_members(path)
    names = (name.removesuffix(_FILES) for name in members if name.endswith(_FILES))
    return tuple(name for name in names if f"{name}{_OFFSETS}" in members)


class PackedImages:
    """A `Source` of packed image files.

    Args:
        path: the file.
        input_name: of the model's input.
        transform: from an image to the input.
        classes: the number of the model's classes, where known.
        split: the split to read; the only one where the file holds one.
        reads_labels: whether the labels are read, which may be anything where they are not.

    Raises (constructor):
        DataError: there is no such split, the arrays do not fit one another, or a label is no class.
    """

    def __init__(
        self,
        path: Path,
        input_name: str,
        transform: ImageTransform,
        classes: int | None,
        split: str | None,
        *,
        reads_labels: bool = True,
    ) -> None:
        self._path = path
        self._input_name = input_name
        self._transform = transform
        splits = packed_splits(path)
        chosen = splits[0] if len(splits) == 1 else split
        if chosen not in splits:
            asked = "no split was named" if split is None else f"'{split}' is none of them"
            raise DataError(f"{path}: holds packed images of the splits {', '.join(splits)}, and {asked}")
        self._split = chosen
        members = read_members(path)
        files = members[f"{chosen}{_FILES}"]
        if files.dtype != np.uint8 or len(files.shape) != 1:
            raise DataError(f"{path}: '{chosen}{_FILES}' is {files.dtype} {list(files.shape)}; uint8 [bytes] is needed")
        self._entry, self._name = files.entry, files.name
        offsets = whole_array(path, f"{chosen}{_OFFSETS}")
        self._offsets = _checked_offsets(offsets, files.shape[0], f"{path}: '{chosen}'")
        labels = f"{chosen}{_LABELS}"
        is_labelled = reads_labels and labels in members
        self.labels: Labels | None = checked_labels(whole_array(path, labels), str(path)) if is_labelled else None
        if self.labels is not None and len(self.labels) != self.length:
            raise DataError(f"{path}: '{chosen}' has {self.length} images and {len(self.labels)} labels")
        if self.labels is not None and classes is not None and self.labels.max(initial=0) >= classes:
            raise DataError(
                f"{path}: label {self.labels.max()} of '{chosen}' is not a class; "
                f"the model has classes 0 to {classes - 1}"
            )

    @property
    def name(self) -> str:
        return f"{self._path} ({self._split})"

    @property
    def length(self) -> int:
        return len(self._offsets) - 1

    @contextmanager
    def open(self) -> Iterator[Callable[[Positions], Mapping[str, Array]]]:
        with (
            opened_archive(self._path) as archive,
            archive.open(self._entry) as stream,
            ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool,
        ):
            read_header(stream, self._entry)
            start = stream.tell()

            def encoded(position: int) -> bytes:
                first, last = (int(offset) for offset in self._offsets[position : position + 2])
                try:
                    stream.seek(start + first)
                    data = stream.read(last - first)
                except DAMAGES as error:
                    raise DataError(f"{self._path}: array '{self._name}' is damaged: {error}") from error
                return data

            def read(positions: Positions) -> Mapping[str, Array]:
                names = [f"{self.name}, image {position}" for position in positions]
                files = [io.BytesIO(encoded(int(position))) for position in positions]
                arrays = list(pool.map(self._transform.from_stream, files, names))
                return {self._input_name: stack(arrays, names)}

            yield read


def _checked_offsets(offsets: Array, size: int, where: str) -> Array:
    is_row = offsets.ndim == 1 and offsets.dtype.kind in "iu" and len(offsets) > 1
    if not is_row or (np.diff(offsets.astype(np.int64)) < 0).any() or offsets[0] < 0 or offsets[-1] > size:
        raise DataError(f"{where}: the offsets must be whole numbers that ascend from 0 to at most {size}")
    return offsets.astype(np.int64)
