"""Accuracy of a compressed model against its original, on the same samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcompress.errors import ModelError
from onnxcompress.evaluation import intervals
from onnxcompress.evaluation.class_errors import OneClass
from onnxcompress.evaluation.metrics import label_ranks
from onnxcompress.evaluation.reference import Reference, Told, real_outputs
from onnxcompress.evaluation.relative_error import ErrorTally, SmallNumbers
from onnxcompress.linalg.distributions import kl_divergence, probabilities
from onnxcompress.runtime.batch import Batch
from onnxcompress.runtime.dataset import filled
from onnxcompress.runtime.session import Session
from onnxcompress.runtime.tensors import Array, conform, shown_shape


@dataclass(frozen=True)
class Hits:
    """Percent of samples whose label is the first, or among the first five, of the classes; None without labels."""

    top1: float | None = None
    top5: float | None = None


@dataclass(frozen=True)
class Accuracy:
    """Two models on the same samples.

    Attributes:
        samples: how many.
        labels: whether top-1 and top-5 were measured.
        output: the output that classifies: the first of shape [N, C] or [N, C, 1, ...], C > 1. Where there is none,
            None, and only `relative_error` is measured.
        original, compressed: percent.
        drop_top1: original - compressed, percentage points; `drop_top1_interval` its paired 95 % interval.
        both_right, only_original, only_compressed: samples that both, or only the one of them, have right.
        p_value: of McNemar's exact test that both are right equally often.
        agreement: percent of samples to which both give the same class; `agreement_interval` its 95 % interval.
        kl: mean KL(original || compressed) in nats; None where the compressed model gave NaN or infinity.
        relative_error: ||original - compressed|| / ||original|| over all samples, of the output where it is largest
            (of whole numbers the share that differs, or 1 - IoU of a class: `evaluation.relative_error`), a share; None
            where the compressed model gave NaN or infinity, or no output could be compared. `relative_error_interval`
            its 95 % interval; `relative_error_output` the output's name, `relative_error_part` which of its numbers
            alone: the small ones beside larger ones, or those of one class.
        numbers: outputs of the shape of class scores that are judged as numbers of another kind.
        classes: how many there are; `confidence` the mean probability of the class that the original gives, a share;
            `majority` the percentage of samples to which it gives the class that it gives most often.
        not_compared: other outputs, which the second model does not have, which have another shape in the two on some
            samples or whose shape depends on the data, or in which the original gave NaN or infinity.
        made_from: tensors inside that were compared in place of outputs whose shape depends on the data.
        not_finite: samples to which the compressed model gave NaN or infinity: they count as wrong and as disagreeing.
    """

    samples: int
    labels: bool
    output: str | None = None
    original: Hits = Hits()
    compressed: Hits = Hits()
    drop_top1: float | None = None
    drop_top1_interval: intervals.Interval | None = None
    both_right: int | None = None
    only_original: int | None = None
    only_compressed: int | None = None
    p_value: float | None = None
    agreement: float | None = None
    agreement_interval: intervals.Interval | None = None
    kl: float | None = None
    relative_error: float | None = None
    relative_error_interval: intervals.Interval | None = None
    relative_error_output: str | None = None
    relative_error_part: SmallNumbers | OneClass | None = None
    numbers: tuple[str, ...] = ()
    classes: int | None = None
    confidence: float | None = None
    majority: float | None = None
    not_compared: tuple[str, ...] = ()
    made_from: tuple[str, ...] = ()
    not_finite: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the report's `accuracy`."""
        return asdict(self)


def measure_accuracy(compressed: Session, reference: Reference, *, progress: Told | None = None) -> Accuracy:
    """Score a compressed model against the original's recorded outputs.

    Raises:
        ModelError: its inputs or outputs do not match the original's, or it fails while running.
        DataError: the data cannot be read again.
    """
    classes = None if reference.output is None else _ClassTally(reference, reference.output)
    errors, samples, not_finite = ErrorTally(reference.divisions), 0, 0
    for batch, expected in reference.batches():
        rows, fixed = len(next(iter(batch.inputs.values()))), compressed.fixed_batch
        whole = batch if fixed is None or rows >= fixed else filled(batch, fixed)
        adapted = replace(whole, inputs=_adapted(whole.inputs, compressed))
        seen = _matched(real_outputs(compressed, adapted), expected, reference)
        finite = errors.add(batch.size, expected, seen)
        samples, not_finite = samples + batch.size, not_finite + int((~finite).sum())
        if classes is not None:
            classes.add(batch, expected, seen, finite)
        if progress:
            progress(samples)
    accuracy = Accuracy(samples, labels=False) if classes is None else classes.result(samples)
    error = errors.result()
    made_from = set(reference.traits.made_from)
    accuracy = replace(
        accuracy,
        numbers=reference.numbers,
        not_compared=tuple(sorted((errors.apart | reference.left_out) - made_from)),
        made_from=tuple(sorted(made_from & errors.compared)),
        not_finite=not_finite,
    )
    if not_finite:
        return replace(accuracy, kl=None)
    if error is None:
        return accuracy
    return replace(
        accuracy,
        relative_error=error.value,
        relative_error_interval=error.interval,
        relative_error_output=error.output,
        relative_error_part=error.part,
    )


class _ClassTally:
    """Counts over a classifying output."""

    def __init__(self, reference: Reference, output: str) -> None:
        self._output = output
        self._kind = reference.kind
        self._labels = reference.data.has_labels
        self._hits = np.zeros((2, 2), np.int64)  # rows: original, compressed; columns: top-1, top-5
        self._both = self._same = 0
        self._given = np.zeros(0, np.int64)  # how often the original gives each class
        self._kl = self._confidence = 0.0

    def add(
        self, batch: Batch, expected: Mapping[str, Array], seen: Mapping[str, Array], finite: npt.NDArray[np.bool_]
    ) -> None:
        first, second = (outputs[self._output].reshape(batch.size, -1) for outputs in (expected, seen))
        second = np.where(finite[:, None], second, 0)
        classes = first.argmax(axis=1)
        given = np.bincount(classes, minlength=first.shape[1])
        self._given = given + self._given if self._given.size else given
        self._same += int(((classes == second.argmax(axis=1)) & finite).sum())
        own = probabilities(first, self._kind)
        self._confidence += float(own.max(axis=1).sum())
        self._kl += float(kl_divergence(own, probabilities(second, self._kind), self._kind).sum())
        if batch.labels is None:
            return
        # A sample without finite scores is wrong: its label stands behind all classes.
        ranks = label_ranks(first, batch.labels), np.where(finite, label_ranks(second, batch.labels), first.shape[1])
        for model, rank in enumerate(ranks):
            self._hits[model] += (rank < 1).sum(), ((rank < 5) & (rank < first.shape[1])).sum()
        self._both += int(((ranks[0] < 1) & (ranks[1] < 1)).sum())

    def result(self, samples: int) -> Accuracy:
        accuracy = Accuracy(
            samples=samples,
            labels=self._labels,
            output=self._output,
            classes=len(self._given),
            confidence=self._confidence / samples,
            majority=100.0 * int(self._given.max(initial=0)) / samples,
            agreement=100.0 * self._same / samples,
            agreement_interval=_percent(intervals.proportion(self._same, samples)),
            kl=self._kl / samples,
        )
        if not self._labels:
            return accuracy
        original, compressed = (Hits(*(100.0 * int(count) / samples for count in row)) for row in self._hits)
        only_original, only_compressed = (int(row[0]) - self._both for row in self._hits)
        return replace(
            accuracy,
            original=original,
            compressed=compressed,
            drop_top1=100.0 * (only_original - only_compressed) / samples,
            drop_top1_interval=_percent(intervals.paired_difference(only_original, only_compressed, samples)),
            both_right=self._both,
            only_original=only_original,
            only_compressed=only_compressed,
            p_value=intervals.mcnemar_p_value(only_original, only_compressed),
        )


def _adapted(inputs: Mapping[str, Array], compressed: Session) -> dict[str, Array]:
    """Return the original's inputs as the compressed model takes them, under its names, by position."""
    if len(inputs) != len(compressed.inputs):
        raise ModelError(f"the models differ: {len(inputs)} inputs and {len(compressed.inputs)} inputs")
    same = all(info.name in inputs for info in compressed.inputs)
    names = [info.name for info in compressed.inputs] if same else list(inputs)
    renamed = {info.name: inputs[name] for info, name in zip(compressed.inputs, names, strict=True)}
    return conform(renamed, compressed.inputs, "the second model")


def _matched(seen: Mapping[str, Array], expected: Mapping[str, Array], reference: Reference) -> dict[str, Array]:
    """Return the outputs that `expected` has, by name, or by position where the only output has another name.

    As many boxes as were found, say, are others in another model: that is no error as long as something is left that
    can be compared. Beside an output that classifies others may also be missing, and so may tensors from inside.
    """
    classifying, inside = reference.output, set(reference.traits.made_from)
    matched = {name: seen[name] for name in expected if name in inside and name in seen}
    seen, expected = ({n: array for n, array in each.items() if n not in inside} for each in (seen, expected))
    for name, own in expected.items():
        array = seen.get(name)
        if array is None and len(seen) == 1 and (len(expected) == 1 or name == classifying):
            array = next(iter(seen.values()))
        if array is None and classifying not in (None, name):
            continue
        if array is None:
            raise ModelError(f"the models differ: output '{name}' is missing in the second one")
        if array.shape != own.shape and (len(expected) == 1 or name == classifying):
            shapes = f"{shown_shape(own.shape)} and {shown_shape(array.shape)}"
            raise ModelError(f"the models differ: output '{name}' has the shapes {shapes}")
        matched[name] = array
    return matched


def _percent(interval: intervals.Interval) -> intervals.Interval:
    return 100.0 * interval[0], 100.0 * interval[1]
