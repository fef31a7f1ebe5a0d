"""Folders of images: labels, classes, and what is wrong with them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcompress.errors import DataError, RecipeError
from onnxcompress.runtime.data import open_dataset
from onnxcompress.runtime.dataset import Dataset
from onnxcompress.runtime.tensors import TensorInfo
from tests.runtime.networks import image_folder, image_input, save_image


def open_folder(folder: Path, classes: int | None = 4) -> Dataset:
    return open_dataset(folder, [image_input()], preprocess="unit", classes=classes)


def labels_of(data: Dataset) -> list[int]:
    return [int(label) for batch in data.batches(3) for label in (batch.labels if batch.labels is not None else ())]


def test_labels_beside_the_images(tmp_path: Path) -> None:
    pixels = image_folder(tmp_path, 7)
    data = open_folder(tmp_path)
    assert (data.length, data.has_labels) == (7, True)
    batches = list(data.batches(3))
    assert [batch.size for batch in batches] == [3, 3, 1]
    assert labels_of(data) == [0, 1, 2, 3, 0, 1, 2]
    seen = np.concatenate([batch.inputs["x"] for batch in batches])
    np.testing.assert_allclose(seen, pixels.transpose(0, 3, 1, 2) / 255, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "b.png,2\na.png,1\n",
        "file,label\nb.png,2\na.png,1\n",
        '\ufefffile,label,name\r\nb.png,2,"dog, small"\r\n\r\na.png,1,cat\r\n',
        "name,label,file\nx,2,b.png\ny,1,a.png\n",
        "image,class\nb.png, 2\na.png, 1\n",
    ],
)
def test_forms_of_labels_csv(text: str, tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "unlisted.png"):
        save_image(tmp_path / name)
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    assert labels_of(open_folder(tmp_path)) == [2, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.png,0\nmissing.png,1\n", "line 3: there is no image 'missing.png'"),
        (f"a.png,0\n{'b' * 300}.png,1\n", "line 2: there is no image 'bbb"),
        ("file,label\na.png,4\n", "line 2: label 4 is not a class; the model has classes 0 to 3"),
        ("a.png,-1\n", "line 1: label -1 is not a class"),
        ("a.png,99999999999999999999\n", "line 1: label 99999999999999999999 is not a class"),
        ("a.png,0\npipe.png,1\n", "line 2: there is no image 'pipe.png'"),
        ("a.png,cat\n", "line 1: label 'cat' is not a whole number"),
        ("file,label\na.png,1.5\n", "line 2: label '1.5' is not a whole number"),
        ("file,label\na.png\n", "line 2: 'file,label' expected, seen 'a.png'"),
        ("file,label\n", "names no images"),
        ("", "names no images"),
        ('"a.png,1\n', "not a readable CSV file"),
    ],
)
def test_labels_csv_that_cannot_be_used(text: str, message: str, tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=rf"labels\.csv.*{message}"):
        open_folder(tmp_path)


def test_a_label_that_no_number_of_classes_has(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text(f"a.png,{2**63}\n")
    with pytest.raises(DataError, match="line 1: label 9223372036854775808 is not a class"):
        open_folder(tmp_path, classes=None)


def test_labels_csv_that_is_no_text(tmp_path: Path) -> None:
    save_image(tmp_path / "labels.csv.png").tobytes()
    (tmp_path / "labels.csv").write_bytes((tmp_path / "labels.csv.png").read_bytes())
    with pytest.raises(DataError, match="not a readable CSV file"):
        open_folder(tmp_path)


def test_one_subfolder_per_class_in_sorted_order(tmp_path: Path) -> None:
    for number, name in enumerate(["zebra/1.png", "cat/2.JPG.png", "cat/1.png", "dog/a.png", ".hidden/a.png"]):
        save_image(tmp_path / name, seed=number)
    (tmp_path / "README.txt").write_text("not an image")
    data = open_folder(tmp_path)
    assert labels_of(data) == [0, 0, 1, 2]
    with pytest.raises(DataError, match="3 class sub-folders, but the model has 2 classes"):
        open_folder(tmp_path, classes=2)


def test_images_without_labels(tmp_path: Path) -> None:
    for name in ("b.png", "a.png"):
        save_image(tmp_path / name)
    data = open_folder(tmp_path)
    assert (data.length, data.has_labels) == (2, False)
    assert next(data.batches()).labels is None


def test_folders_that_hold_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        open_folder(tmp_path)
    save_image(tmp_path / "a.png")
    save_image(tmp_path / "cat" / "a.png")
    with pytest.raises(DataError, match="images and sub-folders of images"):
        open_folder(tmp_path)


def test_what_is_no_file_is_no_image(tmp_path: Path) -> None:
    """To read a pipe would wait for ever."""
    image_folder(tmp_path, 3)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "nowhere.png").symlink_to("gone.png")
    (tmp_path / "link.png").symlink_to("000.png")
    (tmp_path / "labels.csv").unlink()
    assert open_folder(tmp_path).length == 4


@pytest.mark.parametrize("locked", ["", "cat"])
def test_a_folder_that_may_not_be_listed(locked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_image(tmp_path / "cat" / "a.png")
    listed = os.scandir

    def refuse(path: Path) -> Any:
        if Path(path) == tmp_path / locked:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=rf"{tmp_path / locked}: cannot be read \(Permission denied\)"):
        open_folder(tmp_path)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    image_folder(tmp_path, 3)
    (tmp_path / "001.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"001\.png"):
        list(open_folder(tmp_path).batches())


def test_images_need_a_preset_and_a_model_of_one_input(tmp_path: Path) -> None:
    image_folder(tmp_path, 1)
    with pytest.raises(RecipeError, match=r"images need --preprocess: caffe, imagenet, tf, unit, raw, or a TOML file"):
        open_dataset(tmp_path, [image_input()])
    two = [image_input(), TensorInfo("z", np.dtype(np.float32), (None, 1))]
    with pytest.raises(DataError, match="images are for models of one input, this one has 'x', 'z'"):
        open_dataset(tmp_path, two, preprocess="unit")


def test_paths_that_are_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="aaa: no such file or folder"):
        open_dataset(str(tmp_path / ("a" * 300)), [image_input()])
    with pytest.raises(RecipeError, match=r"preprocess 'aaa.*a' is neither a preset"):
        open_dataset(tmp_path, [image_input()], preprocess="a" * 300)
    with pytest.raises(DataError, match="absent: no such file or folder"):
        open_dataset(tmp_path / "absent", [image_input()], preprocess="unit")
    (tmp_path / "data.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"data\.tar: not data; give a folder"):
        open_dataset(tmp_path / "data.tar", [image_input()])


def test_a_class_that_leads_nowhere_is_not_left_out(tmp_path: Path) -> None:
    for name in ("a", "c"):
        (tmp_path / name).mkdir()
        save_image(tmp_path / name / "image.png")
    (tmp_path / "b").symlink_to("was never fetched")  # without it c would be class 1
    with pytest.raises(DataError, match=r"b: is a link that leads nowhere; fetch what it leads to"):
        open_folder(tmp_path)


def test_one_file_of_two_classes(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("file,label\na.png,1\na.png,1\n")
    assert labels_of(open_folder(tmp_path)) == [1, 1]
    (tmp_path / "labels.csv").write_text("file,label\na.png,1\na.png,1\na.png,2\n")
    with pytest.raises(DataError, match=r"line 4: label 2 of 'a\.png', which has 1 in line 2"):
        open_folder(tmp_path)
