"""Timing callables against each other: short alternating rounds, and the statistics of what they took.

What else the machine does changes within seconds. The models are therefore run in turns of some tens of milliseconds,
in another order each round, and compared round by round: a disturbance of one round hits all of them, and the median
over rounds drops those that it hit unevenly.

On a machine whose CPUs are all busy that is not enough: a thread that loses its CPU waits for milliseconds, in nearly
every run of a large model. The system counts such waiting, and runs with some of it are left out as long as enough
others remain.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from onnxcompress.evaluation.intervals import Interval, ratio_of_medians

Run = Callable[[], object]
Clock = Callable[[], int]
"""Nanoseconds from an arbitrary start."""

_TURN_MS = 30.0  # a turn of one model: short against a disturbance, long against the change from one to the other
_MOST_RUNS_PER_TURN = 20
_FEWEST_ROUNDS, _MOST_ROUNDS = 20, 1000
_NARROW, _SECONDS = 0.015, 20.0  # measuring stops at an interval of this relative half width; after this time,
_WIDE_ENOUGH, _MOST_SECONDS = 0.025, 60.0  # at one of that; and then in any case, the fewest rounds done
_USELESS = 0.1
_BETWEEN_LOADS = 0.008
"""Half of the relative 95 % interval by which the same model, loaded twice into one process, differs from itself.

It comes from where its memory lies (Mytkowicz et al., ASPLOS 2009), stays as long as the session lives, and is thus in
no statistics of its runs. Seen: standard deviation 0.4 % over 32 pairs of sessions, 4 and 50 ms, 1 and 2 threads.
"""
_WAITED_MS, _WAITED_SHARE = 0.1, 0.01  # every wake-up waits some microseconds
_WARMUP_SECONDS = 3.0
_STABLE = 0.05


@dataclass(frozen=True)
class Rounds:
    """What was timed.

    Attributes:
        times: milliseconds, (models, rounds, runs of a turn).
        waits: milliseconds for which threads that were ready to run had no CPU, same shape.
        warmup: untimed runs of the first model before.
    """

    times: npt.NDArray[np.float64]
    waits: npt.NDArray[np.float64]
    warmup: int

    @cached_property
    def interrupted(self) -> npt.NDArray[np.bool_]:
        """Runs that waited for a CPU, same shape as `times`."""
        waited: npt.NDArray[np.bool_] = self.waits > _WAITED_MS + _WAITED_SHARE * self.times
        return waited

    @cached_property
    def used(self) -> npt.NDArray[np.bool_]:
        """Runs that figures are made of: all, or the uninterrupted ones where they give enough pairs."""
        whole = ~self.interrupted
        fewest = min(_FEWEST_ROUNDS, self.times.shape[1])
        others = range(1, len(self.times))
        enough = all(len(_paired(self.times[[0, n]], whole[[0, n]])) >= fewest for n in others)
        return whole if enough else np.ones_like(whole)

    def log_ratios(self, first: int = 0, second: int = 1) -> npt.NDArray[np.float64]:
        """log(first / second) of the two models' medians of each round, (pairs,).

        A round in which either has no run that is used is joined with the following ones until both have some.
        """
        return _paired(self.times[[first, second]], self.used[[first, second]])


@dataclass(frozen=True)
class Milliseconds:
    """Percentiles of the time of one run; runs that were left out do not count."""

    p50: float
    p95: float


@dataclass(frozen=True)
class Comparison:
    """Two models.

    Attributes:
        runs: timed runs of each.
        speedup: the median over rounds of original / compressed, which is steadier than the ratio of the two p50.
        interval: its 95 % confidence interval, None where the rounds are too few for one.
        interrupted: the share of each model's runs that waited for a CPU; `left_out`: whether the figures are without.
    """

    runs: int
    original_ms: Milliseconds
    compressed_ms: Milliseconds
    speedup: float
    interval: Interval | None
    interrupted: tuple[float, float]
    left_out: bool


def is_useless(interval: Interval | None) -> bool:
    """Whether an interval is missing or so wide (more than 10 % to a side) that nothing can be concluded from it."""
    return interval is None or math.log(interval[1] / interval[0]) > 2 * math.log1p(_USELESS)


def alternate(
    models: Sequence[Run],
    *,
    warmup: int | None = None,
    repeat: int | None = None,
    clock: Clock = time.perf_counter_ns,
    waited: Clock = lambda: 0,
    seed: int = 0,
) -> Rounds:
    """Time two or more models in alternating turns.

    Args:
        warmup: untimed runs of each; None warms up until the time of a run is stable, for at most 3 seconds.
        repeat: timed runs of each, rounded up to full rounds; None measures until the interval of the ratio of the
            first to each other model is narrower than 1.5 % to each side; after 20 seconds 2.5 % are enough, and after
            60 it ends in any case.
        clock: nanoseconds; the tests have their own.
        waited: nanoseconds for which the threads that run the models have waited for a CPU; first read after warm-up.
    """
    warmed = [_warm_up(run, warmup, clock) for run in models]
    typical = max(ms for _, ms in warmed)
    runs = max(1, min(_MOST_RUNS_PER_TURN, round(_TURN_MS / typical))) if typical > 0 else _MOST_RUNS_PER_TURN
    if repeat is not None:
        # Rather many rounds than long turns: rounds are what the interval is made of.
        runs = max(1, min(runs, repeat // _FEWEST_ROUNDS))
    rounds: list[list[_Turn]] = []
    begun = clock()
    look = _FEWEST_ROUNDS
    while True:
        turns: dict[int, _Turn] = {}
        for number in _order(len(models), len(rounds)):
            turns[number] = _turn(models[number], runs, clock, waited)
        rounds.append([turns[number] for number in range(len(models))])
        result = None
        if repeat is not None:
            done = len(rounds) * runs >= repeat
        else:
            seconds = (clock() - begun) / 1e9
            late = len(rounds) >= _FEWEST_ROUNDS and seconds >= _MOST_SECONDS
            done = late or len(rounds) >= _MOST_ROUNDS
            if not done and len(rounds) >= look:
                # Ever rarer looks: stopping at a narrow interval that came by chance would make it too narrow.
                look = math.ceil(look * 1.4)
                result = _rounds(rounds, warmed[0][0])
                wanted = _NARROW if seconds < _SECONDS else _WIDE_ENOUGH
                done = all(_half_width(result, other, seed) <= wanted for other in range(1, len(models)))
        if done:
            return result or _rounds(rounds, warmed[0][0])


def summarise(rounds: Rounds, seed: int = 0, *, first: int = 0, second: int = 1) -> Comparison:
    """Return the percentiles of all runs of two of the models, and their ratio with its interval."""
    ratios = rounds.log_ratios(first, second)
    middle = float(np.median(ratios))
    statistical = ratio_of_medians(ratios, seed)
    shares = rounds.interrupted.mean(axis=(1, 2))
    return Comparison(
        runs=rounds.times[first].size,
        original_ms=_milliseconds(rounds.times[first][rounds.used[first]]),
        compressed_ms=_milliseconds(rounds.times[second][rounds.used[second]]),
        speedup=math.exp(middle),
        interval=None if statistical is None else _with_loading(statistical, middle),
        interrupted=(float(shares[first]), float(shares[second])),
        left_out=not rounds.used.all(),
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


_Turn = list[tuple[int, int]]
"""Nanoseconds that each run took, and for which it waited."""


def _turn(run: Run, runs: int, clock: Clock, waited: Clock) -> _Turn:
    if runs > 1:
        run()  # brings the model's weights back into the caches
    turn = []
    before = waited()
    for _ in range(runs):
        begun = clock()
        run()
        took = clock() - begun
        after = waited()
        turn.append((took, after - before))
        before = after
    return turn


def _rounds(rounds: Sequence[Sequence[_Turn]], warmup: int) -> Rounds:
    figures = np.asarray(rounds, np.float64).transpose(3, 1, 0, 2) / 1e6
    # A clock without resolution for a very small model gives zeros, which have no ratio.
    return Rounds(np.maximum(figures[0], 1e-6), figures[1], warmup)


def _paired(times: npt.NDArray[np.float64], used: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Return the log-ratios of the medians of two models, each pair of as few rounds as both have a used run in."""
    if used.all():
        medians = np.log(np.median(times, axis=2))
        whole: npt.NDArray[np.float64] = medians[0] - medians[1]
        return whole
    ratios: list[float] = []
    waiting: tuple[list[float], list[float]] = ([], [])
    for number in range(times.shape[1]):
        for model, runs in enumerate(waiting):
            runs.extend(times[model, number][used[model, number]])
        if all(waiting):
            ratios.append(math.log(np.median(waiting[0]) / np.median(waiting[1])))
            waiting = ([], [])
    return np.asarray(ratios, np.float64)


def _half_width(rounds: Rounds, other: int, seed: int) -> float:
    interval = ratio_of_medians(rounds.log_ratios(0, other), seed)
    return math.inf if interval is None else math.log(interval[1] / interval[0]) / 2


def _with_loading(interval: Interval, middle: float) -> Interval:
    """Add what loading the model once more would change; the two are independent, so squares add up."""
    low, high = (abs(math.log(end) - middle) for end in interval)
    return math.exp(middle - math.hypot(low, _BETWEEN_LOADS)), math.exp(middle + math.hypot(high, _BETWEEN_LOADS))


def _milliseconds(times: npt.NDArray[np.float64]) -> Milliseconds:
    p50, p95 = np.percentile(times, [50, 95])
    return Milliseconds(float(p50), float(p95))
