"""Batches that are prepared once are the same afterwards, whatever stops a stream or the file on the way."""

from __future__ import annotations

from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from onnxcompress.errors import DataError
from onnxcompress.runtime import array_file, kept
from onnxcompress.runtime.array_file import ArrayFile
from onnxcompress.runtime.batch import Batch
from onnxcompress.runtime.kept import KeptBatches

FULL = Path("/dev/full")


class Source:
    """Three batches of two inputs, the last one short; counts the streams it has begun."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self.begun = 0
        self.batches: list[Batch] = [
            Batch(
                {
                    "x": generator.normal(size=(size, 3, 2)).astype(np.float32),
                    "mask": generator.integers(0, 2, size).astype(np.bool_),
                    "half": generator.normal(size=(size, 1)).astype(np.float16),
                },
                labels=generator.integers(0, 10, size),
                size=size,
            )
            for size in (2, 2, 1)
        ]

    def __call__(self) -> Iterator[Batch]:
        self.begun += 1
        yield from self.batches


def assert_same(stream: Iterator[Batch], source: Source) -> None:
    read = list(stream)
    assert [list(batch.inputs) for batch in read] == [list(batch.inputs) for batch in source.batches]
    for batch, expected in zip(read, source.batches, strict=True):
        for name, array in expected.inputs.items():
            assert batch.inputs[name].dtype == array.dtype
            np.testing.assert_array_equal(batch.inputs[name], array)
        assert batch.size == expected.size
        np.testing.assert_array_equal(batch.labels, expected.labels)


def test_the_source_is_read_once() -> None:
    source = Source()
    samples = KeptBatches("data", source)
    for _ in range(3):
        assert_same(samples(), source)
    assert source.begun == 1


def test_a_stream_that_was_given_up_keeps_nothing() -> None:
    source = Source()
    samples = KeptBatches("data", source)
    stream = samples()
    next(stream)
    stream.close()
    assert_same(samples(), source)
    assert source.begun == 2
    assert_same(samples(), source)
    assert source.begun == 2


def test_streams_side_by_side_do_not_disturb_each_other() -> None:
    source = Source()
    samples = KeptBatches("data", source)
    pairs = list(zip(samples(), samples(), strict=True))
    pairs += zip(samples(), samples(), strict=True)
    for number, (one, other) in enumerate(pairs):
        for name, array in source.batches[number % 3].inputs.items():
            np.testing.assert_array_equal(one.inputs[name], array)
            np.testing.assert_array_equal(other.inputs[name], array)
    assert source.begun == 2


def test_arrays_belong_to_their_reader() -> None:
    source = Source()
    samples = KeptBatches("data", source)
    list(samples())
    for batch in samples():
        batch.inputs["x"][:] = 0.0
    assert_same(samples(), source)


def test_too_many_bytes_come_from_the_source_and_are_not_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    created: list[ArrayFile] = []

    def create() -> ArrayFile:
        created.append(ArrayFile())
        return created[-1]

    monkeypatch.setattr(kept, "_MOST_BYTES", 80)
    monkeypatch.setattr(kept, "ArrayFile", create)
    source = Source()
    samples = KeptBatches("data", source)
    for _ in range(3):
        assert_same(samples(), source)
        assert len(created) == 3  # one for each input, by the first stream
    assert source.begun == 3


@pytest.mark.skipif(not FULL.exists(), reason="needs a device that is always full")
def test_a_full_disk_costs_the_files_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_file.tempfile, "TemporaryFile", lambda **_: FileIO(FULL, "wb+"))
    source = Source()
    samples = KeptBatches("data", source)
    for _ in range(2):
        assert_same(samples(), source)
    assert source.begun == 2


def test_most_of_the_disk_is_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(array.nbytes for batch in Source().batches for array in batch.inputs.values())
    for free, begun in ((8 * size, 1), (8 * size - 8, 2)):
        monkeypatch.setattr(kept.shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        source = Source()
        samples = KeptBatches("data", source)
        for _ in range(2):
            assert_same(samples(), source)
        assert source.begun == begun


@pytest.mark.parametrize("change", ["other order", "fewer", "more", "labels"])
def test_a_source_that_gives_others_when_read_again_is_refused(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_MOST_BYTES", 0)
    source = Source()
    samples = KeptBatches("data", source)
    first, *_, last = source.batches
    assert_same(samples(), source)
    assert_same(samples(), source)
    if change == "other order":
        source.batches[:2] = source.batches[1::-1]
    elif change == "fewer":
        source.batches.pop()
    elif change == "more":
        source.batches.append(last)
    else:
        assert first.labels is not None
        first.labels[0] += 1
    with pytest.raises(DataError, match="data: gave other samples when it was read again; it must give the same ones"):
        list(samples())
