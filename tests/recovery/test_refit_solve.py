"""The solution of one layer: what is wanted behind a Relu, and the choice of the ridge."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.linalg.moments import accumulate
from onnxcompress.passes.recovery import refit_solve
from onnxcompress.passes.recovery.refit_solve import RIDGES, UNJUDGED, ChainShape, ChainWeights, Samples


@pytest.mark.parametrize("rows", [1, 256, 600])
def test_where_a_target_is_not_above_zero_an_answer_that_is_not_either_is_right(rows: int) -> None:
    generator = np.random.default_rng(rows)
    answers, targets = generator.standard_normal((2, rows, 7)).astype(np.float32)
    targets[:, 3] = [0.0, -0.0, 1e-40, -1e30, 1e30][rows % 5]
    answers[:, 4] = -1e30
    wanted = np.where(targets > 0.0, targets, np.minimum(answers, 0.0))
    np.testing.assert_array_equal(refit_solve._behind_relu(answers.copy(), targets), wanted)


@pytest.mark.parametrize(
    ("errors", "best", "tried"),
    [
        ([9, 8, 7, 1, 2, 3], 1.0, [1e-1, 1.0, 10.0]),
        ([9, 8, 7, 3, 2, 1], 100.0, [1e-1, 1.0, 10.0, 100.0]),
        ([9, 8, 7, 6, 2, 4], 10.0, [1e-1, 1.0, 10.0, 100.0]),
        ([1, 2, 3, 4, 5, 6], 1e-3, [1e-3, 1e-2, 1e-1, 1.0, 10.0]),
        ([1, 4, 2, 3, 5, 6], 1e-1, [1e-2, 1e-1, 1.0, 10.0]),
        ([1, 1, 1, 1, 1, 1], 1.0, [1e-1, 1.0, 10.0]),
        ([9, 8, 1, 3, 2, 4], 10.0, [1e-1, 1.0, 10.0, 100.0]),  # upwards first
    ],
)
def test_a_ridge_is_looked_for_upwards_then_downwards(
    errors: list[float], best: float, tried: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    def fitted(covariances: object, shape: object, prior: object, strength: float) -> ChainWeights:
        seen.append(strength)
        return ChainWeights(None, np.full((1, 1, 1), strength), None, np.zeros(1))

    def error(self: Samples, chain: ChainWeights, shape: ChainShape) -> float:
        return errors[RIDGES.index(float(chain.core[0, 0, 0]))]

    monkeypatch.setattr(refit_solve, "_fit", fitted)
    monkeypatch.setattr(Samples, "error_of", error)
    rows = np.ones((4, 1), np.float32)
    start = ChainWeights(None, np.full((1, 1, 1), UNJUDGED), None, np.zeros(1))
    judging, covariances = Samples(rows, rows, relu=False), accumulate(rows, rows).centred()
    found = refit_solve._best(covariances, judging, ChainShape(1), np.ones((1, 1)), start)
    assert found[0] == best == float(found[1].core[0, 0, 0])
    assert found[2] == errors[RIDGES.index(best)]
    assert sorted([*seen, UNJUDGED]) == tried
