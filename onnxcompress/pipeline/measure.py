"""Data and measurements of a run: what is opened before the work, and what is measured after it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt

from onnxcompress.errors import DataError, RecipeError
from onnxcompress.evaluation.compare import Evaluation, compare_models
from onnxcompress.evaluation.latency import LatencySettings
from onnxcompress.evaluation.reference import NO_TRAITS, OutputTraits
from onnxcompress.passes.base import LABELS, Samples
from onnxcompress.recipe import Recipe
from onnxcompress.remote import Copy, RemoteFile, fetch, location
from onnxcompress.report.progress import Progress
from onnxcompress.runtime.data import dataset_for
from onnxcompress.runtime.dataset import DEFAULT_BATCH, Dataset
from onnxcompress.runtime.providers import Provider, resolve_provider
from onnxcompress.runtime.session import Session, SessionSettings

_THREADS_FOR_EACH_CPU, _LEAST_MOST_THREADS = 4, 32
"""More threads than these than CPUs, and so many on any machine, are a slip."""

CALIBRATION_SHARE = 0.25
"""Part of the evaluation data that becomes calibration data, where no other data are given for what needs it."""

CALIBRATION_SAMPLES = 500
"""Samples of the training data that become calibration data, where no other data are given for what needs it."""


@dataclass(frozen=True)
class DataSets:
    """Opened data; None where there are none."""

    evaluation: Dataset | None = None
    calibration: Dataset | None = None
    training: Dataset | None = None
    copies: tuple[Copy, ...] = ()
    """Of data that lie elsewhere, kept as long as they are read."""

    @property
    def in_use(self) -> tuple[Dataset, ...]:
        """The data sets that there are, those to calibrate on first."""
        return tuple(each for each in (self.calibration, self.evaluation, self.training) if each is not None)

    @property
    def calibration_samples(self) -> Samples | None:
        """A fresh stream of calibration batches at each call."""
        return None if self.calibration is None else self.calibration.samples()

    @property
    def labelled_samples(self) -> Samples | None:
        """A fresh stream of some training batches at each call, with their class numbers where there are any."""
        return None if self.training is None else partial(_labelled_batches, self.training.limit(CALIBRATION_SAMPLES))

    @property
    def training_samples(self) -> Samples | None:
        """A fresh stream of training batches at each call, with their class numbers where there are any."""
        return None if self.training is None else partial(_labelled_batches, self.training)


def open_data(
    model: bytes | Path,
    recipe: Recipe,
    data: Any,
    calib: Any = None,
    train: Any = None,
    *,
    needs_calibration: bool = False,
) -> DataSets:
    """Open evaluation, calibration and training data for a model, so that unusable data cost no work.

    Raises:
        DataError: they are missing, malformed, or do not fit the model.
        RecipeError: the preprocessing is unknown or missing.
    """
    if data is None and calib is None and train is None:
        return DataSets()
    session = Session(model, settings=SessionSettings(optimize=False))

    copies: dict[str, Copy] = {}

    def opened(given: Any, split: str, *, reads_labels: bool = True) -> Dataset | None:
        own = partial(dataset_for, session, preprocess=recipe.preprocess, split=split)
        own = partial(own, reads_labels=reads_labels and recipe.task != "regression")
        file = location(given) if isinstance(given, (str, RemoteFile)) else None
        if not isinstance(file, RemoteFile):
            return None if given is None else own(given)
        if file.address not in copies:
            copies[file.address] = fetch(file, DataError)
        copy = copies[file.address]
        with copy.named():
            return own(copy.path)

    evaluation, training = opened(data, "test"), opened(train, "train", reads_labels=recipe.loss != "distill")
    calibration = opened(calib, "train", reads_labels=False)
    if needs_calibration and calibration is None and training is not None:
        calibration = training.limit(CALIBRATION_SAMPLES)
    if needs_calibration and calibration is None and evaluation is not None:
        # Before `limited`: a sample must never be on both sides.
        calibration, evaluation = evaluation.split(CALIBRATION_SHARE, recipe.seed)
    return DataSets(
        _limited(evaluation, recipe),
        _limited(calibration, recipe),
        training,
        tuple(copies.values()),
    )


def resolve_providers(recipe: Recipe) -> tuple[Provider, ...]:
    """Return the execution providers that a recipe names.

    Raises:
        RecipeError: onnxruntime knows no such provider.
        ProviderUnavailableError: this installation does not have it.
    """
    return tuple(resolve_provider(name, recipe.provider_option) for name in recipe.provider)


def latency_settings(recipe: Recipe) -> LatencySettings:
    """Return how a recipe has latency measured.

    Raises:
        RecipeError: more threads than this machine can be meant to have: they would take it down.
    """
    most = max(_LEAST_MOST_THREADS, _THREADS_FOR_EACH_CPU * (os.cpu_count() or 1))
    if recipe.threads is not None and recipe.threads > most:
        raise RecipeError(f"threads: {recipe.threads} is out of range here; give at most {most}")
    return LatencySettings(
        batch=recipe.batch,
        threads=recipe.threads,
        warmup=recipe.warmup,
        repeat=recipe.repeat,
        shapes=recipe.input_shape,
        copies=recipe.copies,
        seed=recipe.seed,
    )


def measure(
    original: bytes | Path,
    compressed: bytes | Path,
    data: Dataset | None,
    providers: Sequence[Provider],
    recipe: Recipe,
    progress: Progress,
    cleaned: bytes | Path | None = None,
    numbers: frozenset[str] = frozenset(),
    traits: OutputTraits = NO_TRAITS,
    batch: int = DEFAULT_BATCH,
) -> Evaluation:
    """Measure accuracy where there are data, and latency unless the recipe turns it off.

    With `cleaned`, the original after clean-up alone, latency tells what clean-up earned and what compression.
    `numbers` are outputs of the shape of class scores that hold none; `traits` is what the original's graph
    tells of its outputs. `batch` is of the data, where the original does not fix it.

    Raises:
        DataError, ModelError, ProviderUnavailableError: as the measurements raise them.
    """
    if data is None and not recipe.latency:
        return Evaluation(None, ())
    return compare_models(
        original,
        compressed,
        data=data,
        latency=latency_settings(recipe) if recipe.latency else None,
        providers=providers,
        cleaned=cleaned,
        progress=progress,
        numbers=numbers,
        traits=traits,
        batch=batch,
    )


def _labelled_batches(data: Dataset) -> Iterator[dict[str, npt.NDArray[Any]]]:
    for batch in data.batches():
        # What fills up the last batch of a fixed size is no sample to train on.
        inputs = {name: array[: batch.size] for name, array in batch.inputs.items()}
        yield inputs if batch.labels is None else {**inputs, LABELS: batch.labels}


def _limited(data: Dataset | None, recipe: Recipe) -> Dataset | None:
    return data if data is None or recipe.samples is None else data.limit(recipe.samples)
