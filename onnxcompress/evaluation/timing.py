"""Timing two callables against each other: short alternating rounds, and the statistics of what they took.

What else the machine does changes within seconds. The two are therefore run in turns of some tens of milliseconds, the
order swapped each round, and compared round by round: a disturbance of one round hits both, and the median over rounds
drops those that it hit unevenly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
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
        original, compressed: (rounds, runs of a turn).
        warmup: untimed runs of each before.
    """

    original: npt.NDArray[np.float64]
    compressed: npt.NDArray[np.float64]
    warmup: int

    @property
    def log_ratios(self) -> npt.NDArray[np.float64]:
        """log(original / compressed) of the medians of each round, (rounds,)."""
        ratios: npt.NDArray[np.float64] = np.log(np.median(self.original, axis=1) / np.median(self.compressed, axis=1))
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
    original: Run,
    compressed: Run,
    *,
    warmup: int | None = None,
    repeat: int | None = None,
    clock: Clock = time.perf_counter_ns,
    seed: int = 0,
) -> Rounds:
    """Time both in alternating turns.

    Args:
        warmup: untimed runs of each; None warms up until the time of a run is stable, for at most 3 seconds.
        repeat: timed runs of each, rounded up to full rounds; None measures until the interval of the ratio is narrower
            than 1.5 % to each side, or 20 seconds have gone by.
        clock: nanoseconds; the tests have their own.
    """
    warmed = [_warm_up(run, warmup, clock) for run in (original, compressed)]
    typical = max(ms for _, ms in warmed)
    runs = max(1, min(_MOST_RUNS_PER_TURN, round(_TURN_MS / typical))) if typical > 0 else _MOST_RUNS_PER_TURN
    if repeat is not None:
        # Rather many rounds than long turns: rounds are what the interval is made of.
        runs = max(1, min(runs, repeat // _FEWEST_ROUNDS))
    rounds: list[tuple[list[float], list[float]]] = []
    deadline = clock() + int(_SECONDS * 1e9)
    look = _FEWEST_ROUNDS
    while True:
        swapped = len(rounds) % 2 == 1
        turns = [_turn(run, runs, clock) for run in ((compressed, original) if swapped else (original, compressed))]
        rounds.append((turns[1], turns[0]) if swapped else (turns[0], turns[1]))
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
                done = _is_narrow(result, seed)
        if done:
            return result or _rounds(rounds, warmed[0][0])


def summarise(rounds: Rounds, seed: int = 0) -> Comparison:
    """Return the percentiles of all runs and the ratio with its interval."""
    ratios = rounds.log_ratios
    return Comparison(
        runs=rounds.original.size,
        original_ms=_milliseconds(rounds.original),
        compressed_ms=_milliseconds(rounds.compressed),
        speedup=float(np.exp(np.median(ratios))),
        interval=ratio_of_medians(ratios, seed),
    )


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


def _rounds(rounds: list[tuple[list[float], list[float]]], warmup: int) -> Rounds:
    # A clock without resolution for a very small model gives zeros, which have no ratio.
    times = np.maximum(np.asarray(rounds, np.float64), 1e-6)
    return Rounds(times[:, 0], times[:, 1], warmup)


def _is_narrow(rounds: Rounds, seed: int) -> bool:
    interval = ratio_of_medians(rounds.log_ratios, seed)
    return interval is not None and math.log(interval[1] / interval[0]) <= 2 * _HALF_WIDTH


def _milliseconds(times: npt.NDArray[np.float64]) -> Milliseconds:
    p50, p95 = np.percentile(times, [50, 95])
    return Milliseconds(float(p50), float(p95))
