"""How much accuracy a model will lose, estimated on few samples without labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxcompress.evaluation.metrics import kl_divergence, probabilities
from onnxcompress.evaluation.reference import Reference, real_outputs
from onnxcompress.runtime.session import Session

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


def sample_losses(compressed: Session, reference: Reference) -> SampleLosses:
    """Compare a compressed model with its original, which classifies, on the reference's samples.

    Raises:
        ModelError: the compressed model fails while running.
    """
    assert reference.output is not None
    divergences: list[Rows] = []
    lost: list[Rows] = []
    differing: list[Rows] = []
    margins: list[Rows] = []
    for batch, expected in reference.batches():
        seen = real_outputs(compressed, batch)[reference.output].reshape(batch.size, -1)
        own = probabilities(expected[reference.output].reshape(batch.size, -1), reference.normalised)
        rows = np.arange(batch.size)
        first, second = own.argmax(axis=1), seen.argmax(axis=1)
        # A row that is no number picks its first class, or any: it counts as wrong throughout.
        finite = np.asarray(np.isfinite(seen).all(axis=1))
        lost.append(own[rows, first] - np.where(finite, own[rows, second], 0.0))
        differing.append(((first != second) | ~finite).astype(np.float64))
        other = np.where(finite[:, None], probabilities(seen, reference.normalised), own)
        divergences.append(np.where(finite, kl_divergence(own, other), np.inf))
        margins.append(_margins(own, other))
    counted, spread = np.concatenate(lost), _lost_by_spread(np.concatenate(margins))
    larger = max(counted, spread, key=bound)
    return SampleLosses(larger, np.concatenate(differing), np.concatenate(divergences))


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
