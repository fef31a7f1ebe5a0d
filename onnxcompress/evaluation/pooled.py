"""What many trials on the same samples tell about each: a loss of accuracy goes with the divergence.

Of a few hundred samples only some change their class, and which ones is chance, while all of them have a divergence.
Near the original the two hang together. Errors of size e in the scores turn over the samples whose first two classes
are closer than e: a share of them that grows like e. Each costs as much accuracy as the second class is less likely
than the first, which is of size e as well. The divergence grows like e squared. So the accuracy lost is proportional to
the divergence, and the share that changes class to its root; the factor is what trials near each other have in common.

That is a ratio estimate (W. G. Cochran, Sampling Techniques, 1977, chapter 6), its error by linearisation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxcompress.evaluation.expectation import Rows, bound, standard_error

_NEAR = 4.0
"""Trials whose divergences differ by no more than this factor share theirs of loss to divergence."""

LOST, DIFFERING = 1.0, 0.5
"""Powers of the divergence that go with accuracy that is lost, and with samples that change class."""


def pooled_bounds(losses: Sequence[Rows], divergences: Sequence[Rows], power: float) -> list[float]:
    """Return each trial's mean loss as all trials tell it, with one standard error on top.

    Args:
        losses: of each trial, (n,): of the same samples in the same order.
        divergences: likewise, in nats; a trial that has an infinite one stands for itself.
        power: of the mean divergence, to which losses are proportional: `LOST` or `DIFFERING`.
    """
    means = [float(each.mean()) for each in divergences]
    return [
        _pooled(at, losses, divergences, power, near) if (near := _near(means, at)) else bound(losses[at])
        for at in range(len(losses))
    ]


def _near(means: Sequence[float], at: int) -> list[int]:
    own = means[at]
    if not 0.0 < own < math.inf:
        return []
    return [other for other, mean in enumerate(means) if own / _NEAR <= mean <= own * _NEAR]


def _pooled(at: int, losses: Sequence[Rows], divergences: Sequence[Rows], power: float, near: Sequence[int]) -> float:
    scales = {one: math.pow(divergences[one].mean(), power) for one in near}
    whole = sum(scales.values())
    ratio = sum(float(losses[one].mean()) for one in near) / whole

    def moved(one: int) -> Rows:
        """How much each sample moves this trial's power of the mean divergence."""
        mean = float(divergences[one].mean())
        change: Rows = power * mean ** (power - 1.0) * (divergences[one] - mean)
        return change

    of_ratio = np.sum([losses[one] - losses[one].mean() - ratio * moved(one) for one in near], axis=0) / whole
    error = standard_error(ratio * moved(at) + scales[at] * of_ratio)
    return ratio * scales[at] + error
