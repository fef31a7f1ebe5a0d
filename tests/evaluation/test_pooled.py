"""What many trials tell about each: proportional to the divergence, with an error that is the right one."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.evaluation.expectation import bound
from onnxcompress.evaluation.pooled import DIFFERING, LOST, pooled_bounds

SIZES = (0.1, 0.12, 0.14, 0.16)


def _drawn(samples: int, seed: int) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Margins that errors of several sizes turn over: what is lost, what differs, divergences, each of every size."""
    random = np.random.default_rng(seed)
    margins = random.exponential(1.0, samples)
    noise = (random.standard_normal(samples) + random.standard_normal((len(SIZES), samples))) / np.sqrt(2.0)
    spread = random.gamma(4.0, 0.25, samples)
    differing = [(margins < size * own).astype(float) for size, own in zip(SIZES, noise, strict=True)]
    lost = [own * np.tanh(margins / 2) for own in differing]
    return lost, differing, [(size * own) ** 2 / 4 * spread for size, own in zip(SIZES, noise, strict=True)]


def test_one_trial_stands_for_itself() -> None:
    lost, differing, apart = _drawn(200, 0)
    assert pooled_bounds(lost[-1:], apart[-1:], LOST) == [pytest.approx(bound(lost[-1]))]
    assert pooled_bounds(differing[-1:], apart[-1:], DIFFERING) == [pytest.approx(bound(differing[-1]))]


def test_far_ones_and_those_without_a_divergence_stand_for_themselves() -> None:
    lost, _, apart = _drawn(200, 0)
    nothing = np.zeros(200)
    infinite = np.where(np.arange(200) == 3, np.inf, apart[0])
    others = ([lost[-1], lost[-1], nothing], [100.0 * apart[-1], infinite, nothing])
    alone = pooled_bounds(lost[:2], apart[:2], LOST)
    together = pooled_bounds([*lost[:2], *others[0]], [*apart[:2], *others[1]], LOST)
    assert together == pytest.approx([*alone, bound(lost[-1]), bound(lost[-1]), 0.0])


@pytest.mark.parametrize(("power", "kind"), [(LOST, 0), (DIFFERING, 1)])
def test_pooling_tells_more_than_each_alone(power: float, kind: int) -> None:
    truth = [each.mean() for each in _drawn(400_000, 99)[kind]]
    own, pooled = [], []
    for seed in range(200):
        drawn = _drawn(125, seed)
        own.append([bound(each) for each in drawn[kind]])
        pooled.append(pooled_bounds(drawn[kind], drawn[2], power))
    of_own, of_pooled = (np.std(np.array(each), axis=0) for each in (own, pooled))
    assert (of_pooled < of_own).all()
    assert of_pooled[0] < 0.7 * of_own[0]
    # One standard error is on top: about five of six samples stay below.
    kept = (np.array(pooled) >= truth).mean(axis=0)
    assert ((kept > 0.6) & (kept < 0.95)).all()


@pytest.mark.parametrize("power", [LOST, DIFFERING])
def test_the_error_is_the_jackknifes(power: float) -> None:
    drawn = _drawn(300, 1)
    losses, apart = drawn[0], drawn[2]

    def estimates(kept: np.ndarray) -> np.ndarray:
        scales = [each[kept].mean() ** power for each in apart]
        return np.array(scales) * sum(each[kept].mean() for each in losses) / sum(scales)

    every = np.arange(300)
    left_out = np.array([estimates(every != one) for one in every])
    errors = np.sqrt(299 / 300 * ((left_out - left_out.mean(axis=0)) ** 2).sum(axis=0))
    assert pooled_bounds(losses, apart, power) == pytest.approx(list(estimates(every >= 0) + errors), rel=0.02)
