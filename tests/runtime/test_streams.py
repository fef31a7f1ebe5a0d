"""Iterables, data readers, callables by name, and `test_data_set_*` folders."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxcompress.errors import DataError
from onnxcompress.runtime.data import open_dataset
from onnxcompress.runtime.dataset import Dataset
from onnxcompress.runtime.tensors import TensorInfo

INFO = TensorInfo("x", np.dtype(np.float32), (None, 2))
X = np.arange(20, dtype=np.float32).reshape(10, 2)


class Reader:
    """As onnxruntime's quantization calls it."""

    def __init__(self, size: int = 1) -> None:
        self._feeds = iter([{"x": X[start : start + size]} for start in range(0, 10, size)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


class Rewound(Reader):
    def rewind(self) -> None:
        self.__init__()  # type: ignore[misc]


def generate() -> Iterator[dict[str, Any]]:
    for row in X:
        yield {"x": row[None]}


def rows(data: Dataset, batch: int = 4) -> np.ndarray:
    return np.concatenate([b.inputs["x"] for b in data.batches(batch)])


@pytest.mark.parametrize("size", [1, 3, 10])
@pytest.mark.parametrize("batch", [1, 4, 100])
def test_feeds_of_any_size_come_in_batches(size: int, batch: int) -> None:
    data = open_dataset([{"x": X[start : start + size]} for start in range(0, 10, size)], [INFO])
    assert data.length is None
    batches = list(data.batches(batch))
    assert [b.size for b in batches[:-1]] == [batch] * (len(batches) - 1)
    np.testing.assert_array_equal(rows(data, batch), X)


@pytest.mark.parametrize("data", [Reader, lambda: Reader(3), Rewound(), generate, lambda: list(generate())])
def test_what_starts_again_can_be_read_twice(data: Any) -> None:
    opened = open_dataset(data, [INFO])
    for _ in range(2):
        np.testing.assert_array_equal(rows(opened), X)


@pytest.mark.parametrize("data", [Reader(), generate()])
def test_what_cannot_start_again_says_so(data: Any) -> None:
    opened = open_dataset(data, [INFO])
    np.testing.assert_array_equal(rows(opened), X)
    with pytest.raises(DataError, match="can be read only once; give a list, or a callable that starts again"):
        rows(opened)


def test_labels_in_the_feeds() -> None:
    data = open_dataset([{"x": X[:4], "labels": [3, 1, 0, 2]}, {"x": X[4:5], "labels": np.array([7])}], [INFO])
    assert data.has_labels
    (batch,) = data.batches(16)
    assert batch.labels is not None
    assert batch.labels.tolist() == [3, 1, 0, 2, 7]


def test_an_input_that_is_called_labels_is_no_label() -> None:
    data = open_dataset([{"labels": X}], [TensorInfo("labels", np.dtype(np.float32), (None, 2))])
    assert not data.has_labels
    assert next(data.batches()).labels is None


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ([], "no samples"),
        ([{"y": X}], "feed 0: holds 'y', but the model's inputs are 'x'"),
        ([{"x": X}, {"x": X[:, :1]}], r"feed 1: 'x' has shape \[10,1\]"),
        ([X], "feed 0: a ndarray where {input name: array} is expected"),
        ([{"x": X, "labels": [1]}], "same number of samples first; these have 'x' 10, 'labels' 1"),
        ([{"x": X, "labels": [0] * 10}, {"x": X}], "feed 1: some feeds have labels and some have none"),
        ([{"x": X[:1], "labels": [-1]}], "label -1 is negative"),
        ([{"x": X[:0]}], "same number of samples first"),
        ({"x": X}, "neither an iterable of feeds nor a data reader"),
        (3, "a int, neither an iterable of feeds nor a data reader"),
        (lambda: 3, "a int, neither an iterable"),
        (lambda: 1 / 0, "reading failed: ZeroDivisionError"),
        (lambda: sys.exit(0), "reading failed: SystemExit: 0"),
        ([{"x": [[1.0], [1.0, 2.0]]}], "data, feed 0, 'x': a list that makes no array"),
        ([{"x": X, "labels": np.full(10, 2**64 - 1, np.uint64)}], "label 18446744073709551615 is no class number"),
        ([{"x": X}, {"x": np.where(X == 7, np.nan, X)}], "sample 13 holds nan as float32 in 'x'"),
    ],
)
def test_feeds_that_cannot_be_used(feeds: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(open_dataset(feeds, [INFO]).batches())


def test_an_iterable_that_fails_on_the_way() -> None:
    def failing() -> Iterator[dict[str, Any]]:
        yield {"x": X}
        raise OSError("disk gone")

    with pytest.raises(DataError, match="reading failed: OSError: disk gone"):
        list(open_dataset(failing, [INFO]).batches())


MODULE = """
import numpy as np
class Readers:
    @staticmethod
    def make():
        return [{"x": np.ones((2, 2), np.float32)}]
number = 3
def broken():
    raise KeyError("key")
"""


def test_a_callable_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_calibration.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    try:
        assert rows(open_dataset("my_calibration:Readers.make", [INFO])).shape == (2, 2)
        with pytest.raises(DataError, match="my_calibration:number: a int, not a callable"):
            open_dataset("my_calibration:number", [INFO])
        with pytest.raises(DataError, match="my_calibration:absent: cannot be imported: AttributeError"):
            open_dataset("my_calibration:absent", [INFO])
        with pytest.raises(DataError, match="my_calibration:broken: reading failed: KeyError"):
            open_dataset("my_calibration:broken", [INFO])
        with pytest.raises(DataError, match="no_such_module:f: cannot be imported: ModuleNotFoundError"):
            open_dataset("no_such_module:f", [INFO])
        Path("my_script.py").write_text("import sys\nsys.exit()\n")
        with pytest.raises(DataError, match="my_script:f: cannot be imported: SystemExit"):
            open_dataset("my_script:f", [INFO])
        assert sys.path == path
    finally:
        sys.modules.pop("my_calibration", None)


def write_set(folder: Path, number: int, array: np.ndarray) -> None:
    one = folder / f"test_data_set_{number}"
    one.mkdir()
    (one / "input_0.pb").write_bytes(numpy_helper.from_array(array).SerializeToString())
    (one / "output_0.pb").write_bytes(b"not read")


def test_test_data_sets_in_their_order(tmp_path: Path) -> None:
    for number in (10, 2, 0):
        write_set(tmp_path, number, np.full((1, 2), number, np.float32))
    data = open_dataset(tmp_path, [INFO])
    assert not data.has_labels
    assert rows(data)[:, 0].tolist() == [0, 2, 10]
    assert rows(open_dataset(tmp_path / "test_data_set_2", [INFO]))[:, 0].tolist() == [2]


def test_test_data_sets_that_cannot_be_read(tmp_path: Path) -> None:
    write_set(tmp_path, 0, X)
    two = [INFO, TensorInfo("z", np.dtype(np.float32), (None,))]
    with pytest.raises(DataError, match=r"input_1\.pb: no such file, although the model has an input for it"):
        list(open_dataset(tmp_path, two).batches())
    (tmp_path / "test_data_set_0" / "input_0.pb").write_bytes(onnx.TensorProto(dims=[5]).SerializeToString()[:1])
    with pytest.raises(DataError, match=r"input_0\.pb: not a tensor that can be read"):
        list(open_dataset(tmp_path, [INFO]).batches())
