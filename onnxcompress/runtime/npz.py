"""`.npz` files, read row by row: no array is ever whole in memory, and nothing is unpickled."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from onnxcompress.errors import DataError
from onnxcompress.runtime.batch import Labels
from onnxcompress.runtime.dataset import Positions
from onnxcompress.runtime.images import ImageTransform
from onnxcompress.runtime.streams import LABELS, checked_labels
from onnxcompress.runtime.tensors import Array, TensorInfo

IMAGES = "images"

_HOLDS_OBJECTS = "holds pickled objects, which are never loaded"

DAMAGES = (
    *(OSError, EOFError, KeyError, RuntimeError, ValueError, MemoryError, OverflowError),
    *(struct.error, zlib.error, zipfile.BadZipFile),
)
"""What Python's `zipfile` and numpy raise on a damaged archive; RuntimeError: it claims to be encrypted or of a later
format, MemoryError: a header claims more than there can be."""


@dataclass(frozen=True)
class Member:
    """One array of the file: its header, and the archive's entry that holds it."""

    name: str
    entry: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool


class Npz:
    """A `Source` over the arrays of a `.npz` file.

    Args:
        path: the file.
        inputs: the model's inputs.
        transform: for `images` (uint8, (N, H, W) or (N, H, W, C)); without it the arrays are the inputs themselves.
        classes: the number of the model's classes, where known.
        reads_labels: whether the labels are read, which may be anything where they are not.

    Raises (constructor):
        DataError: not a `.npz` file, pickled objects, wrong names, lengths or labels.
    """

    def __init__(
        self,
        path: Path,
        inputs: Sequence[TensorInfo],
        transform: ImageTransform | None,
        classes: int | None,
        *,
        reads_labels: bool = True,
    ) -> None:
        self._path = path
        self._transform = transform
        self._input_name = inputs[0].name
        members = read_members(path)
        self._names = [IMAGES] if transform else [info.name for info in inputs]
        self._check_names(members)
        self._members = {name: members[name] for name in self._names}
        if transform:
            _check_images(members[IMAGES], path)
        read = [name for name in members if name in self._names or reads_labels]
        self.labels = self._read_labels(classes) if LABELS in read and LABELS not in self._names else None
        lengths = {name: members[name].shape[0] if members[name].shape else 0 for name in read}
        if len(set(lengths.values())) != 1:
            shown = ", ".join(f"'{name}' {length}" for name, length in lengths.items())
            raise DataError(f"{path}: the arrays need the same length, these have {shown}")
        self.length = lengths[self._names[0]]

    @property
    def name(self) -> str:
        return str(self._path)

    @contextmanager
    def open(self) -> Iterator[Callable[[Positions], Mapping[str, Array]]]:
        with ExitStack() as stack:
            archive = stack.enter_context(opened_archive(self._path))
            readers = {name: stack.enter_context(_rows(archive, m, self._path)) for name, m in self._members.items()}

            def read(positions: Positions) -> Mapping[str, Array]:
                rows = {name: reader(positions) for name, reader in readers.items()}
                if self._transform is None:
                    return rows
                pixels = [self._transform.from_pixels(image, str(self._path)) for image in rows[IMAGES]]
                return {self._input_name: np.stack(pixels)}

            yield read

    def _check_names(self, members: Mapping[str, Member]) -> None:
        missing = [name for name in self._names if name not in members]
        unknown = [name for name in members if name not in (*self._names, LABELS)]
        if missing or unknown:
            held, wanted = (", ".join(f"'{name}'" for name in names) or "nothing" for names in (members, self._names))
            raise DataError(
                f"{self._path}: holds {held}; the model needs {wanted} (or '{IMAGES}' as uint8 NHWC with a preset), "
                f"and optionally '{LABELS}'"
            )

    def _read_labels(self, classes: int | None) -> Labels:
        labels = checked_labels(whole_array(self._path, LABELS), str(self._path))
        if classes is not None and labels.size and labels.max() >= classes:
            row = int(np.argmax(labels >= classes))
            raise DataError(
                f"{self._path}: label {labels[row]} at position {row} is not a class; "
                f"the model has classes 0 to {classes - 1}"
            )
        return labels


def read_members(path: Path) -> dict[str, Member]:
    """Read the headers of all arrays.

    Raises:
        DataError: the file is missing or no `.npz`, or an array holds pickled objects.
    """
    members: dict[str, Member] = {}
    with opened_archive(path) as archive:
        rows = path.stat().st_size
        for entry in archive.namelist():
            name = entry.removesuffix(".npy")
            try:
                with archive.open(entry) as stream:
                    member = read_header(stream, entry)
                if member.dtype.hasobject and not name.endswith(LABELS):  # what those are is asked where they are read
                    raise DataError(f"array '{name}' {_HOLDS_OBJECTS}")
                if _row_bytes(member) and not member.dtype.hasobject:
                    _check_length(member, archive.getinfo(entry).file_size)
                    rows = max([rows, *member.shape[:1]])
            except DataError as error:
                raise DataError(f"{path}: {error}") from error
            except Exception as error:
                raise DataError(f"{path}: array '{name}' is damaged: {error}") from error
            members[name] = member
    for member in members.values():
        # How many rows of no numbers there are only the arrays beside them tell; more than the file's bytes are none.
        if not _row_bytes(member) and member.shape and member.shape[0] > rows:
            raise DataError(
                f"{path}: array '{member.name}' ends early: {list(member.shape)} holds nothing, and no array "
                "beside it has as many rows"
            )
    return members


def whole_array(path: Path, name: str) -> Array:
    """Read one (small) array.

    Raises:
        DataError: it is not there, or damaged.
    """
    if (member := read_members(path).get(name)) is not None and member.dtype.hasobject:
        raise DataError(f"{path}: array '{name}' {_HOLDS_OBJECTS}")
    try:
        with np.load(path, allow_pickle=False) as file:
            array: Array = file[name]
    except DAMAGES as error:
        raise DataError(f"{path}: array '{name}' is damaged: {error}") from error
    return array


def opened_archive(path: Path) -> zipfile.ZipFile:
    """Open a `.npz` file as the archive it is.

    Raises:
        DataError: the file is missing or is none.
    """
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path}: is no regular file, which a .npz file must be")
        return zipfile.ZipFile(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except PermissionError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except DAMAGES as error:
        raise DataError(f"{path}: not a .npz file: {error}") from error


def read_header(stream: IO[bytes], entry: str) -> Member:
    """Read the header of one array, up to where its values start."""
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran_order, dtype = read(stream)
    return Member(entry.removesuffix(".npy"), entry, shape, dtype, fortran_order)


def _row_bytes(member: Member) -> int:
    return math.prod(member.shape[1:]) * member.dtype.itemsize


def _check_length(member: Member, size: int) -> None:
    """Refuse a header that claims more rows than the entry of `size` bytes can hold."""
    if member.shape and member.shape[0] * _row_bytes(member) > size:
        claimed = f"{member.dtype} {list(member.shape)}"
        raise DataError(f"array '{member.name}' ends early: {size} bytes do not hold {claimed}; copy the file again")


@contextmanager
def _rows(archive: zipfile.ZipFile, member: Member, path: Path) -> Iterator[Callable[[Positions], Array]]:
    """Yield a reader of rows at ascending positions, which never goes back in the (often compressed) stream."""
    row_shape = member.shape[1:]
    row_bytes = _row_bytes(member)
    with ExitStack() as opened:
        try:
            stream = opened.enter_context(archive.open(member.entry))
            read_header(stream, member.entry)
            start = stream.tell()
            # Column-major arrays have no rows to read one after another; they are rare, and taken whole.
            whole = _read_column_major(stream, member) if member.fortran_order else None
        except DAMAGES as error:
            raise DataError(f"{path}: array '{member.name}' is damaged: {error}") from error

        def read(positions: Positions) -> Array:
            if whole is not None:
                return whole[positions]
            rows = np.empty((len(positions), *row_shape), member.dtype)
            for number, position in enumerate(positions):
                stream.seek(start + int(position) * row_bytes)
                data = stream.read(row_bytes)
                if len(data) != row_bytes:
                    raise DataError(f"{path}: array '{member.name}' ends early, at row {position}")
                rows[number] = np.frombuffer(data, member.dtype).reshape(row_shape)
            return rows

        def checked(positions: Positions) -> Array:
            try:
                return read(positions)
            except DAMAGES as error:
                raise DataError(f"{path}: array '{member.name}' is damaged: {error}") from error

        yield checked


def _read_column_major(stream: IO[bytes], member: Member) -> Array:
    return np.frombuffer(stream.read(), member.dtype).reshape(member.shape, order="F")


def _check_images(member: Member, path: Path) -> None:
    is_image = len(member.shape) == 3 or (len(member.shape) == 4 and member.shape[3] in (1, 3))
    if member.dtype != np.uint8 or not is_image or 0 in member.shape[1:]:
        raise DataError(
            f"{path}: '{IMAGES}' is {member.dtype} {list(member.shape)}; uint8 (N, H, W, C) with C 1 or 3 is needed"
        )
