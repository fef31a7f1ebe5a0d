"""Datasets: splits that share nothing, subsets that are spread, batches that the model fixes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcompress.errors import DataError
from onnxcompress.runtime.data import open_dataset
from onnxcompress.runtime.dataset import Dataset
from onnxcompress.runtime.tensors import TensorInfo

INFO = TensorInfo("x", np.dtype(np.float32), (None, 1))


def numbers(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.float32)[:, None]


def stream(count: int, info: TensorInfo = INFO) -> Dataset:
    return open_dataset([{"x": numbers(count)}], [info])


def indexed(count: int, folder: Path, info: TensorInfo = INFO) -> Dataset:
    np.savez(folder / "d.npz", x=numbers(count), labels=np.arange(count))
    return open_dataset(folder / "d.npz", [info])


def values(data: Dataset, batch: int = 7) -> list[int]:
    return [int(value) for b in data.batches(batch) for value in b.inputs["x"][: b.size, 0]]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_split_shares_nothing_loses_nothing_and_repeats(seed: int, tmp_path: Path) -> None:
    data = indexed(100, tmp_path)
    first, second = data.split(0.3, seed)
    assert (first.length, second.length) == (30, 70)
    assert sorted(values(first) + values(second)) == list(range(100))
    assert values(first) == sorted(values(first))
    assert values(data.split(0.3, seed)[0], batch=3) == values(first)
    assert values(data.split(0.3, seed + 10)[0]) != values(first)
    inner, outer = first.split(0.5, seed)
    assert sorted(values(inner) + values(outer)) == values(first)


def test_a_split_of_a_stream_of_unknown_length() -> None:
    data = stream(1000)
    first, second = data.split(0.3, seed=4)
    assert sorted(values(first) + values(second)) == list(range(1000))
    assert 250 < len(values(first)) < 350
    assert values(first, batch=3) == values(first)
    inner, outer = first.split(0.5, seed=4)
    assert sorted(values(inner) + values(outer)) == values(first)
    assert values(first.limit(5)) == values(first)[:5]
    with pytest.raises(DataError, match="split before it is limited"):
        data.limit(5).split(0.5)


@pytest.mark.parametrize("fraction", [0.0, 1.0, 0.001])
def test_a_split_without_a_second_part(fraction: float, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="100 samples are too few"):
        indexed(100, tmp_path).split(fraction)


def test_labels_stay_with_their_samples(tmp_path: Path) -> None:
    for part in indexed(50, tmp_path).split(0.5):
        for batch in part.limit(11).batches(4):
            assert batch.labels is not None
            assert batch.labels.tolist() == batch.inputs["x"][:, 0].tolist()


@given(st.integers(1, 60), st.integers(1, 80))
def test_a_subset_is_spread_evenly(count: int, samples: int) -> None:
    from onnxcompress.runtime.dataset import IndexedDataset

    class Numbers:
        name, length, labels = "n", count, None

    data = IndexedDataset(Numbers(), [INFO]).limit(samples)  # type: ignore[arg-type]
    chosen = data._positions
    assert data.length == min(count, samples)
    assert len(set(chosen.tolist())) == data.length
    assert 0 <= chosen[0] <= count - 1 - chosen[-1] + 1
    steps = np.diff(chosen)
    assert steps.size == 0 or steps.max() - steps.min() <= 1


def test_a_subset_of_a_stream_is_its_beginning() -> None:
    assert values(stream(20).limit(6)) == list(range(6))
    assert values(stream(20).limit(6).limit(9)) == list(range(6))


@pytest.mark.parametrize("form", ["stream", "indexed"])
def test_a_batch_that_the_model_fixes_is_filled_up(form: str, tmp_path: Path) -> None:
    info = TensorInfo("x", np.dtype(np.float32), (4, 1))
    data = stream(10, info) if form == "stream" else indexed(10, tmp_path, info)
    batches = list(data.batches(32))
    assert [(len(b.inputs["x"]), b.size) for b in batches] == [(4, 4), (4, 4), (4, 2)]
    assert batches[-1].inputs["x"][:, 0].tolist() == [8, 9, 9, 9]
    assert values(data) == list(range(10))


def test_samples_start_again_and_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = indexed(5, tmp_path)
    read, sizes = data._batches, []
    monkeypatch.setattr(data, "_batches", lambda size: sizes.append(size) or read(size))
    start = data.samples(2)
    for _ in range(3):
        feeds: list[Any] = list(start())
        assert [feed["x"].shape for feed in feeds] == [(2, 1), (2, 1), (1, 1)]
        assert np.concatenate([feed["x"] for feed in feeds])[:, 0].tolist() == list(range(5))
    assert sizes == [2]


def test_a_dataset_is_returned_as_it_is() -> None:
    data = stream(3)
    assert open_dataset(data, [INFO]) is data
    with pytest.raises(DataError, match="no inputs"):
        open_dataset("x.npz", [])
