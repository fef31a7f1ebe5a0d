"""Latency as a limit: choices within a sum of measured layer times, corrected by measuring the whole model.

Layer times add up to the latency within a few per cent; a target asks for more. So the model is built, measured whole
against the model that was given, and the limit on the sum is moved until the measured share comes out right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxcompress.analysis.split import WHOLE
from onnxcompress.errors import BudgetInfeasibleError, RecipeError
from onnxcompress.graph import Model
from onnxcompress.linalg.spectrum import Matrix
from onnxcompress.passes.base import ModelTime, PassContext
from onnxcompress.passes.recovery.allocation_choices import Choice
from onnxcompress.passes.recovery.allocation_solve import allocate
from onnxcompress.passes.tucker.trial import SplitTrials

_AIM = 0.98
"""What is aimed at, of the limit: another measurement of the same model is a little higher or lower."""
_GOOD = (0.955, 0.995)
_MOST_TRIES = 5
_STEP, _MOST_STEPS = 0.99, 8


@dataclass(frozen=True)
class LatencyProblem:
    """One layer-wise choice for all layers, as functions of its list of numbers.

    Attributes:
        share: the target, of the latency of the model that was given.
        pick: returns the least damage within a sum of layer times in ms; raises BudgetInfeasibleError.
        total: the sum of layer times of a choice, ms.
        measure: the latency of a choice's whole model.
        whole, fastest: every layer left alone; every layer at its fastest.
        is_predicted: the latency of a whole model is what a time table says, not measured.
        untimed: what to say of layers that stay whole because their times are not known, if any.
    """

    share: float
    pick: Callable[[float], list[int]]
    total: Callable[[Sequence[int]], float]
    measure: Callable[[Sequence[int]], ModelTime]
    whole: list[int]
    fastest: list[int]
    is_predicted: bool = False
    untimed: str = ""


@dataclass(frozen=True)
class _Tried:
    """A choice that was measured: its sum of layer times in ms, and its share of the given model's latency."""

    total: float
    share: float
    chosen: list[int]


def allocate_within_latency(
    model: Model,
    context: PassContext,
    share: float,
    choices: Mapping[str, Sequence[Choice]],
    damages: Sequence[Matrix],
    costs: Mapping[str, Sequence[Matrix]],
    limits: Mapping[str, float],
    sharers: Mapping[str, Sequence[str]] | None = None,
) -> tuple[list[int], dict[str, dict[str, list[float]]]]:
    """Return the number of the chosen alternative of every layer, and {layer: {"ms": [whole, then]}}.

    Args:
        share: of the given model's latency.
        choices: {layer: alternatives, the first leaves it alone}.
        damages, costs, limits: as `allocate` takes them; the time comes on top.
        sharers: {layer: it and those that share its weight}, which become the same; None: every layer is alone.

    Raises:
        RecipeError: how long layers take is not known.
        BudgetInfeasibleError: no choice keeps all limits.
    """
    measure_model, known = context.measure_model, context.known_time
    if context.split_times is None or (measure_model is None and known is None):
        raise RecipeError("--target latency needs latency to be measured: leave --no-latency out")
    sharers = sharers or {layer: (layer,) for layer in choices}
    splits = {layer: [choice.split for choice in own] for first, own in choices.items() for layer in sharers[first]}
    times = context.split_times(model, splits)
    # A layer of unknown time stays whole, at no cost.
    layer_times = {
        layer: np.array([times[layer].get(ranks, np.inf) for ranks in own])
        if layer in times
        else np.array([0.0 if ranks == WHOLE else np.inf for ranks in own])
        for layer, own in splits.items()
    }
    own_times = [np.sum([layer_times[layer] for layer in sharers[first]], axis=0) for first in choices]
    beyond = 1e3 * sum(float(own[0]) for own in own_times) + 1.0
    own_times = [np.minimum(own, beyond) for own in own_times]
    whole = [0] * len(choices)
    trials = SplitTrials(model)

    def total(picked: Sequence[int]) -> float:
        return sum(float(own[at]) for own, at in zip(own_times, picked, strict=True))

    def measure(picked: Sequence[int]) -> ModelTime:
        if measure_model is None:
            assert known is not None
            return ModelTime(known.share + (total(picked) - total(whole)) / known.given_ms, known.given_ms)
        return measure_model(trials.build({layer: splits[layer][at] for layer, at in chosen_of(picked)}))

    def chosen_of(picked: Sequence[int]) -> Iterator[tuple[str, int]]:
        return ((layer, at) for first, at in zip(choices, picked, strict=True) for layer in sharers[first])

    def pick(limit: float) -> list[int]:
        return allocate(damages, {**costs, "latency": own_times}, {**limits, "latency": min(limit, beyond)})

    picked, reached = choose_within_latency(
        LatencyProblem(
            share=share,
            pick=pick,
            total=total,
            measure=measure,
            whole=whole,
            fastest=[int(np.argmin(own)) for own in own_times],
            is_predicted=measure_model is None,
            untimed=_untimed(layer_times),
        )
    )
    context.aimed(reached)
    return picked, {
        layer: {"ms": [float(layer_times[layer][0]), float(layer_times[layer][at])]}
        for layer, at in chosen_of(picked)
        if layer in times
    }


def choose_within_latency(problem: LatencyProblem) -> tuple[list[int], float]:
    """Return the choice of least damage whose measured latency keeps the target and makes use of it, and its share.

    Raises:
        BudgetInfeasibleError: every layer at its fastest is too slow; the message says how fast that is.
    """
    aim = _AIM * problem.share
    start = problem.measure(problem.whole)
    if start.share <= problem.share:
        return problem.pick(float("inf")), start.share
    slope = 1.0 / start.given_ms
    tried = [_Tried(problem.total(problem.whole), start.share, problem.whole)]
    for _ in range(_MOST_TRIES):
        nearest = min(tried, key=lambda each: abs(each.share - aim))
        chosen = _new_choice(problem, nearest.total + (aim - nearest.share) / slope, tried)
        if chosen is None:
            break
        tried.append(_Tried(problem.total(chosen), problem.measure(chosen).share, chosen))
        last, first = tried[-1], tried[0]
        if _is_good(problem, last):
            # Once more, in sessions of their own: one measurement may be off by what is allowed.
            again = problem.measure(chosen).share
            last = tried[-1] = replace(last, share=math.sqrt(last.share * again))
            if _is_good(problem, last):
                break
        # A measurement that was disturbed must not turn the slope round.
        if last.total != first.total:
            slope = max((last.share - first.share) / (last.total - first.total), 0.5 / start.given_ms)
    for part in (0.1, 0.3, 1.0):
        if any(each.share <= problem.share for each in tried):
            break
        lowest, least = min(each.total for each in tried), problem.total(problem.fastest)
        chosen = problem.fastest if part == 1.0 else _new_choice(problem, lowest - part * (lowest - least), tried)
        if chosen is not None:
            tried.append(_Tried(problem.total(chosen), problem.measure(chosen).share, chosen))
    kept = [each for each in tried if each.share <= problem.share]
    if not kept:
        least = min(each.share for each in tried)
        how, prune = (
            ("as the time table predicts", "") if problem.is_predicted else ("measured", " prune too (--prune),")
        )
        raise BudgetInfeasibleError(
            f"latency={problem.share:g} cannot be reached: with every layer at its fastest choice it is {least:.3f} of "
            f"the given model's, {how}{problem.untimed}; allow more,{prune} or leave fewer layers out",
            {"latency": least},
        )
    best = max(kept, key=lambda each: each.share)
    return best.chosen, best.share


def _untimed(times: Mapping[str, Matrix]) -> str:
    """Return what to say of layers of which no split has a time; nothing where all have one.

    Args:
        times: {layer: ms of its alternatives, infinite where not known; the first is the layer whole}.
    """
    of = [own for own in times.values() if len(own) > 1]
    unknown = sum(not np.isfinite(own[1:]).any() for own in of)
    if not unknown:
        return ""
    return (
        f", and {unknown} of {len(of)} layers stay whole because the times of their splits are not known (make the "
        "--time-table from this very model, with the same --input-shape and --batch)"
    )


def _is_good(problem: LatencyProblem, tried: _Tried) -> bool:
    return _GOOD[0] * problem.share <= tried.share <= _GOOD[1] * problem.share


def _new_choice(problem: LatencyProblem, limit: float, tried: Sequence[_Tried]) -> list[int] | None:
    """Return the choice within a limit, or a little below it where that one was tried before; None where all were."""
    for _ in range(_MOST_STEPS):
        chosen = _picked(problem, limit)
        if all(each.chosen != chosen for each in tried):
            return chosen
        limit = min(limit, problem.total(chosen)) * _STEP
    return None


def _picked(problem: LatencyProblem, limit: float) -> list[int]:
    try:
        return problem.pick(limit)
    except BudgetInfeasibleError:
        if limit >= problem.total(problem.fastest):
            raise  # another limit than that of latency
        return problem.fastest
