"""`.npz` files: arrays by input name, raw images, streamed rows, nothing unpickled."""

from __future__ import annotations

import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcompress.errors import DataError, RecipeError
from onnxcompress.runtime.data import open_dataset
from onnxcompress.runtime.tensors import TensorInfo
from tests.runtime.networks import image_input

X = np.random.default_rng(0).standard_normal((10, 3, 8, 8), dtype=np.float32)
LABELS = np.arange(10) % 4


def inputs_of(data: Any, batch: int = 4) -> np.ndarray:
    return np.concatenate([b.inputs["x"] for b in data.batches(batch)])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("array", [X, np.asfortranarray(X), X.astype(">f8"), X.astype(np.float16)])
def test_arrays_by_input_name(save: Any, array: np.ndarray, tmp_path: Path) -> None:
    save(tmp_path / "d.npz", x=array, labels=LABELS.astype(np.uint8))
    data = open_dataset(tmp_path / "d.npz", [image_input()], classes=4)
    assert (data.length, data.has_labels) == (10, True)
    for _ in range(2):
        np.testing.assert_array_equal(inputs_of(data), array.astype(np.float32))
    labels = np.concatenate([batch.labels for batch in data.batches(3) if batch.labels is not None])
    np.testing.assert_array_equal(labels, LABELS)


def test_raw_images_and_a_preset(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", images=pixels, labels=LABELS[:5])
    with pytest.raises(RecipeError, match="images need --preprocess"):
        open_dataset(tmp_path / "d.npz", [image_input()])
    data = open_dataset(tmp_path / "d.npz", [image_input()], preprocess="unit")
    np.testing.assert_allclose(inputs_of(data), pixels.transpose(0, 3, 1, 2) / 255, rtol=0, atol=1e-6)
    np.savez(tmp_path / "grey.npz", images=pixels[..., 0])
    data = open_dataset(tmp_path / "grey.npz", [image_input(channels=1)], preprocess="unit")
    np.testing.assert_allclose(inputs_of(data), pixels[:, None, :, :, 0] / 255, rtol=0, atol=1e-6)


def test_an_input_that_is_called_images(tmp_path: Path) -> None:
    info = TensorInfo("images", np.dtype(np.float32), (None, 3, 8, 8))
    np.savez(tmp_path / "d.npz", images=X)
    data = open_dataset(tmp_path / "d.npz", [info])
    np.testing.assert_array_equal(next(data.batches(10)).inputs["images"], X)
    np.savez(tmp_path / "raw.npz", images=np.full((2, 8, 8, 3), 255, np.uint8))
    data = open_dataset(tmp_path / "raw.npz", [info], preprocess="unit")
    assert (next(data.batches(2)).inputs["images"] == 1.0).all()


def test_several_inputs(tmp_path: Path) -> None:
    other = TensorInfo("z", np.dtype(np.int64), (None,))
    np.savez(tmp_path / "d.npz", x=X, z=np.arange(10))
    batches = list(open_dataset(tmp_path / "d.npz", [image_input(), other]).batches(4))
    np.testing.assert_array_equal(np.concatenate([batch.inputs["z"] for batch in batches]), np.arange(10))


class Trap:
    """Unpickling it would be seen."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("the array was unpickled",))


@pytest.mark.parametrize("name", ["x", "labels"])
def test_pickled_objects_are_never_loaded(name: str, tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"x": X, "labels": LABELS}
    arrays[name] = np.array([Trap()] * 1000, dtype=object)
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=f"array '{name}' holds pickled objects, which are never loaded"):
        open_dataset(tmp_path / "d.npz", [image_input()])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": X}, "holds 'y'; the model needs 'x'"),
        ({"x": X, "label": LABELS}, "holds 'x', 'label'; the model needs 'x'"),
        ({"labels": LABELS}, "holds 'labels'; the model needs 'x'"),
        ({}, "holds nothing"),
        ({"x": X, "labels": LABELS[:9]}, "same length, these have 'x' 10, 'labels' 9"),
        ({"x": X, "labels": LABELS + 1}, "label 4 at position 3 is not a class; the model has classes 0 to 3"),
        ({"x": X, "labels": LABELS - 1}, "label -1 is negative"),
        ({"x": X, "labels": LABELS / 2}, "labels are float64"),
        ({"x": X, "labels": LABELS[:, None]}, "labels are int64 of 2 dimensions"),
        ({"x": np.float32(3)}, "same length|no samples"),
        ({"images": X}, "'images' is float32"),
        ({"images": np.zeros((2, 8, 8, 4), np.uint8)}, "'images' is uint8"),
    ],
)
def test_files_that_do_not_fit(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=rf"d\.npz: .*({message})"):
        list(open_dataset(tmp_path / "d.npz", [image_input()], preprocess="unit", classes=4).batches())


@pytest.mark.parametrize(
    ("field", "message"),
    [("version to extract", "not a .npz file: zip file version 12.6"), ("contents of labels", "'labels' is damaged")],
)
def test_damaged_archives_are_told_so(field: str, message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, labels=LABELS)
    content = bytearray((tmp_path / "d.npz").read_bytes())
    if field == "version to extract":
        content[content.index(b"PK\x01\x02") + 6] = 126
    else:
        content[content.index(LABELS.tobytes())] ^= 1
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path / "d.npz", [image_input()])


def test_shapes_that_do_not_fit_are_seen_when_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X[:, :, :7])
    with pytest.raises(
        DataError, match=r"d\.npz: 'x' has shape \[10,3,7,8\], the model takes 'x' float32 \[\?,3,8,8\]"
    ):
        list(open_dataset(tmp_path / "d.npz", [image_input()]).batches())


def test_no_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X[:0])
    with pytest.raises(DataError, match="no samples"):
        list(open_dataset(tmp_path / "d.npz", [image_input()]).batches())


def test_images_of_no_height(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=np.zeros((4, 0, 8, 3), np.uint8))
    with pytest.raises(DataError, match=r"'images' is uint8 \[4, 0, 8, 3\]; uint8 \(N, H, W, C\)"):
        open_dataset(tmp_path / "d.npz", [image_input()], preprocess="unit")


@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_of_no_numbers(order: Any, tmp_path: Path) -> None:
    images = np.repeat(X, 100, axis=0)
    np.savez(tmp_path / "d.npz", x=images, past=np.zeros((1000, 4, 0, 8), np.float32, order=order))
    inputs = [image_input(), TensorInfo("past", np.dtype(np.float32), (None, 4, 0, 8))]
    batches = list(open_dataset(tmp_path / "d.npz", inputs).batches(400))
    assert [batch.inputs["past"].shape for batch in batches] == [(400, 4, 0, 8), (400, 4, 0, 8), (200, 4, 0, 8)]
    assert np.array_equal(np.concatenate([batch.inputs["x"] for batch in batches]), images)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_the_datas_fault(value: float, tmp_path: Path) -> None:
    broken = X.copy()
    broken[7, 1, 2, 3] = value
    np.savez(tmp_path / "d.npz", x=broken)
    with pytest.raises(DataError, match=rf"d\.npz: sample 7 holds {value} as float32 in 'x'"):
        list(open_dataset(tmp_path / "d.npz", [image_input()]).batches(4))


def entry(header: str, values: bytes) -> bytes:
    """An array's file of any header."""
    padded = f"{header:<117}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + values


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize(
    "shape", [(40, 3, 8, 8), (1, 3, 10**6, 10**6), (1, 2**40, 2**40, 2**40), (10**15, 0, 8, 8), (10**30, 3, 8, 8)]
)
@pytest.mark.parametrize("name", ["x", "labels"])
def test_a_header_that_claims_more_than_there_is(
    name: str, shape: tuple[int, ...], order: bool, tmp_path: Path
) -> None:
    np.savez(tmp_path / "d.npz", **({} if name == "x" else {"x": X}))
    header = f"{{'descr': '<f4', 'fortran_order': {order}, 'shape': {shape}, }}"
    with zipfile.ZipFile(tmp_path / "d.npz", "a") as archive:
        archive.writestr(f"{name}.npy", entry(header, b"\0" * 64))
    with pytest.raises(DataError, match=rf"d\.npz: array '{name}' ends early"):
        open_dataset(tmp_path / "d.npz", [image_input()])


def test_a_column_major_array_that_cannot_be_unpacked(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.asfortranarray(X))
    content = bytearray((tmp_path / "d.npz").read_bytes())
    content[3000:3400] = bytes(400)
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(DataError, match="array 'x' is damaged"):
        list(open_dataset(tmp_path / "d.npz", [image_input()]).batches())


def test_a_file_that_may_not_be_read_and_one_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(DataError, match=r"pipe\.npz: is no regular file"):
        open_dataset(tmp_path / "pipe.npz", [image_input()])

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    np.savez(tmp_path / "d.npz", x=X)
    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    with pytest.raises(DataError, match=r"d\.npz: cannot be read \(Permission denied\)"):
        open_dataset(tmp_path / "d.npz", [image_input()])


@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps([1, 2])])
def test_files_that_are_no_npz(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"d\.npz: not a \.npz file"):
        open_dataset(tmp_path / "d.npz", [image_input()])
    with pytest.raises(DataError, match="no such file"):
        open_dataset(tmp_path / "absent.npz", [image_input()])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_member(save: Any, tmp_path: Path) -> None:
    save(tmp_path / "d.npz", x=X)
    content = bytearray((tmp_path / "d.npz").read_bytes())
    content[3000:3400] = bytes(400)
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(DataError, match="array 'x' is damaged"):
        list(open_dataset(tmp_path / "d.npz", [image_input()]).batches())


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_memory_does_not_grow_with_the_samples(save: Any, tmp_path: Path) -> None:
    big = np.zeros((4000, 3, 16, 16), np.float32)
    save(tmp_path / "d.npz", x=big)
    size = big.nbytes
    del big
    data = open_dataset(tmp_path / "d.npz", [image_input(size=16)])
    tracemalloc.start()
    try:
        assert sum(batch.size for batch in data.batches(16)) == 4000
        assert tracemalloc.get_traced_memory()[1] < size / 10
    finally:
        tracemalloc.stop()
