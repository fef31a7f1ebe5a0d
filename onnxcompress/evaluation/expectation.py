"""How much a model will lose, estimated on few samples without labels: of accuracy, and of its outputs' numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxcompress.evaluation.reference import Reference, real_outputs
from onnxcompress.evaluation.relative_error import ErrorTally, RelativeError
from onnxcompress.linalg.distributions import Kind, kl_divergence, probabilities
from onnxcompress.runtime.session import Session
from onnxcompress.runtime.tensors import Array

Rows = npt.NDArray[np.floating]

_LEAST = 1e-12
"""A probability below this counts as this: its logarithm is of no use."""


@dataclass(frozen=True)
class SampleLosses:
    """What a compressed model loses on each sample; arrays are (n,).

    Attributes:
        lost: how likely the right answer is lost, as a share: the larger one of two estimates that read no labels and
            are as good as the original's probabilities are. Counted: where the two models differ, the original's
            probabilities tell how much more often its class is the right one. Spread: the margins between the
            original's first two classes scatter around a line; normally distributed, that turns so many of them over,
            also where few did.
        differing: 1 where the models give different classes, else 0.
        divergences: KL(original || compressed) in nats; infinite where the compressed model gave NaN or infinity.
    """

    lost: Rows
    differing: Rows
    divergences: Rows

    @property
    def disagreement(self) -> float:
        """Percent of the samples to which the models give different classes."""
        return 100.0 * float(self.differing.mean())

    @property
    def divergence(self) -> float:
        """Mean of the divergences."""
        return float(self.divergences.mean())


@dataclass(frozen=True)
class Losses:
    """What a compressed model loses.

    Attributes:
        classes: on each sample; None of a model that classifies nothing.
        error: of its outputs; None where the number of what they hold differs from the original's.
    """

    classes: SampleLosses | None
    error: RelativeError | None

    @property
    def apart(self) -> float:
        """How far the answers are from the original's: the mean KL divergence of classes, else the squared error."""
        if self.classes is not None:
            return self.classes.divergence
        return math.inf if self.error is None else self.error.value**2


def measured_losses(compressed: Session, reference: Reference) -> Losses:
    """Compare a compressed model with its original on the reference's samples.

    Raises:
        ModelError: the compressed model fails while running.
    """
    classes = None if reference.output is None else _ClassLosses(reference.output, reference.kind)
    errors = ErrorTally(reference.divisions)
    for batch, expected in reference.batches():
        seen = real_outputs(compressed, batch)
        errors.add(batch.size, expected, seen)
        if classes is not None:
            classes.add(batch.size, expected, seen)
    return Losses(None if classes is None else classes.result(), errors.result())


class _ClassLosses:
    """Gathers `SampleLosses` batch by batch."""

    def __init__(self, output: str, kind: Kind) -> None:
        self._output = output
        self._kind = kind
        self._lost: list[Rows] = []
        self._differing: list[Rows] = []
        self._divergences: list[Rows] = []
        self._margins: list[Rows] = []

    def add(self, samples: int, expected: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        seen = outputs[self._output].reshape(samples, -1)
        own = probabilities(expected[self._output].reshape(samples, -1), self._kind)
        rows = np.arange(samples)
        first, second = own.argmax(axis=1), seen.argmax(axis=1)
        # A row that is no number picks its first class, or any: it counts as wrong throughout.
        finite = np.asarray(np.isfinite(seen).all(axis=1))
        self._lost.append(own[rows, first] - np.where(finite, own[rows, second], 0.0))
        self._differing.append(((first != second) | ~finite).astype(np.float64))
        other = np.where(finite[:, None], probabilities(seen, self._kind), own)
        self._divergences.append(np.where(finite, kl_divergence(own, other, self._kind), np.inf))
        self._margins.append(_margins(own, other))

    def result(self) -> SampleLosses:
        counted, spread = np.concatenate(self._lost), _lost_by_spread(np.concatenate(self._margins))
        larger = max(counted, spread, key=bound)
        return SampleLosses(larger, np.concatenate(self._differing), np.concatenate(self._divergences))


def bound(losses: Rows) -> float:
    """Return the mean of samples' losses (n,) with one standard error on top, so that others seldom show more.

    Who takes the smallest of many models takes one that looks better than it is (Breiman et al., Classification and
    Regression Trees, 1984).
    """
    return float(losses.mean()) + standard_error(losses)


def standard_error(values: Rows) -> float:
    """Return that of the mean of samples' values (n,)."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _margins(own: Rows, other: Rows) -> Rows:
    """Return (n, 3) of probabilities (n, C): how much likelier the first class is than the second; its margin in both.

    First and second are those of `own`; a margin is the logarithm of the ratio of their probabilities.
    """
    rows = np.arange(len(own))
    second, first = np.argsort(own, axis=1, kind="stable")[:, -2:].T
    logs = (np.log(np.maximum(each, _LEAST)) for each in (own, other))
    return np.stack([own[rows, first] - own[rows, second], *(log[rows, first] - log[rows, second] for log in logs)], 1)


def _lost_by_spread(margins: Rows) -> Rows:
    """Return how likely each right answer is lost, (n,), where margins scatter as they do around their regression line.

    Less certain throughout (every margin halved) loses nothing; what scatters around the line turns small ones over.
    """
    gain, before, after = margins.T
    centred = before - before.mean()
    variance = float(centred @ centred)
    slope = float(centred @ (after - after.mean())) / variance if variance > 0.0 else 0.0
    line = after.mean() + slope * centred
    deviation = float((after - line).std())
    if deviation <= 1e-6 * float(np.abs(before).max()):  # rounding alone
        return np.zeros(len(margins))
    flipped = np.array([0.5 * math.erfc(own / (deviation * math.sqrt(2.0))) for own in line.tolist()])
    lost: Rows = flipped * gain
    return lost
