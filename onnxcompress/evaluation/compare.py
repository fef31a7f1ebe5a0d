"""Two models side by side: accuracy on the same data, latency on the same providers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxcompress.errors import RecipeError
from onnxcompress.evaluation.accuracy import Accuracy, measure_accuracy
from onnxcompress.evaluation.latency import Latency, LatencySettings, measure_latency, measure_with_credit
from onnxcompress.evaluation.reference import NO_TRAITS, OutputTraits, Reference
from onnxcompress.runtime.capture import exposing
from onnxcompress.runtime.data import dataset_for
from onnxcompress.runtime.dataset import DEFAULT_BATCH
from onnxcompress.runtime.preprocess import Preprocess
from onnxcompress.runtime.providers import CPU_PROVIDER, Provider
from onnxcompress.runtime.session import ModelSource, Session, SessionSettings

Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, how much of it is done, and how much there is where that is known."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured; accuracy is None without data, latency empty where it was not asked for."""

    accuracy: Accuracy | None
    latency: tuple[Latency, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the report's `accuracy` and `latency`."""
        return {
            "accuracy": None if self.accuracy is None else self.accuracy.to_json(),
            "latency": [entry.to_json() for entry in self.latency],
        }


def compare_models(
    original: ModelSource,
    compressed: ModelSource,
    *,
    data: Any = None,
    preprocess: str | Path | Preprocess | None = None,
    samples: int | None = None,
    latency: LatencySettings | None = None,
    providers: Sequence[Provider] = (CPU_PROVIDER,),
    cleaned: ModelSource | None = None,
    progress: Progress | None = None,
    numbers: frozenset[str] = frozenset(),
    traits: OutputTraits = NO_TRAITS,
    batch: int = DEFAULT_BATCH,
) -> Evaluation:
    """Compare two models.

    Args:
        original, compressed: serialised models or their paths.
        data: as `runtime.data.open_dataset` takes it; None leaves accuracy out.
        samples: at most so many of them.
        latency: how to measure it; None leaves it out.
        providers: each is timed; accuracy is measured on the first.
        cleaned: the original after exact clean-up only, timed with the two to tell what of the speed-up is its.
        progress: told of each step.
        numbers: outputs of the shape of class scores that hold numbers of another kind.
        traits: what the original's graph tells of its outputs.
        batch: of the data, where the original does not fix it.

    Raises:
        RecipeError: nothing is to be compared.
        DataError, ModelError, ProviderUnavailableError: as the measurements raise them.
    """
    if data is None and latency is None:
        raise RecipeError("nothing to compare: give data for accuracy, or measure latency")
    if not providers:
        raise RecipeError("nothing to compare on: give a provider")
    accuracy = None
    if data is not None:
        first, second = (exposing(each, traits.made_from) for each in (original, compressed))
        accuracy = _accuracy(first, second, data, preprocess, samples, providers[0], progress, numbers, traits, batch)
    timed: list[Latency] = []
    for number, provider in enumerate(providers if latency is not None else ()):
        if progress:
            progress(f"latency on {provider.requested}", number, len(providers))
        if cleaned is None:
            timed.append(measure_latency(original, compressed, provider, latency))
        else:
            timed.append(measure_with_credit(original, cleaned, compressed, provider, latency))
    return Evaluation(accuracy, tuple(timed))


def _accuracy(
    original: ModelSource,
    compressed: ModelSource,
    data: Any,
    preprocess: str | Path | Preprocess | None,
    samples: int | None,
    provider: Provider,
    progress: Progress | None,
    numbers: frozenset[str],
    traits: OutputTraits,
    batch: int,
) -> Accuracy:
    session = Session(original, provider, SessionSettings())
    opened = dataset_for(session, data, preprocess=preprocess)
    dataset = opened if samples is None else opened.limit(samples)

    def tell(doing: str) -> Callable[[int], None] | None:
        return None if progress is None else lambda done: progress(doing, done, dataset.length)

    told = tell("accuracy of the original")
    with Reference(session, dataset, batch_size=batch, progress=told, numbers=numbers, traits=traits) as reference:
        del session
        second = Session(compressed, provider, SessionSettings())
        return measure_accuracy(second, reference, progress=tell("accuracy of the compressed model"))
