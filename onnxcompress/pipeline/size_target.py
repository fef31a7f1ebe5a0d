"""The last word on a target of size: the finished model's file is measured, and ranks chosen once more where it is off.

The allocation knows what its splits take in the file. What comes behind it is an estimate there: layers that eight
bits spare, names that a quantiser gives, constants that are found to be equal. So a file above the target is made
again, from the allocation on, with as many bytes less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from onnxcompress.errors import BudgetInfeasibleError
from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext
from onnxcompress.pipeline.latency_target import Ran, with_plans
from onnxcompress.pipeline.stages import Work

_MOST_ROUNDS = 4
_LEAST_STEP = 1e-3
"""Of the target: a smaller step may choose the same ranks again."""


def meet_size(
    run: Callable[[Work, PassContext], Ran], work: Work, context: PassContext, most: float, size: Callable[[Model], int]
) -> Ran:
    """Run the passes until the finished model's file keeps the target of size, at most four times.

    Args:
        run: runs the passes of a work.
        work: with the allocation among them, and no training.
        most: bytes.
        size: of a model's file.

    Returns:
        The run that keeps the target; the smallest where none does.
    """
    context = replace(context, memory={} if context.memory is None else context.memory)
    smallest = run(work, context)
    least, spared = size(smallest.model), 0.0
    for number in range(1, _MOST_ROUNDS):
        if least <= most:
            break
        spared += max(least - most, _LEAST_STEP * most)
        context.tell(f"the file has {least - most:,.0f} bytes more than it may: once more", number, None)
        work = with_plans(work, [stage.plan for stage in smallest.stages])
        try:
            ran = run(work, replace(context, spared_bytes=spared))
        except BudgetInfeasibleError:
            break  # of a target that was moved
        written = size(ran.model)
        if written < least:
            smallest, least = ran, written
    return smallest
