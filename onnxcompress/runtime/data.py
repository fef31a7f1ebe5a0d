"""Opening data in every form a user may have it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxcompress.errors import DataError, RecipeError
from onnxcompress.runtime.dataset import Dataset, IndexedDataset
from onnxcompress.runtime.folders import ImageFolder
from onnxcompress.runtime.images import ImageTransform
from onnxcompress.runtime.npz import IMAGES, Npz, read_members
from onnxcompress.runtime.packed import PackedImages, packed_splits
from onnxcompress.runtime.preprocess import PRESETS, Preprocess, fit_to_model, image_shape, load_preprocess
from onnxcompress.runtime.session import Session
from onnxcompress.runtime.streams import open_callable, open_stream, open_test_data_sets
from onnxcompress.runtime.tensors import TensorInfo

_CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def is_callable(text: str) -> bool:
    """Whether a text has the form `module:callable`; what exists as a path is one nevertheless."""
    return _CALLABLE.fullmatch(text) is not None


def open_dataset(
    data: Any,
    inputs: Sequence[TensorInfo],
    *,
    preprocess: str | Path | Preprocess | None = None,
    classes: int | None = None,
    split: str | None = None,
    reads_labels: bool = True,
) -> Dataset:
    """Open data for a model.

    Args:
        data: a path (folder of images, folder of `test_data_set_*`, `.npz`), `module:callable`, or from Python any
            iterable of {input name: array}, a CalibrationDataReader, or a callable that makes one of these. A Dataset
            is returned as it is.
        inputs: the model's inputs.
        preprocess: a preset, a TOML file, or a `Preprocess`; needed for images.
        classes: the number of the model's classes where known: labels beyond it are refused.
        split: which part of a file that holds several is read, such as `train`.
        reads_labels: whether the labels are read, which may be anything where they are not: the data have none then.

    Raises:
        DataError: the data are missing, malformed, or do not fit the model.
        RecipeError: the preprocessing is unknown or missing.
    """
    if isinstance(data, Dataset):
        return data
    if not inputs:
        raise DataError("the model has no inputs to feed data to")
    if not isinstance(data, (str, os.PathLike)):
        return open_stream(data, inputs, reads_labels=reads_labels)
    path = Path(data)
    # Not `path.exists()`, which fails for a name that is too long, or a folder that must not be read.
    exists = os.path.exists(path)
    if isinstance(data, str) and not exists and _CALLABLE.fullmatch(data):
        return open_callable(data, inputs, reads_labels=reads_labels)
    if os.path.isdir(path):
        # os.path: a folder that may not be read is refused as one of images, by its own name.
        if any(path.glob("test_data_set_*")) or os.path.isfile(path / "input_0.pb"):
            return open_test_data_sets(path, inputs)
        transform = _transform(inputs, preprocess, path)
        return IndexedDataset(ImageFolder(path, inputs[0].name, transform, classes, reads_labels=reads_labels), inputs)
    if path.suffix.lower() == ".npz":
        if packed_splits(path):
            transform = _transform(inputs, preprocess, path)
            packed = PackedImages(path, inputs[0].name, transform, classes, split, reads_labels=reads_labels)
            return IndexedDataset(packed, inputs)
        npz_transform = _transform(inputs, preprocess, path) if _holds_images(path, inputs) else None
        return IndexedDataset(Npz(path, inputs, npz_transform, classes, reads_labels=reads_labels), inputs)
    if not exists:
        raise DataError(f"{path}: no such file or folder")
    raise DataError(
        f"{path}: not data; give a folder of images, a .npz file, a folder of test_data_set_*, or module:callable"
    )


def dataset_for(
    session: Session,
    data: Any,
    *,
    preprocess: str | Path | Preprocess | None = None,
    split: str | None = None,
    reads_labels: bool = True,
) -> Dataset:
    """Open data for the model of a session; arguments and errors as `open_dataset`.

    Of a model none of whose outputs may hold class scores, or whole numbers, labels are not read.
    """
    return open_dataset(
        data,
        session.inputs,
        preprocess=preprocess,
        classes=session.classes,
        split=split,
        reads_labels=reads_labels and session.may_classify,
    )


def _holds_images(path: Path, inputs: Sequence[TensorInfo]) -> bool:
    """Whether the file holds raw images; an input that is itself called `images` gets them only in its own type."""
    member = read_members(path).get(IMAGES)
    own = next((info for info in inputs if info.name == IMAGES), None)
    return member is not None and (own is None or (member.dtype == "uint8" and own.dtype != "uint8"))


def _transform(inputs: Sequence[TensorInfo], preprocess: str | Path | Preprocess | None, path: Path) -> ImageTransform:
    if len(inputs) != 1:
        names = ", ".join(f"'{info.name}'" for info in inputs)
        raise DataError(f"{path}: images are for models of one input, this one has {names}; give a .npz by input names")
    if preprocess is None:
        raise RecipeError(f"{path}: images need --preprocess: {', '.join(PRESETS)}, or a TOML file")
    loaded = load_preprocess(preprocess)
    transform = ImageTransform(fit_to_model(loaded, image_shape(inputs[0], loaded)), inputs[0].dtype)
    transform.require_levels(f"input {inputs[0].described()}")
    return transform
