"""Which splits make the network faster where single layers cannot be timed: races of the whole network.

An accelerator works through its queue while the host goes on, so a profile of its nodes shows when they were queued,
not what they took. What can be trusted there is the latency of the whole network: it races, unsplit, against itself
with more or fewer of its layers split, those that save most first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from onnxcompress.analysis.split import Split
from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext
from onnxcompress.passes.race import RaceResult, is_faster, race_text


class Saving(NamedTuple):
    """A layer's split, and the multiply-accumulates that it saves, in units that compare between layers."""

    split: Split
    macs: float


def raced_splits(model: Model, savings: Mapping[str, Saving], context: PassContext) -> Mapping[str, str]:
    """Return the layers that stay whole, each with the reason: without them the network was fastest.

    The number of layers is halved from all to one, then tried between the best and its neighbours.
    """
    # That module reads the passes' own rules, and the passes read this one.
    from onnxcompress.passes.tucker.trial import SplitTrials

    timed = context.race
    if timed is None or not savings:
        return {}
    trials = SplitTrials(model)
    order = sorted(savings, key=lambda node: -savings[node].macs)
    raced: dict[int, tuple[RaceResult, ...]] = {}

    def race(number: int) -> None:
        if number not in raced:
            split = trials.build({node: savings[node].split for node in order[:number]})
            raced[number] = tuple(timed(model, split))

    race(len(order))
    if not raced[len(order)]:
        return {}  # it cannot be run as it is: nothing is known
    while min(raced) > 1:
        race(min(raced) // 2)
    for between in _neighbours(raced):
        race(between)
    best = _best(raced)
    if not is_faster(raced[best]):
        reason = f"timed in the network, splits do not pay: {race_text(raced[best])} with {best} of {len(order)}"
        return dict.fromkeys(order, reason)
    reason = (
        f"timed in the network, the {best} layers that save more are enough: {race_text(raced[best])}, "
        f"and {race_text(raced[len(order)])} with all {len(order)}"
    )
    return dict.fromkeys(order[best:], reason)


def _best(raced: Mapping[int, tuple[RaceResult, ...]]) -> int:
    """Return the number of splits with the largest speed-up on the provider that gains least."""
    return max(raced, key=lambda number: min(result.speedup for result in raced[number]))


def _neighbours(raced: Mapping[int, tuple[RaceResult, ...]]) -> tuple[int, ...]:
    numbers, best = sorted(raced), _best(raced)
    at = numbers.index(best)
    return tuple((best + numbers[other]) // 2 for other in (at - 1, at + 1) if 0 <= other < len(numbers))
