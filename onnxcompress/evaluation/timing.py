"""Timing callables against each other: short alternating rounds, and the statistics of what they took.

What else the machine does changes within seconds. The models are therefore run in turns of some tens of milliseconds,
in another order each round, and compared round by round: a disturbance of one round hits all of them, and the median
over rounds drops those that it hit unevenly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxcompress.evaluation.intervals import Interval, ratio_of_medians

Run = Callable[[], object]
Clock = Callable[[], int]
"""Nanoseconds from an arbitrary start."""

_TURN_MS = 30.0  # a turn of one model: short against a disturbance, long against the change from one to the other
_MOST_RUNS_PER_TURN = 20
_FEWEST_ROUNDS, _MOST_ROUNDS = 20, 1000
_HALF_WIDTH = 0.015  # relative half width of the interval at which measuring stops
_SECONDS = 20.0  # measuring stops after this time in any case, the fewest rounds done
_WARMUP_SECONDS = 3.0
_STABLE = 0.05


@dataclass(frozen=True)
class Rounds:
    """Milliseconds of each run.

    Attributes:
        times: (models, rounds, runs of a turn).
        warmup: untimed runs of the first model before.
    """

    times: npt.NDArray[np.float64]
    warmup: int

    def log_ratios(self, first: int = 0, second: int = 1) -> npt.NDArray[np.float64]:
        """log(first / second) of the two models' medians of each round, (rounds,)."""
        medians = np.median(self.times[[first, second]], axis=2)
        ratios: npt.NDArray[np.float64] = np.log(medians[0] / medians[1])
        return ratios


@dataclass(frozen=True)
class Milliseconds:
    """Percentiles of the time of one run."""

    p50: float
    p95: float


@dataclass(frozen=True)
class Comparison:
    """`speedup` is the median over rounds of original / compressed, which is steadier than the ratio of the two p50;
    `interval` is its 95 % confidence interval, None where the rounds are too few for one."""

    runs: int
    original_ms: Milliseconds
    compressed_ms: Milliseconds
    speedup: float
    interval: Interval | None


def alternate(
    models: Sequence[Run],
    *,
    warmup: int | None = None,
    repeat: int | None = None,
    clock: Clock = time.perf_counter_ns,
    seed: int = 0,
) -> Rounds:
    """Time two or more models in alternating turns.

    Args:
        warmup: untimed runs of each; None warms up until the time of a run is stable, for at most 3 seconds.
        repeat: timed runs of each, rounded up to full rounds; None measures until the interval of the ratio of the
            first to each other model is narrower than 1.5 % to each side, or 20 seconds have gone by.
        clock: nanoseconds; the tests have their own.
    """
    warmed = [_warm_up(run, warmup, clock) for run in models]
    typical = max(ms for _, ms in warmed)
    runs = max(1, min(_MOST_RUNS_PER_TURN, round(_TURN_MS / typical))) if typical > 0 else _MOST_RUNS_PER_TURN
    if repeat is not None:
        # Rather many rounds than long turns: rounds are what the interval is made of.
        runs = max(1, min(runs, repeat // _FEWEST_ROUNDS))
    rounds: list[list[list[float]]] = []
    deadline = clock() + int(_SECONDS * 1e9)
    look = _FEWEST_ROUNDS
    while True:
        turns: dict[int, list[float]] = {}
        for number in _order(len(models), len(rounds)):
            turns[number] = _turn(models[number], runs, clock)
        rounds.append([turns[number] for number in range(len(models))])
        result = None
        if repeat is not None:
            done = len(rounds) * runs >= repeat
        else:
            late = len(rounds) >= _FEWEST_ROUNDS and clock() >= deadline
            done = late or len(rounds) >= _MOST_ROUNDS
            if not done and len(rounds) >= look:
                # Ever rarer looks: stopping at a narrow interval that came by chance would make it too narrow.
                look = math.ceil(look * 1.4)
                result = _rounds(rounds, warmed[0][0])
                done = all(_is_narrow(result, other, seed) for other in range(1, len(models)))
        if done:
            return result or _rounds(rounds, warmed[0][0])


def summarise(rounds: Rounds, seed: int = 0, *, first: int = 0, second: int = 1) -> Comparison:
    """Return the percentiles of all runs of two of the models, and their ratio with its interval."""
    ratios = rounds.log_ratios(first, second)
    return Comparison(
        runs=rounds.times[first].size,
        original_ms=_milliseconds(rounds.times[first]),
        compressed_ms=_milliseconds(rounds.times[second]),
        speedup=float(np.exp(np.median(ratios))),
        interval=ratio_of_medians(ratios, seed),
    )


def _order(models: int, number: int) -> list[int]:
    """Return who runs when in a round: forwards, then backwards, then both again from the next model on.

    Over 2 x models rounds each model has run at each place, and as often before each other one as behind it.
    """
    start = number // 2 % models
    order = [*range(start, models), *range(start)]
    return order[::-1] if number % 2 else order


def _warm_up(run: Run, count: int | None, clock: Clock) -> tuple[int, float]:
    """Run untimed; return how often, and the milliseconds of a run at the end.

    Stable is when the faster half of the last runs is within 5 % of the faster half of those before: the first runs of
    a session allocate, and on CUDA search for kernels.
    """
    times: list[float] = []
    start = clock()
    limit = count if count is not None else 200
    while len(times) < max(limit, 1):
        begun = clock()
        run()
        times.append((clock() - begun) / 1e6)
        if count is None and len(times) >= 6:
            half = len(times) // 2
            before, last = float(np.median(times[half // 2 : half])), float(np.median(times[half:]))
            if last >= before * (1 - _STABLE) or clock() - start > _WARMUP_SECONDS * 1e9:
                break
    return len(times), float(np.median(times[len(times) // 2 :]))


def _turn(run: Run, runs: int, clock: Clock) -> list[float]:
    if runs > 1:
        run()  # brings the model's weights back into the caches
    times = []
    for _ in range(runs):
        begun = clock()
        run()
        times.append((clock() - begun) / 1e6)
    return times


def _rounds(rounds: Sequence[Sequence[Sequence[float]]], warmup: int) -> Rounds:
    # A clock without resolution for a very small model gives zeros, which have no ratio.
    times = np.maximum(np.asarray(rounds, np.float64), 1e-6)
    return Rounds(times.transpose(1, 0, 2), warmup)


def _is_narrow(rounds: Rounds, other: int, seed: int) -> bool:
    interval = ratio_of_medians(rounds.log_ratios(0, other), seed)
    return interval is not None and math.log(interval[1] / interval[0]) <= 2 * _HALF_WIDTH


def _milliseconds(times: npt.NDArray[np.float64]) -> Milliseconds:
    p50, p95 = np.percentile(times, [50, 95])
    return Milliseconds(float(p50), float(p95))
