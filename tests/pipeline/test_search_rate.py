"""Which fraction of filters is tried next under one target."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from onnxcompress.pipeline.search_rate import RATE_STEP, next_rate


def tried(apart: Callable[[float], float], end: float) -> dict[float, float]:
    """Return all that is tried, and what it gave, in order."""
    seen: dict[float, float] = {}
    while (rate := next_rate(seen, end)) is not None:
        assert all(abs(rate - other) >= RATE_STEP - 0.006 for other in seen)
        assert 0.0 <= rate <= round(end, 2)
        seen[rate] = apart(rate)
        assert len(seen) < 12
    return seen


def valley(lowest: float, left: float, right: float, reached: float = 0.0) -> Callable[[float], float]:
    """Return distances that grow faster and faster on both sides of their lowest, infinite before `reached`."""

    def apart(rate: float) -> float:
        away = rate - lowest
        return math.inf if rate < reached else 0.01 * math.exp((left if away < 0 else right) * away**2)

    return apart


def best_of(seen: dict[float, float]) -> float:
    """Return the fraction whose answers are closest."""
    return min(seen, key=seen.__getitem__)


@pytest.mark.parametrize("end", [0.45, 0.6, 0.8])
@pytest.mark.parametrize("lowest", [0.0, 0.04, 0.1, 0.17, 0.25, 0.33, 0.4])
def test_the_lowest_point_of_a_parabola_is_found_in_few_trials(lowest: float, end: float) -> None:
    seen = tried(valley(lowest, 20.0, 20.0), end)
    assert best_of(seen) == pytest.approx(lowest, abs=RATE_STEP + 0.01)
    assert len(seen) <= 6


def test_lopsided_valleys_are_searched_to_the_end() -> None:
    rng = np.random.default_rng(4)
    counts = []
    for _ in range(300):
        end = rng.uniform(0.3, 0.85)
        lowest, reached = rng.uniform(0.0, end), rng.uniform(-0.5, 0.5)
        apart = valley(lowest, *rng.uniform(8.0, 40.0, 2), min(reached, lowest))
        seen = tried(apart, end)
        counts.append(len(seen))
        # What is lost for the trials that were spared is little.
        assert min(seen.values()) <= 1.15 * apart(lowest)
    assert np.mean(counts) < 5.5
    assert max(counts) <= 8


def test_none_is_tried_first_and_kept_where_filters_do_no_good() -> None:
    seen = tried(lambda rate: 0.03 * math.exp(5.0 * rate), 0.45)
    assert next(iter(seen)) == 0.0
    assert best_of(seen) == 0.0
    assert len(seen) == 3


def test_a_flat_valley_takes_no_more_than_three() -> None:
    assert len(tried(lambda rate: 0.01 * (1.0 + 0.02 * rate), 0.5)) <= 3


def test_a_deep_and_narrow_valley_beside_the_lowest_point_of_the_parabola_is_found() -> None:
    # As measured under a target of parameters: the parabola through 0.3, 0.49 and 0.6 is lowest at 0.475.
    known = {0.3: 0.2463, 0.4: 0.0098, 0.49: 0.0215, 0.6: 0.0754}

    def apart(rate: float) -> float:
        return math.inf if rate < 0.3 else math.exp(np.interp(rate, list(known), np.log(list(known.values()))))

    seen = tried(apart, 0.79)
    assert best_of(seen) == pytest.approx(0.4, abs=RATE_STEP)
    assert min(seen.values()) < 0.012


def test_where_splits_alone_reach_nothing_more_filters_are_tried() -> None:
    seen = tried(valley(0.5, 60.0, 60.0, reached=0.4), 0.8)
    assert list(seen)[:2] == [0.0, 0.49]
    assert best_of(seen) == 0.49
    unreached = tried(lambda rate: math.inf, 0.8)
    assert list(unreached)[-1] == 0.8
    assert max(tried(lambda rate: math.inf, 0.999)) == 0.95
    assert tried(lambda rate: math.inf, 0.05) == {0.0: math.inf, 0.05: math.inf}


def test_nothing_is_tried_beyond_answers_that_are_the_originals() -> None:
    assert tried(lambda rate: rate, 0.5) == {0.0: 0.0}


def test_a_target_that_takes_nothing_away_leaves_all_filters() -> None:
    assert tried(lambda rate: 0.1 + rate, 0.0) == {0.0: 0.1}
