"""A budget that counts what is merged in the end.

The last factor of one split and the first factor of the next become one layer (`passes.cleanup.merge`) where nothing
stands between the two, as behind the linear bottlenecks of a MobileNetV2. What that saves is a matter of pairs, not a
sum over layers: so the limits are raised by what the choice within them saves, as far as the merged model keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxcompress.analysis.cost import sample_shapes
from onnxcompress.analysis.split import Split
from onnxcompress.errors import BudgetInfeasibleError
from onnxcompress.graph import Model
from onnxcompress.linalg.spectrum import Matrix
from onnxcompress.passes.base import PassContext
from onnxcompress.passes.cleanup.merge import LinearMerging
from onnxcompress.passes.recovery.allocation_solve import allocate
from onnxcompress.passes.recovery.refit_layers import write_bias
from onnxcompress.passes.tucker.trial import SplitTrials

Saved = Callable[[Sequence[int]], Mapping[str, float]]
"""Told which alternative each layer takes, returns what merging then saves: {kind: of its cost}."""

_MOST_TRIES = 6
_CLOSE = 1e-3


class Merging:
    """What merging saves of a model whose layers are split in one way or another."""

    def __init__(self, model: Model, context: PassContext, refitted: Mapping[str, int]) -> None:
        """Look at a model.

        Args:
            refitted: {layer: its outputs} of those to which a refit will give a bias, which may keep a pair apart.
        """
        base = model.copy()
        nodes = {node.name: node for node in base.nodes}
        for name, outputs in refitted.items():
            write_bias(base, [nodes[name]], np.ones(outputs))
        self._trials = SplitTrials(base)
        self._context = replace(context, original=context.original or model)
        self._batch = sample_shapes(model)[1]

    def saved(self, splits: Mapping[str, Split]) -> dict[str, float]:
        """Return {kind of target: what is saved} of layers that are split so.

        Of a size nothing, which makes up for what a file holds besides weights: no budget counts that.
        """
        trial = self._trials.build(splits)
        merged = LinearMerging().plan(trial, self._context).decisions
        params = float(sum(each["params"][0] - each["params"][1] for each in merged))
        macs = sum(each["macs"][0] - each["macs"][1] for each in merged if each["macs"] is not None) / self._batch
        return {"macs": macs, "params": params, "size": 0.0}


def allocate_merged(
    damages: Sequence[Matrix], costs: Mapping[str, Sequence[Matrix]], limits: Mapping[str, float], saved: Saved
) -> list[int]:
    """Return the number of the chosen alternative of every layer: little damage within all limits, once merged.

    Args:
        damages, costs, limits: as `allocate` takes them.
        saved: of what the alternatives cost.

    Raises:
        BudgetInfeasibleError: no choice keeps all limits.
    """
    low, given = dict.fromkeys(limits, 0.0), dict.fromkeys(limits, 0.0)
    high: dict[str, float] | None = None
    kept: list[int] | None = None
    for _ in range(_MOST_TRIES):
        try:
            picked = allocate(damages, costs, {kind: limit + given[kind] for kind, limit in limits.items()})
        except BudgetInfeasibleError:
            if any(given.values()):
                break
            given = {kind: saved(cheapest(costs[kind]))[kind] for kind in limits}
            continue
        own = saved(picked)
        if all(_total(costs[kind], picked) - own[kind] <= limit for kind, limit in limits.items()):
            kept, low = picked, given
        else:
            high = given
        if high is None:
            following = {kind: max(given[kind], own[kind]) for kind in limits}
        else:
            following = {kind: (low[kind] + high[kind]) / 2 for kind in limits}
        if all(abs(following[kind] - given[kind]) <= _CLOSE * abs(limit) for kind, limit in limits.items()):
            break
        given = following
    if kept is None:
        raise BudgetInfeasibleError(f"no choice of splits was found that keeps the target of {' and '.join(limits)}")
    return kept


def cheapest(costs: Sequence[Matrix]) -> list[int]:
    """Return the number of every layer's alternative that costs least."""
    return [int(np.argmin(own)) for own in costs]


def _total(costs: Sequence[Matrix], picked: Sequence[int]) -> float:
    return sum(float(own[at]) for own, at in zip(costs, picked, strict=True))
