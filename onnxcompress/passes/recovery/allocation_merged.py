"""A budget that counts what is merged in the end, and what a file holds besides weights.

The last factor of one split and the first factor of the next become one layer (`passes.cleanup.merge`) where nothing
stands between the two, as behind the linear bottlenecks of a MobileNetV2. What that saves is a matter of pairs, not a
sum over layers; nor are the names and shapes of the nodes that a split adds. So the limits are raised by what the
choice within them saves, or lowered by what it takes more, as far as the finished model keeps them.
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
from onnxcompress.passes.base import PassContext, Plan
from onnxcompress.passes.cleanup.merge import LinearMerging
from onnxcompress.passes.recovery.allocation_solve import allocate
from onnxcompress.passes.recovery.refit_layers import write_bias
from onnxcompress.passes.recovery.stored_size import StoredSize
from onnxcompress.passes.tucker.trial import SplitTrials

Saved = Callable[[Sequence[int]], Mapping[str, float]]
"""Told which alternative each layer takes, returns {kind: by how much the finished model costs less than their sum}."""

_MOST_TRIES = 8
_CLOSE = 1e-3


class Finished:
    """What a model comes to whose layers are split in one way or another."""

    def __init__(
        self, model: Model, context: PassContext, refitted: Mapping[str, int], *, merges: bool, stored: StoredSize
    ) -> None:
        """Look at a model.

        Args:
            merges: whether linear neighbours are merged in the end.
            stored: the form in which weights are stored then.
            refitted: {layer: its outputs} of those to which a refit will give a bias, which may keep a pair apart.
        """
        base = model.copy()
        nodes = {node.name: node for node in base.nodes}
        for name, outputs in refitted.items():
            write_bias(base, [nodes[name]], np.ones(outputs))
        self._trials = SplitTrials(base)
        self._context = replace(context, original=context.original or model)
        self._batch = sample_shapes(model)[1]
        self._merges, self._stored = merges, stored

    def saved(self, splits: Mapping[str, Split]) -> dict[str, float]:
        """Return {kind of target: what merging saves} of layers that are split so, macs and params."""
        merged = self._merged(self._trials.build(splits)).decisions
        params = float(sum(each["params"][0] - each["params"][1] for each in merged))
        macs = sum(each["macs"][0] - each["macs"][1] for each in merged if each["macs"] is not None) / self._batch
        return {"macs": macs, "params": params}

    def size(self, splits: Mapping[str, Split]) -> float:
        """Return the bytes of the file in the end."""
        trial = self._trials.build(splits)
        plan = self._merged(trial)
        if plan.decisions:
            LinearMerging().rewrite(trial, plan, self._context)
        trial.refresh_shapes()
        return self._stored.of_file(trial, self._context)

    def _merged(self, trial: Model) -> Plan:
        return LinearMerging().plan(trial, self._context) if self._merges else Plan(LinearMerging.name)


def allocate_merged(
    damages: Sequence[Matrix], costs: Mapping[str, Sequence[Matrix]], limits: Mapping[str, float], saved: Saved
) -> list[int]:
    """Return the number of the chosen alternative of every layer: little damage within all limits, once finished.

    Args:
        damages, costs, limits: as `allocate` takes them.
        saved: of what the alternatives cost.

    Raises:
        BudgetInfeasibleError: no choice keeps all limits.
    """

    def left(picked: Sequence[int], own: Mapping[str, float]) -> float:
        """Return the least share of a limit that is left, below 0 where one is not kept."""
        spent = {kind: _total(costs[kind], picked) - own[kind] for kind in limits}
        return min((limit - spent[kind]) / max(abs(limit), 1e-300) for kind, limit in limits.items())

    given = dict.fromkeys(limits, 0.0)
    low: dict[str, float] | None = None  # the most that was kept, or that nothing keeps within the sum
    high: dict[str, float] | None = None  # the least that was too much
    kept: list[int] | None = None
    own: Mapping[str, float]
    for _ in range(_MOST_TRIES):
        try:
            picked = allocate(damages, costs, {kind: limit + given[kind] for kind, limit in limits.items()})
        except BudgetInfeasibleError:
            if high is None:
                if any(given.values()):
                    break
                given = {kind: saved(cheapest(costs[kind]))[kind] for kind in limits}
                continue
            low, own = given, given
        else:
            own = saved(picked)
            if left(picked, own) >= 0.0:
                kept, low = picked, given
                if left(picked, own) <= _CLOSE:
                    break
            else:
                high = given
        if high is None:
            following = {kind: max(given[kind], own[kind]) for kind in limits}
        elif low is None:
            following = {kind: min(given[kind], own[kind]) for kind in limits}
        else:
            following = {kind: (low[kind] + high[kind]) / 2 for kind in limits}
        if low is not None and all(
            abs(following[kind] - given[kind]) <= _CLOSE * abs(limit) for kind, limit in limits.items()
        ):
            break
        given = following
    least = (cheapest(costs[kind]) for kind in limits) if kept is None else ()
    kept = next((picked for picked in least if left(picked, saved(picked)) >= 0.0), kept)
    if kept is None:
        raise BudgetInfeasibleError(f"no choice of splits was found that keeps the target of {' and '.join(limits)}")
    return kept


def cheapest(costs: Sequence[Matrix]) -> list[int]:
    """Return the number of every layer's alternative that costs least."""
    return [int(np.argmin(own)) for own in costs]


def _total(costs: Sequence[Matrix], picked: Sequence[int]) -> float:
    return sum(float(own[at]) for own, at in zip(costs, picked, strict=True))
