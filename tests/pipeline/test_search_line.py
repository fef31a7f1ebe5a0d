"""Where a search tries next."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from onnxcompress.pipeline.search_line import next_position, steepness


def _tried(
    drop: Callable[[float], float], limit: float, known: dict[float, float] | None = None, slope: float | None = None
) -> dict[float, float]:
    drops = dict(known or {})
    while (position := next_position(drops, limit, 0.1, 0.02, slope)) is not None:
        assert position not in drops
        assert 0.1 < position < 1.0
        drops[position] = drop(position)
    return drops


def _found(drops: dict[float, float], limit: float) -> float | None:
    return min((at for at, drop in drops.items() if drop <= limit), default=None)


@pytest.mark.parametrize("edge", [0.13, 0.4, 0.61, 0.95])
@pytest.mark.parametrize("rest", [0.0, math.inf])
def test_an_edge_that_nothing_foretells_is_found_to_within_a_step(edge: float, rest: float) -> None:
    drops = _tried(lambda at: 0.0 if at >= edge else rest or 5.0, 1.0)
    found = _found(drops, 1.0)
    assert found is not None
    assert edge <= found <= edge + 0.02
    assert len(drops) <= 6


@pytest.mark.parametrize("edge", [0.2, 0.4, 0.61, 0.8])
def test_a_drop_that_grows_exponentially_takes_fewer_trials(edge: float) -> None:
    def drop(at: float) -> float:
        return math.exp(-10.0 * (at - edge))

    drops = _tried(drop, 1.0)
    found = _found(drops, 1.0)
    assert found is not None
    assert edge <= found <= edge + 0.0201
    assert len(drops) <= 4
    slope = steepness(drops)
    assert slope == pytest.approx(-10.0)
    # Another line, a little better than this one, of which the upper end alone is known.
    again = _tried(lambda at: 0.6 * drop(at), 1.0, {0.85: 0.6 * drop(0.85)}, slope)
    assert len(again) <= 4
    assert (_found(again, 1.0) or 0.0) <= edge + 0.02


@pytest.mark.parametrize("rate", [4.0, 8.0, 20.0, 40.0])
@pytest.mark.parametrize("edge", [0.13, 0.3, 0.6, 0.95])
def test_a_slope_is_learnt_from_the_trials(edge: float, rate: float) -> None:
    noise = np.random.default_rng(0)

    def drop(at: float) -> float:
        return math.exp(-rate * (at - edge) + noise.normal(0.0, 0.1))

    drops = _tried(drop, 1.0)
    found = _found(drops, 1.0)
    assert found is not None
    assert abs(found - edge) <= 0.05
    assert len(drops) <= 5


def test_nothing_that_keeps_the_limit_leaves_nothing() -> None:
    assert _found(_tried(lambda at: 7.0, 1.0), 1.0) is None
    assert _found(_tried(lambda at: math.inf, 1.0), 1.0) is None
    assert _found(_tried(lambda at: 0.5, 0.0), 0.0) is None
    assert (_found(_tried(lambda at: 0.0, 0.0), 0.0) or 1.0) <= 0.12


def test_a_judgement_that_changed_opens_the_line_again() -> None:
    closed = {0.5: 2.0, 0.52: 0.9}
    assert next_position(closed, 1.0, 0.1, 0.02) is None
    opened = next_position(closed | {0.52: 1.1}, 1.0, 0.1, 0.02)
    assert opened is not None
    assert opened > 0.52


def test_a_slope_is_told_by_two_and_only_downwards() -> None:
    assert steepness({0.5: 1.0}) is None
    assert steepness({0.5: 1.0, 0.6: math.inf, 0.7: 0.0}) is None
    assert steepness({0.5: 1.0, 0.6: 2.0}) is None
    assert steepness({0.5: math.e, 0.6: 1.0}) == pytest.approx(-10.0)
