"""Feeds of unknown number: iterables, onnxruntime's CalibrationDataReader, `test_data_set_*` folders of ONNX models."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from onnxcompress.errors import DataError
from onnxcompress.runtime.batch import Batch, Labels
from onnxcompress.runtime.dataset import Dataset, of_any_batch
from onnxcompress.runtime.providers import one_line
from onnxcompress.runtime.tensors import Array, TensorInfo, conform

LABELS = "labels"

Feed = Mapping[str, Any]
"""{input name: array (B, ...)}, optionally with `labels` (B,)."""


@dataclass(frozen=True)
class Part:
    """The share of a stream that a split chose: the samples whose random number lies in [low, high)."""

    seed: int
    low: float
    high: float


class StreamDataset(Dataset):
    """Feeds of one sample or several each, cut into samples and put into batches anew."""

    def __init__(
        self,
        name: str,
        inputs: Sequence[TensorInfo],
        start: Callable[[], Iterator[Feed]],
        has_labels: bool,
        parts: tuple[Part, ...] = (),
        maximum: int | None = None,
    ) -> None:
        super().__init__(name, inputs)
        self._start = start
        self._has_labels = has_labels
        self._parts = parts
        self._maximum = maximum

    @property
    def length(self) -> None:
        return None

    @property
    def has_labels(self) -> bool:
        return self._has_labels

    def limit(self, samples: int) -> StreamDataset:
        return self._with(self._parts, samples if self._maximum is None else min(samples, self._maximum))

    def split(self, fraction: float, seed: int = 0) -> tuple[StreamDataset, StreamDataset]:
        if self._maximum is not None:
            raise DataError(f"{self.name}: a stream is split before it is limited, not after")
        if not 0 < fraction < 1:
            raise DataError(f"{self.name}: cannot split off {fraction:.0%} of the samples")
        first = self._with((*self._parts, Part(seed, 0.0, fraction)), None)
        return first, self._with((*self._parts, Part(seed, fraction, 1.0)), None)

    def _with(self, parts: tuple[Part, ...], maximum: int | None) -> StreamDataset:
        return StreamDataset(self.name, self.inputs, self._start, self._has_labels, parts, maximum)

    def _batches(self, batch_size: int) -> Iterator[Batch]:
        samples = islice(self._chosen(), self._maximum)
        while pending := list(islice(samples, batch_size)):
            inputs = {n: np.concatenate([sample.inputs[n] for sample in pending]) for n in pending[0].inputs}
            labels = [sample.labels for sample in pending if sample.labels is not None]
            yield Batch(inputs, np.concatenate(labels) if labels else None, len(pending))

    def _chosen(self) -> Iterator[Batch]:
        # The depth is part of the seed: a split of a split with the same seed must not repeat the first one's choice.
        generators = [np.random.default_rng((part.seed, depth)) for depth, part in enumerate(self._parts)]
        for sample in self._samples():
            # Each generator advances at each sample, so that one split's choice does not depend on another's.
            drawn = [generator.random() for generator in generators]
            if all(part.low <= number < part.high for part, number in zip(self._parts, drawn, strict=True)):
                yield sample

    def _samples(self) -> Iterator[Batch]:
        for number, feed in enumerate(self._start()):
            arrays, labels = self._checked(feed, f"{self.name}, feed {number}")
            for row in range(len(next(iter(arrays.values())))):
                inputs = {name: array[row : row + 1] for name, array in arrays.items()}
                yield Batch(inputs, None if labels is None else labels[row : row + 1], 1)

    def _checked(self, feed: Feed, where: str) -> tuple[dict[str, Array], Labels | None]:
        if not isinstance(feed, Mapping):
            raise DataError(f"{where}: a {type(feed).__name__} where {{input name: array}} is expected")
        arrays = {str(name): _array(value, f"{where}, '{name}'") for name, value in feed.items()}
        labelled = _is_labelled(feed, self.inputs)
        if labelled != self._has_labels:
            raise DataError(f"{where}: some feeds have labels and some have none")
        labels = checked_labels(arrays.pop(LABELS), where) if labelled else None
        arrays = conform(arrays, of_any_batch(self.inputs), where)
        sizes = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
        if labels is not None:
            sizes[LABELS] = len(labels)
        if len(set(sizes.values())) != 1 or 0 in sizes.values():
            shown = ", ".join(f"'{name}' {size}" for name, size in sizes.items())
            raise DataError(f"{where}: every array needs the same number of samples first; these have {shown}")
        return arrays, labels


def _array(value: Any, where: str) -> Array:
    try:
        return np.asarray(value)
    except Exception as error:  # whatever the conversion of an object of the user's raises
        raise DataError(f"{where}: a {type(value).__name__} that makes no array: {one_line(error)}") from error


def checked_labels(labels: Array, where: str) -> Labels:
    """Return class numbers as int64 (N,).

    Raises:
        DataError: they are not whole numbers from 0 to 2^63 - 1 in one dimension.
    """
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{where}: labels are {labels.dtype} of {labels.ndim} dimensions; class numbers (N,), which are whole, "
            "are needed. Give --task regression where the model's outputs are no scores of classes"
        )
    if labels.size and labels.min() < 0:
        raise DataError(f"{where}: label {labels.min()} is negative")
    if labels.size and labels.max() >= 2**63:
        raise DataError(f"{where}: label {labels.max()} is no class number")
    return labels.astype(np.int64)


def open_stream(
    data: Any, inputs: Sequence[TensorInfo], name: str = "data", *, reads_labels: bool = True
) -> StreamDataset:
    """Open any iterable of feeds, a CalibrationDataReader (`get_next()`), or a callable that makes one of them.

    Without `reads_labels` their labels may be anything, and it has none.

    Raises:
        DataError: it is none of these, it fails, or it gives nothing.
    """
    start = _restartable(data, name)
    feeds = start()
    first = next(feeds, None)
    if first is None:
        raise DataError(f"{name}: no samples")
    if not _is_repeatable(data):
        start = _once(chain([first], feeds), name)
    if not reads_labels:
        return StreamDataset(name, inputs, lambda: (_unlabelled(feed, inputs) for feed in start()), has_labels=False)
    return StreamDataset(name, inputs, start, isinstance(first, Mapping) and _is_labelled(first, inputs))


def open_callable(text: str, inputs: Sequence[TensorInfo], *, reads_labels: bool = True) -> StreamDataset:
    """Open what `module:callable` returns; the module is looked for in the current folder, too.

    Raises:
        DataError: the module does not import, or it has no such callable, or as for `open_stream`.
    """
    module_name, _, attribute = text.partition(":")
    # A console script's path lacks the current folder, which `python -m` has.
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        value: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            value = getattr(value, part)
    except (Exception, SystemExit) as error:  # a script that is no module may end the program
        raise DataError(f"{text}: cannot be imported: {type(error).__name__}: {one_line(error)}") from error
    finally:
        sys.path.remove(here)
    if not callable(value):
        raise DataError(f"{text}: a {type(value).__name__}, not a callable that makes a reader or an iterable")
    return open_stream(value, inputs, text, reads_labels=reads_labels)


def open_test_data_sets(folder: Path, inputs: Sequence[TensorInfo]) -> StreamDataset:
    """Open the `test_data_set_*` folders in `folder`, or one of them: `input_K.pb` is the K-th graph input.

    Expected outputs (`output_K.pb`) are not read: the original model is the reference of every comparison.

    Raises:
        DataError: a file is missing or does not parse.
    """
    folders = sorted(folder.glob("test_data_set_*"), key=lambda f: (len(f.name), f.name)) or [folder]

    def start() -> Iterator[Feed]:
        for one in folders:
            yield {info.name: _read_tensor(one / f"input_{k}.pb") for k, info in enumerate(inputs)}

    return StreamDataset(str(folder), inputs, start, has_labels=False)


def _read_tensor(path: Path) -> Array:
    import onnx
    from onnx import numpy_helper

    if not path.is_file():
        raise DataError(f"{path}: no such file, although the model has an input for it")
    try:
        return np.asarray(numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes())))
    except Exception as error:
        raise DataError(f"{path}: not a tensor that can be read: {one_line(error)}") from error


def _is_labelled(feed: Feed, inputs: Sequence[TensorInfo]) -> bool:
    return LABELS in feed and all(info.name != LABELS for info in inputs)


def _unlabelled(feed: Feed, inputs: Sequence[TensorInfo]) -> Feed:
    if not isinstance(feed, Mapping) or not _is_labelled(feed, inputs):
        return feed
    return {name: value for name, value in feed.items() if name != LABELS}


def _is_repeatable(data: Any) -> bool:
    """Whether a second reading starts again at the first feed."""
    return callable(data) or hasattr(data, "rewind") or (not hasattr(data, "get_next") and iter(data) is not data)


def _restartable(data: Any, name: str) -> Callable[[], Iterator[Feed]]:
    def start() -> Iterator[Feed]:
        try:
            made = data() if callable(data) else data
            if hasattr(made, "rewind"):
                made.rewind()
            if hasattr(made, "get_next"):
                yield from iter(made.get_next, None)
                return
            if isinstance(made, Mapping) or not isinstance(made, Iterable):
                raise DataError(f"{name}: a {type(made).__name__}, neither an iterable of feeds nor a data reader")
            yield from made
        except DataError:
            raise
        except (Exception, SystemExit) as error:
            raise DataError(f"{name}: reading failed: {type(error).__name__}: {one_line(error)}") from error

    if not callable(data) and not hasattr(data, "get_next") and not isinstance(data, Iterable):
        raise DataError(f"{name}: a {type(data).__name__}, neither an iterable of feeds nor a data reader")
    return start


def _once(feeds: Iterator[Feed], name: str) -> Callable[[], Iterator[Feed]]:
    remaining = [feeds]

    def start() -> Iterator[Feed]:
        if not remaining:
            raise DataError(f"{name}: can be read only once; give a list, or a callable that starts again")
        return remaining.pop()

    return start
