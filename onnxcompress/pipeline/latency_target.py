"""The last word on a target of latency: the finished model is measured, and ranks chosen once more where it is off.

The allocation measures while it chooses. Between then and the end lie minutes of recovery, in which a machine may have
come into another state (clock, neighbours on its caches) that does not slow both models alike, and a merge of linear
neighbours. So the finished model is measured against the original at the end; where it misses the target, or leaves a
part of it unused, the passes from the allocation on run again and measure in the state of then. Only what two rounds
agree upon is corrected for: one round's difference may be the change itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from onnxcompress.errors import BudgetInfeasibleError
from onnxcompress.graph import Model
from onnxcompress.passes.base import MeasureModel, PassContext, Plan
from onnxcompress.passes.recovery.allocation import Allocation
from onnxcompress.pipeline.stages import Stage, Work

_GOOD = (0.955, 0.998)
"""Of the target; below, more could stay whole."""
_MOST_ROUNDS = 3


@dataclass(frozen=True)
class Ran:
    """What the passes of a run came to.

    Attributes:
        stages: what each did.
        model: the last one's.
        cleaned: the clean-up's, where it is to be timed apart.
    """

    stages: list[Stage]
    model: Model
    cleaned: Model | None


@dataclass(frozen=True)
class _Round:
    ran: Ran
    share: float
    difference: float
    """log(share at the end / share the allocation measured)."""


def meet_latency(
    run: Callable[[Work, PassContext], Ran], work: Work, context: PassContext, target: float, measure: MeasureModel
) -> Ran:
    """Run the passes until the finished model keeps the target of latency and makes use of it, at most three times.

    Args:
        run: runs the passes of a work.
        work: with the allocation among them.
        target: the share of the given model's latency.
        measure: of the finished model.

    Returns:
        The run that keeps the target and lies nearest to it; the nearest where none keeps it.
    """
    context = replace(
        context,
        memory={} if context.memory is None else context.memory,
        measured={} if context.measured is None else context.measured,
    )
    factor = 1.0
    rounds: list[_Round] = []
    while True:
        noted: list[float] = []
        try:
            ran = run(work, replace(context, aimed=noted.append, latency_factor=factor))
        except BudgetInfeasibleError:
            if not rounds:
                raise
            break  # of a target that was moved
        share = measure(ran.model).share
        rounds.append(_Round(ran, share, math.log(share / noted[-1]) if noted else 0.0))
        if len(rounds) == _MOST_ROUNDS or _is_good(share / target, ran.stages):
            break
        context.tell(f"latency is {share:.3f} of the original's, measured at the end: once more", len(rounds), None)
        factor = _corrected(rounds)
        work = with_plans(work, [stage.plan for stage in ran.stages])
    kept = [each for each in rounds if each.share <= target]
    return max(kept, key=lambda each: each.share).ran if kept else min(rounds, key=lambda each: each.share).ran


def can_run_again(work: Work) -> bool:
    """Whether there is an allocation to repeat, and no training, which would take the time of a whole run."""
    return any(each.name == Allocation.name and plan is None for each, plan in work) and not any(
        each.trains for each, _ in work
    )


def _is_good(part: float, stages: Sequence[Stage]) -> bool:
    """Whether a part of the target is near enough below it, or below it with every layer whole."""
    splits = any(stage.plan.decisions for stage in stages if stage.figures.pass_name == Allocation.name)
    return _GOOD[0] <= part <= _GOOD[1] or (part < _GOOD[0] and not splits)


def _corrected(rounds: Sequence[_Round]) -> float:
    """Return what to multiply the target by: against the difference that the last two rounds have in common."""
    if len(rounds) < 2:
        return 1.0
    first, last = (each.difference for each in rounds[-2:])
    if first * last <= 0.0:
        return 1.0
    return math.exp(-math.copysign(min(abs(first), abs(last)), last))


def with_plans(work: Work, plans: Sequence[Plan]) -> Work:
    """Return the work with the passes before the allocation as they were planned: they do not depend on it."""
    end = next(at for at, (each, _) in enumerate(work) if each.name == Allocation.name)
    before = tuple((each, plan) for (each, _), plan in zip(work[:end], plans, strict=False))
    return (*before, *work[end:])
