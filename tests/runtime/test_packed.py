"""Image files packed into an .npz, several splits in one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnxcompress.errors import DataError, RecipeError
from onnxcompress.runtime.data import open_dataset
from onnxcompress.runtime.tensors import TensorInfo

INPUT = [TensorInfo("input", np.dtype(np.float32), (None, 3, 8, 8))]


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)


def packed(name: str, pixels: np.ndarray, labels: np.ndarray | None = None) -> dict[str, np.ndarray]:
    files = []
    for image in pixels:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")  # without loss, so that the pixels can be compared
        files.append(stream.getvalue())
    arrays: dict[str, np.ndarray] = {
        f"{name}_jpeg": np.frombuffer(b"".join(files), np.uint8),
        f"{name}_offsets": np.cumsum([0, *map(len, files)], dtype=np.int64),
    }
    return arrays if labels is None else {**arrays, f"{name}_labels": labels}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    pixels = images(20)
    train = packed("train", pixels[:14], np.arange(14, dtype=np.uint8) % 5)
    np.savez_compressed(tmp_path / "p.npz", **train, **packed("test", pixels[14:]), classes=np.array(["a", "b"]))
    return tmp_path / "p.npz"


def opened(path: Path, **options: Any) -> Any:
    return open_dataset(path, INPUT, preprocess="unit", **options)


@pytest.mark.parametrize(("split", "rows"), [("train", slice(0, 14)), ("test", slice(14, 20))])
def test_each_split_gives_its_images(file: Path, split: str, rows: slice) -> None:
    dataset = opened(file, split=split)
    seen = np.concatenate([batch.inputs["input"] for batch in dataset.batches(4)])
    np.testing.assert_allclose(seen, images(20)[rows].transpose(0, 3, 1, 2) / np.float32(255), atol=1e-6)
    assert dataset.has_labels == (split == "train")
    assert dataset.length == len(seen)


def test_labels_follow_subsets(file: Path) -> None:
    first, _ = opened(file, split="train", classes=5).split(0.5, seed=3)
    pixels = images(20).transpose(0, 3, 1, 2) / np.float32(255)
    for batch in first.batches(3):
        for image, label in zip(batch.inputs["input"], batch.labels, strict=True):
            at = int(np.argmin(np.abs(pixels - image).sum(axis=(1, 2, 3))))
            assert label == at % 5


def test_a_single_split_needs_no_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", **packed("all", images(3)))
    assert opened(tmp_path / "one.npz", split="test").length == 3


def test_what_does_not_fit(file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="of the splits train, test, and no split was named"):
        opened(file)
    with pytest.raises(DataError, match="'val' is none of them"):
        opened(file, split="val")
    with pytest.raises(DataError, match="label 4 of 'train' is not a class; the model has classes 0 to 2"):
        opened(file, split="train", classes=3)
    with pytest.raises(RecipeError, match="images need --preprocess"):
        open_dataset(file, INPUT, split="train")
    good = packed("train", images(3), np.zeros(3, np.uint8))
    for changed, message in (
        ({"train_offsets": good["train_offsets"][::-1]}, "the offsets must be whole numbers that ascend"),
        ({"train_offsets": good["train_offsets"] + 10**6}, "ascend from 0 to at most"),
        ({"train_jpeg": good["train_jpeg"].astype(np.float32)}, r"is float32 \[\d+\]; uint8 \[bytes\] is needed"),
        ({"train_labels": np.zeros(2, np.uint8)}, "'train' has 3 images and 2 labels"),
    ):
        np.savez(tmp_path / "bad.npz", **{**good, **changed})
        with pytest.raises(DataError, match=message):
            opened(tmp_path / "bad.npz", split="train")
    damaged = good["train_jpeg"].copy()
    damaged[int(good["train_offsets"][1]) :][:20] = 0
    np.savez(tmp_path / "bad.npz", **{**good, "train_jpeg": damaged})
    with pytest.raises(DataError, match=r"bad\.npz \(train\), image 1: not an image that decodes"):
        list(opened(tmp_path / "bad.npz", split="train").batches())
