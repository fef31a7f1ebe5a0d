"""Arrays come back from their file as they were, and a disk that is full is said at once."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from onnxcompress.errors import DataError
from onnxcompress.runtime import array_file
from onnxcompress.runtime.array_file import ArrayFile

FULL = Path("/dev/full")


def arrays() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(4, 3, 5))
    return [
        values.astype(np.float32),
        values.transpose(2, 0, 1),  # not one piece of memory
        values.astype(np.float16)[:, ::2],
        values.astype(ml_dtypes.bfloat16),
        values > 0,
        np.arange(7),
        np.float32(2.5).reshape(()),
        np.zeros((0, 3), np.float32),
    ]


def test_arrays_come_back_in_any_order() -> None:
    file = ArrayFile()
    for array in arrays():
        file.append(array)
    assert len(file) == len(arrays())
    assert file.nbytes == sum(array.nbytes for array in arrays())
    for number in [*range(len(file)), *reversed(range(len(file)))]:
        expected = arrays()[number]
        assert (file[number].dtype, file[number].shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(file[number], expected)


def test_arrays_of_one_shape_are_joined() -> None:
    parts = [np.full((size, 2), size, np.float32) for size in (3, 1, 2)]
    file = ArrayFile()
    for part in parts:
        file.append(part)
    np.testing.assert_array_equal(file.joined(), np.concatenate(parts))
    np.testing.assert_array_equal(file.mapped(), np.concatenate(parts))
    assert not file.mapped().flags.writeable
    assert file.length == 6


def test_what_is_read_belongs_to_the_reader() -> None:
    file = ArrayFile()
    file.append(np.ones(3))
    file[0][:] = 0.0
    np.testing.assert_array_equal(file[0], np.ones(3))


def test_threads_read_at_the_same_time() -> None:
    file = ArrayFile()
    for number in range(64):
        file.append(np.full(1000, number))
    with ThreadPoolExecutor(8) as pool:
        for number, array in enumerate(pool.map(file.__getitem__, [*range(64)] * 4)):
            assert (array == number % 64).all()


def test_the_file_goes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    create = array_file.tempfile.TemporaryFile

    def created(**options: object) -> object:
        files.append(create(**options))
        return files[-1]

    monkeypatch.setattr(array_file.tempfile, "TemporaryFile", created)
    first, second = ArrayFile(), ArrayFile()
    first.append(np.ones(3))
    first.close()
    first.close()
    del second
    gc.collect()
    assert [file.closed for file in files] == [True, True]


@pytest.mark.skipif(not FULL.exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("size", [1, 100_000])
def test_a_full_disk_is_an_error_at_once(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_file.tempfile, "TemporaryFile", lambda **_: FileIO(FULL, "wb+"))
    with pytest.raises(DataError, match=r"temporary files fill the disk of .*TMPDIR"):
        ArrayFile().append(np.ones(size, np.uint8))
