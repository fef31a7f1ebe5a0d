"""Scores of a batch."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.evaluation.metrics import class_scores, label_ranks


@pytest.mark.parametrize(
    ("shape", "classifies"),
    [
        ((5, 7), True),
        ((5, 7, 1, 1), True),
        ((5, 7, 1), True),
        ((5, 1), False),
        ((4, 7), False),
        ((5, 7, 2, 2), False),
        ((5,), False),
        ((), False),
    ],
)
def test_which_outputs_classify(shape: tuple[int, ...], classifies: bool) -> None:
    scores = class_scores(np.zeros(shape, np.float32), 5)
    assert (scores is not None) is classifies
    assert scores is None or scores.shape == (5, 7)
    assert class_scores(np.zeros(shape, np.int64), 5) is None


def test_ranks_and_ties() -> None:
    scores = np.array([[3, 1, 2, 3], [0, 0, 0, 0], [1, 2, 3, 4]], np.float32)
    assert label_ranks(scores, np.array([3, 2, 0])).tolist() == [1, 2, 3]
    assert label_ranks(scores, np.array([0, 0, 3])).tolist() == [0, 0, 0]
    assert label_ranks(scores, scores.argmax(axis=1)).tolist() == [0, 0, 0]
