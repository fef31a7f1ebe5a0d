"""Folders of images: with `labels.csv`, with one sub-folder per class, or without labels."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from onnxcompress.errors import DataError
from onnxcompress.runtime.batch import Labels
from onnxcompress.runtime.dataset import Positions
from onnxcompress.runtime.images import SUFFIXES, ImageTransform, stack
from onnxcompress.runtime.tensors import Array

LABELS_FILE = "labels.csv"


class ImageFolder:
    """A `Source` of image files; without `reads_labels` these may be anything, and there are none.

    Raises (constructor):
        DataError: no images, a folder that may not be read, or `labels.csv` is malformed, names a missing file or a
            label outside the classes.
    """

    def __init__(
        self,
        folder: Path,
        input_name: str,
        transform: ImageTransform,
        classes: int | None,
        *,
        reads_labels: bool = True,
    ) -> None:
        self._input_name = input_name
        self._transform = transform
        self._folder = folder
        self.paths: Sequence[Path]
        self.labels: Labels | None
        try:
            is_named = (folder / LABELS_FILE).is_file()
            if is_named and reads_labels:
                found: tuple[Sequence[Path], Labels | None] = read_labels(folder / LABELS_FILE, classes)
            elif is_named:
                found = [image for _, image, _ in _named(folder / LABELS_FILE)], None
            else:
                found = _listed(folder, classes if reads_labels else None)
        except OSError as error:
            raise DataError(f"{error.filename or folder}: cannot be read ({error.strerror or error})") from error
        self.paths, self.labels = found if reads_labels else (found[0], None)

    @property
    def name(self) -> str:
        return str(self._folder)

    @property
    def length(self) -> int:
        return len(self.paths)

    @contextmanager
    def open(self) -> Iterator[Callable[[Positions], Mapping[str, Array]]]:
        # Pillow releases the interpreter's lock while it decodes; only one batch is in the air at a time.
        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:

            def read(positions: Positions) -> Mapping[str, Array]:
                paths = [self.paths[position] for position in positions]
                arrays = list(pool.map(self._transform.from_file, paths))
                return {self._input_name: stack(arrays, [str(path) for path in paths])}

            yield read


def read_labels(path: Path, classes: int | None) -> tuple[list[Path], Labels]:
    """Read `file,label[,...]` lines; a first line without a whole number as its label is a header.

    Columns of a header that are called `file` and `label` are used wherever they stand, else the first two.

    Raises:
        DataError: with file and line: too few columns, a label that is no class of the model, a missing file.
    """
    paths: list[Path] = []
    labels: list[int] = []
    seen: dict[Path, tuple[int, int]] = {}
    for line, image, text in _named(path):
        try:
            label = int(text)
        except ValueError:
            raise DataError(f"{path}, line {line}: label '{text}' is not a whole number") from None
        if not 0 <= label < (2**63 if classes is None else classes):
            limits = f"; the model has classes 0 to {classes - 1}" if classes is not None else ""
            raise DataError(f"{path}, line {line}: label {label} is not a class{limits}")
        before = seen.setdefault(image, (label, line))
        if before[0] != label:
            raise DataError(
                f"{path}, line {line}: label {label} of '{image.name}', which has {before[0]} in line {before[1]}"
            )
        paths.append(image)
        labels.append(label)
    return paths, np.asarray(labels, np.int64)


def _named(path: Path) -> Iterator[tuple[int, Path, str]]:
    """Yield (line number, image, label as it stands there) of each line; at least one."""
    # A listing instead of one look-up for each line: half a million of those on a network drive take minutes.
    present = {entry.name for entry in os.scandir(path.parent) if entry.is_file()}
    line = 0
    for line, (file, text) in _rows(path):
        image = path.parent / file
        if file not in present and not os.path.isfile(image):  # also where no file can have such a name
            raise DataError(f"{path}, line {line}: there is no image '{file}' beside it")
        yield line, image, text
    if line == 0:
        raise DataError(f"{path}: names no images")


def _rows(path: Path) -> Iterator[tuple[int, tuple[str, str]]]:
    """Yield (line number, (file, label)) of each line but a header and empty ones."""
    file_column, label_column = 0, 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            for number, row in enumerate(reader):
                if not row:
                    continue
                if number == 0 and _is_header(row):
                    names = [cell.strip().lower() for cell in row]
                    if {"file", "label"} <= set(names):
                        file_column, label_column = names.index("file"), names.index("label")
                    continue
                if len(row) <= max(file_column, label_column):
                    raise DataError(f"{path}, line {reader.line_num}: 'file,label' expected, seen '{','.join(row)}'")
                yield reader.line_num, (row[file_column].strip(), row[label_column].strip())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a readable CSV file: {error}") from error


def _is_header(row: Sequence[str]) -> bool:
    """Whether the first line has column names: its label is no number and its file no image."""
    is_image = Path(row[0].strip()).suffix.lower() in SUFFIXES
    return len(row) > 1 and not row[1].strip().lstrip("-").isdigit() and not is_image


def _listed(folder: Path, classes: int | None) -> tuple[list[Path], Labels | None]:
    """List images: the n-th of the sorted sub-folders is class n; images of the folder itself have no label."""
    subfolders = sorted(folder / e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
    own = _images(folder)
    grouped = [_images(subfolder) for subfolder in subfolders]
    if not any(grouped):
        if not own:
            raise DataError(f"{folder}: holds no images; known are {', '.join(sorted(SUFFIXES))}")
        return own, None
    if own:
        raise DataError(
            f"{folder}: holds images and sub-folders of images; give one sub-folder per class, or a {LABELS_FILE}"
        )
    if classes is not None and len(subfolders) > classes:
        raise DataError(f"{folder}: {len(subfolders)} class sub-folders, but the model has {classes} classes")
    _check_links(folder)
    labels = np.repeat(np.arange(len(grouped), dtype=np.int64), [len(images) for images in grouped])
    return [image for images in grouped for image in images], labels


def _images(folder: Path) -> list[Path]:
    named = (e for e in os.scandir(folder) if Path(e.name).suffix.lower() in SUFFIXES and not e.name.startswith("."))
    return sorted(folder / entry.name for entry in named if entry.is_file())  # to read a pipe would wait for ever


def _check_links(folder: Path) -> None:
    """Refuse a class that leads nowhere, as of data that were not fetched: those behind it would have other numbers."""
    for entry in list(os.scandir(folder)):
        if entry.is_symlink() and not entry.name.startswith(".") and not os.path.exists(entry.path):
            raise DataError(f"{entry.path}: is a link that leads nowhere; fetch what it leads to, or remove it")
