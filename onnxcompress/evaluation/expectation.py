"""How much accuracy a model will lose, estimated on few samples without labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcompress.evaluation.metrics import probabilities
from onnxcompress.evaluation.reference import Reference, real_outputs
from onnxcompress.runtime.session import Session


@dataclass(frozen=True)
class ExpectedDrop:
    """Two estimates on the same samples, in percentage points.

    Attributes:
        drop: how far top-1 is expected to fall. Where the two models differ, the original's own probabilities tell how
            much more often its class is the right one; where they agree, nothing is lost. That needs no labels and
            varies far less than a count of right answers, and is as good as the original's probabilities are.
        disagreement: samples to which the models give different classes.
        samples: how many.
    """

    drop: float
    disagreement: float
    samples: int


def expected_drop(compressed: Session, reference: Reference) -> ExpectedDrop:
    """Compare a compressed model with its original, which classifies, on the reference's samples.

    Raises:
        ModelError: the compressed model fails while running.
    """
    assert reference.output is not None
    lost, differing, samples = 0.0, 0, 0
    for batch, expected in reference.batches():
        seen = real_outputs(compressed, batch)[reference.output].reshape(batch.size, -1)
        own = probabilities(expected[reference.output].reshape(batch.size, -1), reference.normalised)
        rows = np.arange(batch.size)
        first, second = own.argmax(axis=1), seen.argmax(axis=1)
        # A row that is no number picks its first class, or any: it counts as wrong throughout.
        finite = np.isfinite(seen).all(axis=1)
        lost += float((own[rows, first] - np.where(finite, own[rows, second], 0.0)).sum())
        differing += int(((first != second) | ~finite).sum())
        samples += batch.size
    return ExpectedDrop(100.0 * lost / samples, 100.0 * differing / samples, samples)
