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
"""Trials whose divergences differ by no more than this factor have one ratio of loss to divergence."""

LOST, DIFFERING = 1.0, 0.5
"""Powers of the divergence that go with accuracy that is lost, and with samples that change class."""


def pooled_bounds(losses: Sequence[Rows], divergences: Sequence[Rows], power: float) -> list[float]:
    """Return each trial's mean loss as all trials tell it, with one standard error on top.

    Args:
        losses: of each trial, (n,): of the same samples in the same order.
        divergences: likewise, in nats; a trial that has an infinite one stands for itself.
        power: of the mean divergence, to which losses are proportional: `LOST` or `DIFFERING`.
    """
    if not losses:
        return []
    lost, apart = np.stack(losses), np.stack(divergences)
    means = apart.mean(axis=1)
    return [
        _pooled(at, lost, apart, means, power) if 0.0 < mean < math.inf else bound(lost[at])
        for at, mean in enumerate(means.tolist())
    ]


def _pooled(at: int, losses: Rows, divergences: Rows, means: Rows, power: float) -> float:
    """Return the bound of one trial: losses and divergences are (trials, n), means (trials,)."""
    near = (means >= means[at] / _NEAR) & (means <= means[at] * _NEAR)
    here = int(near[:at].sum())
    own, apart, centres = losses[near], divergences[near], means[near, None]
    scales = centres**power
    whole = float(scales.sum())
    ratio = float(own.mean(axis=1).sum()) / whole
    # By how much each sample moves a trial's power of the mean divergence, and the ratio.
    moved = power * scales / centres * (apart - centres)
    of_ratio = (own - own.mean(axis=1, keepdims=True) - ratio * moved).sum(axis=0) / whole
    scale = float(scales[here, 0])
    return ratio * scale + standard_error(ratio * moved[here] + scale * of_ratio)
